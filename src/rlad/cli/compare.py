"""`rlad compare`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

STUDY = typer.Argument(help="The path of a study's YAML file (recipes/studies).", show_default=False)


def compare(
    study: Annotated[str, STUDY],
    workers: Annotated[int, typer.Option(min=0, help="Cells at a time, each in a process; 0: in this one.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each cell.")] = 1,
    results: Annotated[str, typer.Option(metavar="DIR", help="Where finished cells are kept.")] = "results",
    runs: Annotated[str, typer.Option(metavar="DIR", help="Where runs are kept.")] = "runs",
    only: Annotated[
        str, typer.Option(metavar="TEXT", help="Run only the row of this name, or those with it in theirs.")
    ] = "",
    seed: Annotated[list[int] | None, typer.Option(help="Run only this seed of the study; may be repeated.")] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Print what is missing, and run nothing.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Write the tables of what is there, and run nothing.")] = False,
    commit: Annotated[bool, typer.Option("--commit", help="Commit each finished cell to git.")] = False,
) -> int:
    """Compare methods: run what is missing of a study, then write its tables and charts."""
    from rlad.compare.cells import Results
    from rlad.compare.report import gather, report
    from rlad.compare.run import Options, missing, run_study, waiting
    from rlad.compare.study import Study

    seeds = tuple(seed or ())
    loaded = Study.load(study)
    found = Results(results, loaded.name)
    if list_only:
        left = [cell for cells in missing(loaded, found, only, seeds) for cell in cells]
        for cell in left:
            print(f"{cell.label}, seed {cell.seed}")
        # Not among the cells' names:
        if behind := waiting(loaded, found, only, seeds):
            print(f"and {behind} cells of rows whose sweep is not finished", file=sys.stderr)
        elif not left:
            print("nothing is missing", file=sys.stderr)
        return 0
    status = 0
    if not table:
        status = run_study(
            loaded, Options(results, runs, workers, threads, only, seeds, commit), lambda line: print(line, flush=True)
        )
    if status and not any(group.cells for group in gather(loaded, Results(results, loaded.name))[0]):
        return status  # nothing to make tables of
    print("\n" + report(loaded, found))
    print(f"\nWritten: {found.root / loaded.name / 'README.md'}")
    return status
