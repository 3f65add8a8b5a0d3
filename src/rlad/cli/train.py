"""`rlad train`."""

from __future__ import annotations

from typing import Annotated

import typer

RECIPE = typer.Argument(help="A packaged recipe (quickstart) or the path of a YAML file.", show_default=False)
OVERRIDES = typer.Argument(
    metavar="[KEY.SUB=VALUE]...", help="Values that win over the file, such as method.alpha=0.3.", show_default=False
)
OUTPUT = typer.Option(metavar="DIR", help="Where to write; short for output=DIR.", show_default=False)


def train(
    recipe: Annotated[str, RECIPE],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
    output: Annotated[str | None, OUTPUT] = None,
) -> int:
    """Train a student as a recipe says."""
    from rlad.errors import RladError
    from rlad.trainer.config import Recipe, find_recipe, read_recipe

    changes = with_output(overrides, output)
    if "sft" in read_recipe(find_recipe(recipe), changes):
        raise RladError(f"{recipe} is a recipe of rlad sft: it has `sft` in the place of `method`")
    checked = Recipe.resolve(recipe, changes)
    from rlad.trainer.run import train as run

    return run(checked, resume=resume)


def with_output(overrides: list[str] | None, output: str | None) -> list[str]:
    """The overrides, with --output as the last one. Quoted, because YAML would read a folder called 1 as a number."""
    import json

    return [*(overrides or []), *([] if output is None else [f"output={json.dumps(output)}"])]
