"""Finished cells: one small JSON file each, written whole or not at all, and found again wherever it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlad.compare.identity import differences, digest, normal
from rlad.compare.study import SWEEPS, Cell
from rlad.errors import RladError
from rlad.files import whole_file

VERSION = 1
TOTALS = ("average", "all")
# What is kept of a step: TRL's names, ours as rlad/*. The rest is in the run's metrics.jsonl.
KEPT = (
    "accuracy", "reward", "entropy", "completions/mean_length", "rlad/clip_low", "rlad/clip_high", "rlad/clamped",
    "rlad/ratio", "rlad/log_ratio_abs", "rlad/student_minus_teacher", "rlad/zero_variance_groups", "step_time",
    "rlad/seconds/generation", "rlad/seconds/rewards", "rlad/seconds/teacher", "rlad/seconds/ours",
    "rlad/seconds/recorder", "loss", "mean_token_accuracy",
)  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """A finished cell as its file has it. `before` and `after` may be missing: a cell need not be evaluated."""

    path: Path
    data: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """train, sft or evaluate. Files of before `rlad compare` do not say, and are of the first two."""
        return str(self.data.get("kind", "sft" if "sft" in self.data["recipe"] else "train"))

    @property
    def seed(self) -> int:
        """Of the recipe."""
        return int(self.data["recipe"]["seed"])

    @cached_property
    def identity(self) -> dict[str, Any]:
        """As `Cell.identity`."""
        seconds = self.data.get("budget_seconds")
        return {"kind": self.kind, "budget_seconds": seconds, **normal(self.kind, self.data["recipe"])}

    @cached_property
    def curve(self) -> list[dict[str, Any]]:
        """One row a logged step: `step`, `seconds` of training so far where they are known, and KEPT."""
        found = self.data.get("curve", [])
        if isinstance(found, Mapping):
            return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
        return [dict(row) for row in found]

    @property
    def seconds(self) -> float:
        """Of training, interruptions left out; of a supervised run and of old files, as its last part counted them."""
        known = [row["seconds"] for row in self.curve if row.get("seconds") is not None]
        return float(max([*known, self.data.get("seconds") or 0.0] if self.kind == "sft" or not known else known))

    def accuracy(self, when: str, difficulty: str | None = None) -> float | None:
        """`before` or `after` training, of one difficulty or of all problems; None where it was not evaluated."""
        rows = [row for row in self.data.get("gain") or [] if row["difficulty"] == difficulty or difficulty is None]
        if not rows:
            return None
        value = rows[-1].get(when)
        return None if value is None else float(value)

    @property
    def difficulties(self) -> list[str]:
        """Those that problems have."""
        return [row["difficulty"] for row in self.data.get("gain") or [] if row["difficulty"] not in TOTALS]

    @property
    def problems(self) -> Mapping[str, Any] | None:
        """`digest` of the problems, `samples`, and how many are right of each, `before` and `after`."""
        found: Mapping[str, Any] | None = self.data.get("problems")
        return found


def read_cell(path: Path) -> Finished:
    """Raises RladError for a file that is no finished cell."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("version", VERSION) != VERSION:
            raise ValueError("of another version")
        if not isinstance(data["recipe"], dict) or "seed" not in data["recipe"]:
            raise ValueError("it has no recipe with a seed")
        found = Finished(path, data)
        _check_shape(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RladError(f"{path} is not a finished cell ({type(error).__name__}: {error}): move it away") from None
    return found


def _check_shape(cell: Finished) -> None:
    """What tables and charts read must be there, or be missing as a whole. Raises what it stumbles over."""
    _check_types("seed of the recipe", [cell.data["recipe"]["seed"]], (int,))
    for name, kinds in (("commit", (str,)), ("commit_at_end", (str,)), ("seconds", (int, float))):
        _check_types(name, [cell.data.get(name)], (*kinds, type(None)))
    for row in cell.curve:
        _check_types("step of the curve", [row.get("step")], (int,))
        _check_types("row of the curve", row.values(), (int, float, type(None)))
    for row in cell.data.get("gain") or []:
        _check_types("difficulty", [row["difficulty"]], (str,))
        _check_types("accuracy after", [row["after"]], (int, float))
        _check_types("accuracy before", [row.get("before")], (int, float, type(None)))
    if (problems := cell.problems) is not None:
        _check_problems(problems)


def _check_problems(problems: Mapping[str, Any]) -> None:
    counts = [problems[when] for when in ("before", "after") if when in problems or when == "after"]
    _check_types("digest of the problems", [problems["digest"]], (str,))
    _check_types("number of right samples", [problems["samples"], *(n for each in counts for n in each)], (int,))
    if problems["samples"] < 1 or any(not 0 <= n <= problems["samples"] for each in counts for n in each):
        raise ValueError("more are right than there are samples")
    if len({len(each) for each in counts}) != 1 or not counts[0]:
        raise ValueError("the problems before and after are not the same, or there is none")


def _check_types(what: str, values: Iterable[Any], kinds: tuple[type, ...]) -> None:
    for value in values:
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{what}: {value!r} is not {' or '.join(kind.__name__ for kind in kinds)}")


def write_cell(path: Path, data: Mapping[str, Any]) -> None:
    """One line a key, and two levels of the recipe: small, and readable in a diff."""

    def lines(content: Mapping[str, Any], indent: str) -> str:
        body = ",\n".join(f"{indent} {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in content.items())
        return f"{{\n{body}\n{indent}}}"

    nested = {"recipe", "curve", "problems"}
    parts = [
        f" {json.dumps(k)}: "
        + (lines(v, " ") if k in nested and isinstance(v, Mapping) else json.dumps(v, allow_nan=False))
        for k, v in data.items()
    ]
    with whole_file(path) as file:
        file.write(("{\n" + ",\n".join(parts) + "\n}\n").encode())


class Results:
    """The folder of all studies' results: results/STUDY/CELL.json, and results/sweeps."""

    def __init__(self, root: str | Path, study: str) -> None:
        self.root, self.study = Path(root), study
        self._elsewhere: dict[str, Finished] | None = None

    def path(self, cell: Cell) -> Path:
        """Where the cell is kept when it is finished."""
        return self.root / (SWEEPS if cell.trial else self.study) / f"{cell.slug}.json"

    def find(self, cell: Cell) -> Finished | None:
        """The finished cell, of this study or, where its recipe is equal, of another. None where there is none.

        Raises RladError where the file of this cell is of another recipe, naming what differs.
        """
        path = self.path(cell)
        if path.is_file():
            found = read_cell(path)
            try:
                theirs = found.identity
            except (RladError, RecursionError) as error:
                raise RladError(f"{path} has a recipe that this version does not read: {error}: move it away") from None
            changed = differences(cell.identity, theirs)
            if changed:
                raise RladError(
                    f"{path} is finished, of another recipe: {'; '.join(changed)}. Keep it by giving the study's file "
                    "another name, or move it away to run the cell again"
                )
            return found
        return self._index().get(cell.digest)

    def adopt(self, cell: Cell) -> Finished | None:
        """Copy a cell that only another study has to where this one keeps it; None where there was nothing to do.

        A trial's file has a digest in its name, which changes where a new version adds an option: it stays as it is."""
        path, known = self.path(cell), self.find(cell)
        if known is None or known.path.parent == path.parent:
            return None
        write_cell(path, {**known.data, "cell": cell.label, "from": str(known.path.relative_to(self.root))})
        return read_cell(path)

    def _index(self) -> dict[str, Finished]:
        """Finished cells of other studies by their identity: those with most to tell first."""
        if self._elsewhere is None:
            found = sorted(self._others(), key=lambda each: each.problems is not None)
            self._elsewhere = {digest(each.identity): each for each in found}
        return self._elsewhere

    def _others(self) -> Iterator[Finished]:
        for path in sorted(self.root.glob("*/*.json")):
            try:
                found = read_cell(path)
                _ = found.identity
            except (
                RladError,
                RecursionError,
            ):  # of a version whose recipes say other things: not ours to use, and not in the way
                continue
            yield found


def finished_data(
    cell: Cell,
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    before: Any,
    after: Any,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What is kept of a run. before, after: its Evaluations, or None. about: how it was run."""
    found: dict[str, Any] = {"version": VERSION, "cell": cell.label, "kind": cell.kind, **about}
    found |= {"budget_seconds": cell.seconds, "settings": dict(cell.settings), "recipe": dict(cell.recipe)}
    found |= {key: value for key, value in summary.items() if key not in ("recipe", "gain")}
    if after is not None:
        found["gain"] = _gain(before, after)
        found["problems"] = _problems(before, after)
    found["curve"] = _curve(metrics)
    plain: dict[str, Any] = finite(found)
    return plain


def finite(value: Any) -> Any:
    """JSON values with null for every number that JSON has no word for."""
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _gain(before: Any, after: Any) -> list[dict[str, Any]]:
    if before is None:
        rows = after.rows()
        count = len(after.problems)
        everything = sum(after.accuracies) / count
        made = [{"difficulty": r["difficulty"], "problems": r["problems"], "after": r["accuracy"]} for r in rows]
        return [*made, {"difficulty": "all", "problems": count, "after": everything}]
    from rlad.evaluation.run import compare

    return compare(before, after)


def _problems(before: Any, after: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "digest": digest([problem.problem for problem in after.problems]),
        "samples": min(len(problem.correct) for problem in after.problems),
        "difficulty": [problem.difficulty for problem in after.problems],
    }
    for name, result in (("before", before), ("after", after)):
        if result is not None:
            found[name] = [sum(problem.correct) for problem in result.problems]
    return found


def _curve(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Column by column, five digits each."""
    columns = [name for name in KEPT if any(isinstance(row.get(name), (int, float)) for row in metrics)]
    curve: dict[str, list[Any]] = {"step": [row["step"] for row in metrics]}
    curve["seconds"] = [round(seconds, 2) for seconds in seconds_of_steps(metrics)]
    for name in columns:
        curve[name] = [_short(row.get(name)) for row in metrics]
    return curve


def seconds_of_steps(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of training at each row of a metrics.jsonl: its steps' own, so that an interruption is none of them.

    A row that stands for several steps (logging_steps) has the mean of their seconds. TRL's supervised trainer gives
    none, and the time between two rows takes their place.
    """
    found: list[float] = []
    total, step, when = 0.0, 0, None
    for row in rows:
        mean = row.get("step_time")
        if mean is not None:
            total += mean * (row["step"] - step)
        elif when is not None:
            total += row["time"] - when
        step, when = row["step"], row.get("time")
        found.append(total)
    return found


def _short(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return float(f"{value:.5g}") if known else None
