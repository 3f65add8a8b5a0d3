"""`rlad report`."""

from __future__ import annotations

from typing import Annotated

import typer

from rlad import layout

RUNS = typer.Argument(help="What `rlad train` wrote to. Several runs are drawn over each other.", show_default=False)
OUTPUT = typer.Option(
    "--output", metavar="FILE", help="Where to write; by default report.html in the first run.", show_default=False
)
LIMIT = typer.Option(
    "--max-mb", metavar="N", help="Records beyond so many megabytes are left out, and the page says so."
)


def report(
    runs: Annotated[list[str], RUNS],
    output: Annotated[str | None, OUTPUT] = None,
    max_mb: Annotated[float, LIMIT] = 8.0,
) -> None:
    """Write one HTML page of runs: curves, groups, and what the teacher did to each token."""
    from pathlib import Path

    from rlad.report.page import write_report

    path = Path(output) if output is not None else Path(runs[0]) / layout.REPORT
    written = write_report(runs, path, max_mb)
    left = written.recorded - written.shown
    print(
        f"{path}: {written.size / 1e6:.2f} MB, {written.shown} rollouts"
        + (f"; {left} of {written.recorded} were left out (--max-mb)" if left else "")
        + (" (no records: curves alone)" if not written.recorded else "")
    )
