"""results/STUDY/README.md, report.json and charts, from the cells that are finished so far."""

from __future__ import annotations

from typing import Any

from rlad.compare.cells import Results, finite
from rlad.compare.numbers import (
    Group,
    accuracy_rows,
    measured_twice,
    numeric_grid,
    paired_rows,
    pass_rows,
    seconds_rows,
    token_rows,
    training_accuracy,
)
from rlad.compare.run import chosen_row
from rlad.compare.study import Row, Study
from rlad.compare.tables import markdown
from rlad.errors import RladError
from rlad.evaluation.results import write_json
from rlad.files import whole_file

TITLES = {
    "by-step": "Training accuracy by step",
    "by-clock": "Training accuracy by time",
    "pass-at-k": "Pass@k",
    "by-difficulty": "Accuracy by difficulty",
    "by-value": "Accuracy by value",
    "tokens": "Tokens over training",
}


def report(study: Study, results: Results, charts: bool = True) -> str:
    """Write them, and return the tables. Raises RladError while no cell is finished."""
    groups, sweeps = gather(study, results)
    finished = sum(len(group.cells) for group in groups)
    if not finished:
        raise RladError(f"no cell of {study.path} is finished: run it first, without --table")
    folder = results.root / study.name
    tables = markdown(groups, study.baseline, sweeps)
    pictures = []
    if charts:
        from rlad.compare.charts import draw

        pictures = draw(groups, folder / "charts", study.baseline)
    cells = [cell for group in groups for cell in group.cells]
    at_end = {_commit(other) for cell in cells if (other := cell.data.get("commit_at_end"))}  # changed meanwhile
    commits = sorted({_commit(cell.data.get("commit")) for cell in cells} | at_end)
    wanted = sum(group.wanted for group in groups)
    head = [f"# {study.name}", study.spec.about.strip(), f"    rlad compare {study.path}"]
    trained = [cell for cell in cells if cell.kind != "evaluate"]
    hours = sum(cell.seconds for cell in trained) / 3600
    head.append(
        f"{finished} of {wanted} cells are finished, in {hours:.1f} hours of training, at commits {', '.join(commits)}."
    )
    if twice := measured_twice(groups):
        head.append(
            f"Cells of seed {', '.join(map(str, twice))} do not agree on the student before training: they were "
            "evaluated by versions that draw responses differently. Rows of one seed then differ by the draw as well."
        )
    images = [f"![{TITLES[name]}](charts/{name}.svg)" for name in pictures]
    with whole_file(folder / "README.md") as file:
        file.write("\n\n".join(filter(None, (*head, tables, *images))).encode() + b"\n")
    write_json(folder / "report.json", _json(study, groups, sweeps, commits))
    return tables


def _commit(full: str | None) -> str:
    """Seven letters, and the mark of changed files."""
    return "unknown" if not full else full[:7] + "+" * full.endswith("+")


def gather(study: Study, results: Results) -> tuple[list[Group], list[dict[str, Any]]]:
    """(a group for each row, its finished cells in it; a line for each trial of a sweep)."""
    groups, sweeps = [], []
    for row in study.rows:
        chosen = chosen_row(study, row, results)
        sweeps += _trials(study, row, chosen, results)
        cells = [] if chosen is None else [found for cell in study.cells(chosen) if (found := results.find(cell))]
        point = {} if chosen is None else chosen.chosen or {}
        groups.append(Group(row.label, cells, len(study.seeds(row)), point, row.spec.name, row.grid))
    return _by_value(groups), sweeps


def _by_value(groups: list[Group]) -> list[Group]:
    """Rows of one grid over a number stand together, in the order of its values."""
    grids = [numeric_grid(group) for group in groups]
    places = {each[:2]: i for i, each in reversed(list(enumerate(grids))) if each}
    order = sorted(range(len(groups)), key=lambda i: (places[g[:2]], g[2]) if (g := grids[i]) else (i, 0.0))
    return [groups[i] for i in order]


def _trials(study: Study, row: Row, chosen: Row | None, results: Results) -> list[dict[str, Any]]:
    lines = []
    for point, cell in zip(row.points, study.trials(row), strict=True):
        found = results.find(cell)
        accuracy = None if found is None else found.accuracy("after")
        training = None if found is None else training_accuracy(found)
        won = chosen is not None and chosen.chosen == point
        lines.append(
            {"label": row.label, "point": dict(point), "accuracy": accuracy, "training": training, "chosen": won}
        )
    return lines


def _json(study: Study, groups: list[Group], sweeps: list[dict[str, Any]], commits: list[str]) -> dict[str, Any]:
    """The same numbers. An interval that one seed does not have is null."""
    content = {
        "study": study.name,
        "baseline": study.baseline,
        "commits": commits,
        "sweeps": sweeps,
        "accuracy": accuracy_rows(groups),
        "paired": paired_rows(groups, study.baseline),
        "pass_at_k": pass_rows(groups),
        "tokens": token_rows(groups),
        "seconds": seconds_rows(groups),
    }
    found: dict[str, Any] = finite(content)
    return found
