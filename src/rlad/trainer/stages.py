"""Training in stages: each goes on from the last one's model with other settings (a longer context, more people, ...).

Skywork-OR1 (arXiv 2505.22312) lengthens the context so; a curriculum of puzzles, or opd before grpo, is said alike:

    stages:
      - {task: {people: [2, 3]}, trainer: {max_steps: 20}}
      - {task: {people: [4, 5]}, trainer: {max_steps: 20, max_completion_length: 768}, method: grpo}

A stage says what differs from the recipe around it. The optimiser and its schedule begin anew in each.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlad import layout
from rlad.errors import RladError
from rlad.trainer.config import STAGE_KEYS, Recipe


def stage_recipe(recipe: Recipe, index: int, model: str | None = None) -> Recipe:
    """The recipe of one stage (from 0). model: what it starts from, None for the recipe's own."""
    data = recipe.model_dump()
    stage = data.pop("stages")[index]
    data = merged(data, stage)
    data["output"] = str(Path(recipe.output) / layout.STAGE.format(index + 1))
    data["seed"] = stage.get("seed", recipe.seed + index)  # or every stage would draw the same puzzles again
    if model is not None:
        # The template that was saved with it opens <think> already, where it was asked to.
        data["model"] = {**data["model"], "path": model, "revision": None, "open_think": False}
    return Recipe.from_mapping(data)


def merged(recipe: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's data with a stage's put in. A section is merged key by key, but a teacher and what has another name
    (a method, a task) takes the place of the whole section."""
    data = dict(recipe)
    for key in STAGE_KEYS:
        if key not in stage:
            continue
        ours, theirs = data.get(key), stage[key]
        if isinstance(theirs, str) and key in ("method", "task"):
            theirs = {"name": theirs}
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and key != "teacher":
            same = key in ("trainer", "evaluate") or theirs.get("name", ours.get("name")) == ours.get("name")
            theirs = {**ours, **theirs} if same else theirs
        data[key] = theirs
    return data


def train_stages(recipe: Recipe, resume: bool, say: Callable[[str], None]) -> int:
    """Train every stage in turn, below recipe.output. Returns the status of the last that ran.

    resume: finished stages are passed over, and the one that was interrupted goes on. Raises as rlad.trainer.run.train.
    """
    from rlad.evaluation.run import write_json
    from rlad.trainer.run import arguments_of, prepared, train
    from rlad.trainer.saving import last_checkpoint
    from rlad.trainer.session import (
        INTERRUPTED,
        begin,
        better,
        check_same_recipe,
        exit_status,
        first_process,
        set_aside,
    )

    for index in range(len(recipe.stages)):
        stage = stage_recipe(recipe, index)
        try:
            prepared(stage)
            arguments_of(stage, Path(stage.output))
        except RladError as error:  # now, and not when the stages before it are trained
            raise RladError(f"stages.{index + 1}: {error}") from None
    output = Path(recipe.output)
    written = output / layout.RECIPE
    if resume:
        if not written.is_file():
            raise RladError(f"there is no run in {output} to go on with: start without --resume")
        check_same_recipe(recipe, written, "rlad train")
    else:
        begin(recipe, say)
    model, status, last = None, 0, None
    for index in range(len(recipe.stages)):
        stage = stage_recipe(recipe, index, model)
        folder = Path(stage.output)
        # Without `resume` all is new, whatever another process still sees of a run that is being set aside.
        if resume and (folder / layout.SUMMARY).is_file():
            summary = json.loads((folder / layout.SUMMARY).read_text(encoding="utf-8"))
            status = exit_status(stage, better(summary), say)
        else:
            say(f"stage {index + 1} of {len(recipe.stages)}: {describe(recipe.stages[index])}")
            again = resume and last_checkpoint(folder / layout.CHECKPOINTS) is not None
            if not again and first_process():
                set_aside(folder, say)
                _take_over(stage, last)
            status = train(stage, resume=again, emit=say)
            if status == INTERRUPTED:
                return status
        _let_go()
        model = str(folder / (layout.BEST if (folder / layout.BEST).is_dir() else layout.MODEL))
        last = stage
    if first_process():
        found = {"recipe": recipe.model_dump(), "stages": len(recipe.stages), "model": model}
        write_json(output / layout.SUMMARY, found)
    say(f"all {len(recipe.stages)} stages are done: the model is {model}")
    return status


def _let_go() -> None:
    """Free the last stage's student and its optimiser, which refer to each other, before the next ones are loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe(stage: Mapping[str, Any]) -> str:
    """What a stage changes, in a line."""
    parts = []
    for key in (*STAGE_KEYS, "seed"):
        if key in stage:
            value = stage[key]
            inner = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
            parts.append(f"{key} {inner}")
    return "; ".join(parts) or "as the recipe"


def _take_over(stage: Recipe, last: Recipe | None) -> None:
    """What was evaluated after the last stage is this one's evaluation before, where the problems are the same, and how
    they are answered."""
    from rlad.tasks import load_task

    if last is None or stage.evaluate is None or _answering(stage) != _answering(last):
        return
    ours, theirs = (
        load_task(each.task).evaluation(stage.evaluate.split, stage.evaluate.puzzles) for each in (stage, last)
    )
    found, target = Path(last.output) / layout.AFTER, Path(stage.output) / layout.BEFORE
    if list(ours) == list(theirs) and found.is_file() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, target)


def _answering(recipe: Recipe) -> tuple[Any, ...]:
    """How a recipe's evaluation generates and scores: a stage with longer responses, or a milder scorer, may have more
    right without having learnt more."""
    trainer = recipe.trainer_arguments()
    generates = recipe.evaluate, trainer.get("max_completion_length"), trainer.get("chat_template_kwargs")
    return *generates, recipe.task.get("name"), recipe.task.get("scorer")
