"""`rlad check`: what a recipe would run, and everything that is wrong with it, without loading a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rlad.cli.describe import description
from rlad.cli.train import OUTPUT, OVERRIDES, RECIPE, with_output

if TYPE_CHECKING:
    from rlad.trainer.config import Recipe


def check(
    recipe: Annotated[str, RECIPE],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    output: Annotated[str | None, OUTPUT] = None,
) -> int:
    """Say what a recipe would run, and everything that is wrong with it.

    Loads no model. A served teacher is asked what it serves, for 3 seconds at most.
    """
    from rlad.trainer.config import Recipe, RecipeError, find_recipe, read_recipe
    from rlad.trainer.options import cautions
    from rlad.trainer.preflight import found_problems

    path, changes = find_recipe(recipe), with_output(overrides, output)
    try:
        if "sft" in read_recipe(path, changes):
            return _check_sft(recipe, path, changes)
        checked = Recipe.resolve(recipe, changes)
    except RecipeError as error:
        return _report(error.problems)
    problems = found_problems(checked)
    print(f"{'recipe':<10}{path}")
    for line in description(checked):
        print(line)
    for caution in [
        *cautions(checked.trainer, checked.method["name"], "trainer."),
        *_think_caution(checked),
        *_here(checked),
    ]:
        print(f"caution: {caution}")
    return _report(problems)


def _check_sft(reference: str, path: Path, overrides: list[str]) -> int:
    from rlad.cli.describe_sft import sft_description
    from rlad.offline.config import SftRecipe
    from rlad.trainer.preflight import sft_problems

    checked = SftRecipe.resolve(reference, overrides)
    for line in (f"{'recipe':<10}{path} (for rlad sft)", *sft_description(checked)):
        print(line)
    return _report(sft_problems(checked))


def _think_caution(recipe: Recipe) -> list[str]:
    task = recipe.task
    if task.get("scorer") != "logic-rl" or recipe.model.open_think == bool(task.get("prompt_ends_with_think")):
        return []
    return [
        "the scorer logic-rl counts the prompt's <think>: model.open_think and task.prompt_ends_with_think should "
        "agree (unless the chat template itself opens <think>)"
    ]


def _here(recipe: Recipe) -> list[str]:
    """What the recipe needs and this machine lacks: it may be checked here to be run elsewhere."""
    from importlib.util import find_spec

    from rlad.trainer.preflight import needs_gpu

    found = []
    if needs_gpu(recipe.trainer_arguments()):
        found.append(
            "this machine has no GPU: checked as for one that has; to train here set trainer.use_cpu=true and "
            "trainer.bf16=false"
        )
    if recipe.trainer.get("use_vllm") and find_spec("vllm") is None:
        found.append("trainer.use_vllm: vLLM is not installed here (pip install 'trl[vllm]')")
    return found


def _report(problems: tuple[str, ...] | list[str]) -> int:
    sys.stdout.flush()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}: nothing would run", file=sys.stderr)
        return 2
    print("nothing wrong was found")
    return 0
