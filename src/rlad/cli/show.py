"""`rlad show`."""

from __future__ import annotations

from typing import Annotated

import typer

RUN = typer.Argument(help="What `rlad train` wrote to.", show_default=False)
PLACE = typer.Argument(
    metavar="[UPDATE[/GROUP[/ROLLOUT[/TOKEN]]]]",
    help="What to look at: 5, 5/3, 5/3/0, or 5/3/0/17.",
    show_default=False,
)
FILTER = typer.Option("--filter", metavar="NAME", help="List the rollouts that stand out so.", show_default=False)


def show(
    run: Annotated[str, RUN],
    place: Annotated[str, PLACE] = "",
    filter: Annotated[str | None, FILTER] = None,
) -> None:
    """Print a run, an update, a group, a rollout or a token of it: what the page of rlad report shows."""
    from rlad.report.text import shown

    print(shown(run, place, filter))
