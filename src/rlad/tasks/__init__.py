"""Tasks by name: `load_task("knights_knaves")`, `load_task({"name": "knights_knaves", "people": [2, 3]})`.

Your own: `load_task("my_package.module:MyTask")`, or `load_task({"prompts": "file.jsonl", "reward":
"module:function"})`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from rlad.errors import RladError
from rlad.tasks.base import Example, Score, Task, score_all

__all__ = ["TASKS", "Example", "Score", "Task", "load_task", "score_all"]

TASKS = {
    "knights_knaves": "rlad.tasks.knights_knaves.dataset:KnightsKnaves",
    "math": "rlad.tasks.math.dataset:Math",
}


def load_task(spec: str | Mapping[str, Any]) -> Task:
    """The task that `spec` names: a name in TASKS, "package.module:Class", or a mapping of one of them plus options.

    A mapping has either a `name`, or `prompts` and `reward` (see `rlad.tasks.custom.PromptsTask`); every other key is
    an option of the task. Raises RladError for a name, a module or an option that does not exist, and says what does.
    """
    from rlad.tasks.custom import PromptsTask, build, import_object

    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or not all(isinstance(key, str) for key in spec):
        raise RladError(f"task must be a name or a mapping of options, not {spec!r}")
    options = dict(spec)
    name = options.pop("name", None)
    if name is None and options:
        prompts: Task = build(PromptsTask, options, "a task without a name is one of prompts and reward")
        return prompts
    if not isinstance(name, str) or not name:
        raise RladError('task needs a name ("knights_knaves", "package.module:Class"), or `prompts` and `reward`')
    target = TASKS.get(name, name)
    if ":" not in target:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise RladError(f"there is no task {name!r}; {hint}tasks: {', '.join(TASKS)}, or package.module:Class of yours")
    task: Task = build(import_object(target, "task"), options, f"task {name}")
    missing = [member for member in ("name", "train", "evaluation", "score") if not hasattr(task, member)]
    if missing:
        raise RladError(f"{name} is not a task: it has no {', '.join(missing)} (see rlad.tasks.Task)")
    return task
