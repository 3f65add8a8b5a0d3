"""`rlad evaluate`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from rlad.errors import RladError


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A folder, a hub id, embedded:student or embedded:teacher.", show_default=False)
    ],
    task: Annotated[str, typer.Option(help="A task's name, or YAML with options: '{name: ..., prompt: ...}'.")],
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="Problems to evaluate on; otherwise the task's own.")
    ] = None,
    people: Annotated[str | None, typer.Option(help="Numbers of people, such as 2-8 or 2,4 (knights_knaves).")] = None,
    puzzles: Annotated[int | None, typer.Option(min=1, help="How many problems.", show_default="the task's")] = None,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    samples: Annotated[int, typer.Option(min=1, help="Responses to each problem.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.6,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample from this much of the probability.")] = 0.95,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses generated at once.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the sampling; the problems stay the same.")] = 0,
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write everything as JSON; - for standard output.")
    ] = None,
) -> int:
    """Evaluate a model on a task: accuracy with 95 % intervals, as a table and as JSON.

    Temperature 0.6 and top-p 0.95 are the paper's.
    """
    from rlad.evaluation.run import evaluate as run
    from rlad.tasks import load_task

    spec = task_spec(task, data, people)
    loaded_task = load_task(spec)
    examples = loaded_task.evaluation(split, puzzles)
    loaded, tokenizer = load_model(model)
    evaluation = run(
        loaded,
        tokenizer,
        examples,
        loaded_task,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        on_progress=_progress if sys.stderr.isatty() else None,
    )
    about = {"model": model, "task": spec, "split": split, **evaluation.settings}
    evaluation = dataclasses.replace(evaluation, settings=about)
    if output == "-":
        print(evaluation.table(), file=sys.stderr)
        print(json.dumps(evaluation.to_json()))
        return 0
    print(evaluation.table())
    if output is not None:
        evaluation.save(output)
        print(f"written to {output}")
    return 0


def task_spec(task: str, data: str | None, people: str | None) -> dict[str, Any]:
    """The task and its options from the command line. Raises RladError where `task` looks like YAML and is none."""
    spec: dict[str, Any] = {"name": task}
    if task.lstrip().startswith("{"):
        import yaml

        try:
            loaded = yaml.safe_load(task)
        except yaml.YAMLError as error:
            raise RladError(f"--task is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(loaded, Mapping):
            raise RladError(f"--task must be a name or a mapping of options, not {task!r}")
        spec = dict(loaded)
    if data is not None:
        spec["evaluation_prompts" if "prompts" in spec else "evaluation_data"] = data
    if people is not None:
        spec["people"] = people
    return spec


def load_model(name: str) -> tuple[Any, Any]:
    """(model, tokenizer) for a folder, a hub id or embedded:NAME, on the GPU where there is one, else in float32.

    Raises RladError where there is no such model.
    """
    from pathlib import Path

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlad.models import resolve

    path = resolve(name)
    if name.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():  # not a hub id: say so plainly
        raise RladError(f"there is no model folder {name}")
    gpu = torch.cuda.is_available()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto" if gpu else torch.float32)
    except (OSError, ValueError) as error:
        raise RladError(f"cannot load the model {name!r}: {' '.join(str(error).split())}") from None
    return model.to("cuda" if gpu else "cpu").eval(), tokenizer


def _progress(done: int, total: int) -> None:
    print(f"\r{done}/{total} responses", end="\n" if done == total else "", file=sys.stderr, flush=True)
