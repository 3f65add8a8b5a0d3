"""Tasks of your own: a class named as "package.module:Class", or a file of prompts with a reward function."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rlad.errors import RladError
from rlad.tasks.base import Example, Score, is_finite

ROLES = ("system", "user", "assistant")


def import_object(target: str, what: str) -> Any:
    """The object that "package.module:name" names; modules are looked for in the working directory too.

    Raises RladError where the form is wrong, the import fails (with its reason), or the module has no such name.
    """
    module_name, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise RladError(f"{what} must be written package.module:name, not {target!r}")
    # A console script does not look in the working directory, where a user's module is. Last, so that it hides nothing.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module can raise anything when it is imported
        reason = f"{type(error).__name__}: {error}"
        raise RladError(f"{what} {target!r}: importing {module_name} failed: {reason}") from error
    if not hasattr(module, attribute):
        raise RladError(f"{what} {target!r}: {module_name} has no {attribute}")
    return getattr(module, attribute)


def build(factory: Any, options: Mapping[str, Any], what: str) -> Any:
    """`factory(**options)`. Raises RladError, which names the options there are, where one is unknown or missing."""
    if not callable(factory):
        raise RladError(f"{what} must be a class, not {factory!r}")
    signature = inspect.signature(factory)
    known = signature.parameters
    listed = f"its options: {', '.join(known) or 'none'}"
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
    if not takes_any and (unknown := [name for name in options if name not in known]):
        from rlad.trainer.messages import close_to

        raise RladError(f"{what}: there is no option {unknown[0]!r}{close_to(unknown[0], known)} ({listed})")
    try:
        signature.bind(**options)
    except TypeError as error:
        raise RladError(f"{what}: {error} ({listed})") from None
    return factory(**options)


@dataclass(frozen=True)
class PromptsTask:
    """Prompts from a JSON Lines file, scored by a Python function.

    prompts: a file whose lines are {"prompt": "text" or [chat messages], ...}; the other columns go to the reward
        function and are the same on every line. A `difficulty` column, where there is one, makes the rows of evaluation
        tables.
    reward: "module:function", called as function(response, example); it returns a number, a bool or a Score.
    evaluation_prompts: a second such file, which is split "test". None: the task can be trained on but not evaluated.
    validation_prompts: a third one, which is split "validation". None: there is none, and it is not taken from the
        others, so that what a run is chosen by is not what it is judged by.
    correct_at: from which value of the reward on a response counts as correct.
    """

    prompts: str
    reward: str | Callable[[str, Mapping[str, Any]], Any]
    evaluation_prompts: str | None = None
    validation_prompts: str | None = None
    correct_at: float = 1.0

    name: ClassVar[str] = "prompts"
    is_local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        function = self.reward
        if isinstance(function, str):
            function = import_object(function, "task.reward")
        if not callable(function):
            raise RladError(f"task.reward must name a function, not {function!r}")
        object.__setattr__(self, "reward", function)
        if isinstance(self.correct_at, bool) or not isinstance(self.correct_at, (int, float)):
            raise RladError(f"task.correct_at must be a number, not {self.correct_at!r}")
        for field in ("prompts", "evaluation_prompts", "validation_prompts"):
            path = getattr(self, field)
            if path is not None and not isinstance(path, (str, os.PathLike)):
                raise RladError(f"task.{field} must be the path of a JSON Lines file, not {path!r}")
            if path is not None and not Path(path).is_file():
                raise RladError(f"task.{field}: there is no file {path}")

    def train(self) -> list[Example]:
        """Every prompt of the file, in its order."""
        return read_prompts(self.prompts)

    def evaluation(self, split: str = "test", count: int | None = None) -> list[Example]:
        """The first `count` prompts, or all, of evaluation_prompts ("test") or validation_prompts ("validation").

        A prompt that stands in several of the files is left in each.
        """
        if split not in ("test", "validation"):
            raise RladError(f"an evaluation split is test or validation, not {split!r}")
        path = self.evaluation_prompts if split == "test" else self.validation_prompts
        if path is None and split == "test":
            raise RladError("this task has nothing to evaluate on: name a file in task.evaluation_prompts")
        if path is None:
            raise RladError(
                "this task has nothing to validate on: name a file in task.validation_prompts, or set split: test to "
                "validate on the evaluation prompts"
            )
        examples = read_prompts(path)
        if count is not None and count > len(examples):
            raise RladError(f"{path} has {len(examples)} prompts, fewer than the {count} asked for")
        return examples[:count]

    def score(self, response: str, example: Mapping[str, Any]) -> Score:
        """The reward function's verdict. Raises RladError where it raises, or returns what is no finite number."""
        assert callable(self.reward)
        try:
            verdict = self.reward(response, example)
            score = verdict if isinstance(verdict, Score) else self._score(float(verdict))
        except Exception as error:  # a user's function can raise anything
            raise RladError(f"task.reward failed: {type(error).__name__}: {error}") from error
        if not is_finite(score.value):
            raise RladError(f"task.reward must return a finite number, a bool or a Score, not {verdict!r}")
        return score

    def _score(self, value: float) -> Score:
        return Score(value, value >= self.correct_at, None, "the value that the reward function returned")


def read_prompts(path: str | os.PathLike[str]) -> list[Example]:
    """Examples from a JSON Lines file of prompts. Raises RladError that names the line which is wrong."""
    examples: list[Example] = []
    for number, row in read_json_lines(path):
        where = f"{path}, line {number}"
        if "prompt" not in row:
            raise RladError(f"{where}: has no 'prompt'; it has {', '.join(row) or 'nothing'}")
        example = {**row, "prompt": messages_of(row["prompt"], where)}
        if examples and example.keys() != examples[0].keys():
            differing = ", ".join(sorted(example.keys() ^ examples[0].keys()))
            raise RladError(f"{where}: its columns differ from those of the first line ({differing})")
        examples.append(example)
    if not examples:
        raise RladError(f"{path} holds no prompts")
    return examples


def read_json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank, as they are read.

    Raises RladError for a file that cannot be read and a line that is no object.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _json_object(line, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise RladError(f"cannot read {path}: {error}") from None


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RladError(f"{where}: is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise RladError(f"{where}: must be a JSON object, not {type(row).__name__}")
    return row


def messages_of(prompt: Any, where: str) -> list[dict[str, str]]:
    """A prompt as chat messages: a text becomes one user message. Raises RladError that starts with `where`."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise RladError(f"{where}: the prompt is empty")
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or not prompt:
        raise RladError(f"{where}: 'prompt' must be a text or a list of chat messages, not {prompt!r}")
    for message in prompt:
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise RladError(f"{where}: a chat message has exactly 'role' and 'content', not {message!r}")
        if message["role"] not in ROLES or not isinstance(message["content"], str):
            raise RladError(f"{where}: a message needs a role of {', '.join(ROLES)} and a text, not {message!r}")
    if prompt[-1]["role"] != "user":
        raise RladError(f"{where}: the last message must be the user's, not the {prompt[-1]['role']}'s")
    if any("\ud800" <= character <= "\udfff" for message in prompt for character in message["content"]):
        raise RladError(f"{where}: the prompt has a lone surrogate (\\ud800 to \\udfff), which no tokenizer takes")
    return [dict(message) for message in prompt]
