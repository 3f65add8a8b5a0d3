"""`rlad sft`."""

from __future__ import annotations

from typing import Annotated

import typer

from rlad.cli.train import OUTPUT, OVERRIDES, with_output

RECIPE = typer.Argument(help="The path of a YAML file, with `sft` in the place of `method`.", show_default=False)


def sft(
    recipe: Annotated[str, RECIPE],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
    traces_only: Annotated[bool, typer.Option("--traces-only", help="Make the traces, and train nothing.")] = False,
    output: Annotated[str | None, OUTPUT] = None,
) -> int:
    """Train a student on a teacher's correct responses."""
    from rlad.offline.config import SftRecipe

    checked = SftRecipe.resolve(recipe, with_output(overrides, output))
    from rlad.offline.sft import train_offline

    return train_offline(checked, resume=resume, traces_only=traces_only)
