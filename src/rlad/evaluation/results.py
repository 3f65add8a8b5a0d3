"""What an evaluation found: each problem, the table with its intervals, and the file it is kept in."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rlad.errors import RladError
from rlad.evaluation.metrics import accuracy_interval, average_interval, mean_at_k, pass_at_k
from rlad.files import whole_file
from rlad.report.tokens import on_one_line

VERSION = 2  # 1 had no formats; it is still read
AVERAGE, ALL = "average", "all"  # rows that sum up the others; ALL is also where examples have no difficulty
COLUMNS = (  # of response records: what numbers are made of
    "task problem order difficulty sample tokens truncated value correct extracted format_ok".split()
)


@dataclass(frozen=True)
class Problem:
    """What a model did on one problem; the lists have one entry per sample.

    problem: a hash of the prompt. difficulty: the row of the table that it counts in. values, correct, extracted,
    format_ok: from the task's Score. tokens, truncated: from generation; None where responses made elsewhere do not
    say. responses: empty where they are kept as records.
    """

    problem: str
    difficulty: str
    values: list[float]
    correct: list[bool]
    tokens: list[int | None]
    truncated: list[bool | None]
    extracted: list[str | None]
    responses: list[str]
    format_ok: list[bool | None] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """The share of its samples that are correct (mean@k)."""
        return mean_at_k(self.correct)


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation. settings: how it was made, to be kept with the numbers; `pass_at` among them, where it is
    there, lists the k of the pass@k that the table shows."""

    task: str
    difficulty_name: str
    settings: dict[str, Any]
    problems: list[Problem]

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]], task: str, difficulty_name: str, settings: Mapping[str, Any]
    ) -> Evaluation:
        """The evaluation that response records hold, in whatever order they come. See COLUMNS."""
        problems: dict[int, list[Mapping[str, Any]]] = {}
        for row in rows:
            problems.setdefault(row["order"], []).append(row)
        made = [_problem(sorted(problems[order], key=lambda row: row["sample"])) for order in sorted(problems)]
        return cls(task, difficulty_name, dict(settings), made)

    @property
    def accuracies(self) -> list[float]:
        """Accuracy of each problem, in order: what paired differences are taken of."""
        return [problem.accuracy for problem in self.problems]

    @property
    def samples(self) -> int:
        """The fewest responses that a problem has."""
        return min((len(problem.correct) for problem in self.problems), default=0)

    @property
    def pass_at(self) -> list[int]:
        """The k of the pass@k that are shown: those of the settings, or the number of samples."""
        chosen = self.settings.get("pass_at")
        return list(chosen) if chosen else [self.samples]

    def with_pass_at(self, ks: Sequence[int]) -> Evaluation:
        """The same, showing pass@k for these k. Raises RladError where there are too few samples for one of them."""
        check_pass_at(ks, self.samples)
        return replace(self, settings={**self.settings, "pass_at": sorted(set(ks))})

    def rows(self) -> list[dict[str, Any]]:
        """One row for each difficulty, and their average with equal weights; rates with their 95 % interval.

        tokens, truncated and format_ok are None where nothing is known of them.
        """
        shown, samples = self.pass_at, self.samples
        rows = [_row(name, problems, shown, samples) for name, problems in by_difficulty(self.problems).items()]
        if len(rows) > 1:
            rows.append(_average_row(rows))
        return rows

    def table(self) -> str:
        """The rows as text, ready to be printed."""
        rows, samples = self.rows(), self.samples
        shown = [k for k in self.pass_at if k > 1]
        head = [self.difficulty_name, "problems", "accuracy" if samples == 1 else f"mean@{samples}", "95 % interval"]
        head += [cell for k in shown for cell in (f"pass@{k}", "95 % interval")]
        lines = [[*head, "reward", "tokens", "cut off", "format"]]
        for row in rows:
            line = [row["difficulty"], str(row["problems"]), percent(row["accuracy"]), _range(row["low"], row["high"])]
            for k in map(str, shown):
                line += [percent(row["pass_at"][k]), _range(*row["pass_at_intervals"][k])]
            tokens = "-" if row["tokens"] is None else f"{row['tokens']:.0f}"
            lines.append([*line, f"{row['reward']:.3f}", tokens, percent(row["truncated"]), percent(row["format_ok"])])
        return aligned(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "version": VERSION,
            "task": self.task,
            "difficulty_name": self.difficulty_name,
            "settings": self.settings,
            "summary": self.rows(),
            "problems": [asdict(problem) for problem in self.problems],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json()` to a file, which is there in full or not at all. Makes its folder."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Read what `save` wrote, in this version or an earlier one. Raises RladError for a file that is something
        else."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found["version"] not in range(1, VERSION + 1):
                raise RladError(
                    f"{path} is an evaluation of version {found['version']}; this rlad reads up to version {VERSION}"
                )
            problems = [_checked(Problem(**problem)) for problem in found["problems"]]
            task, difficulty_name, settings = found["task"], found["difficulty_name"], found["settings"]
            if not (isinstance(task, str) and isinstance(difficulty_name, str) and isinstance(settings, dict)):
                raise TypeError("task and difficulty_name must be texts, and settings a mapping")
            return cls(task, difficulty_name, settings, problems)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise RladError(f"{path} is not a result of rlad evaluate: {type(error).__name__}: {error}") from None


def load_run(path: str | os.PathLike[str]) -> Evaluation:
    """An evaluation from its JSON file, or from its records: a Parquet file or a folder of parts.

    Raises RladError where it is neither, or the records are not those of one evaluation, each of them once.
    """
    target = Path(path)
    if not target.exists():
        raise RladError(f"there is no evaluation at {path}: neither a result in JSON nor a folder of records")
    if not target.is_dir() and target.suffix != ".parquet":
        return Evaluation.load(target)
    from rlad.evaluation.identity import check_whole, kept_identity
    from rlad.records import read_about, read_rows

    about = read_about(target)
    kept_identity(target)
    rows = list(read_rows(target, "response", COLUMNS))
    check_whole(rows, about.get("responses", max(len(rows), 1)), path)
    settings = about.get("settings", {})
    return Evaluation.from_rows(rows, rows[0]["task"], about.get("difficulty_name", "difficulty"), settings)


def check_pass_at(ks: Sequence[int], samples: int) -> None:
    """Raises RladError where pass@k cannot be estimated from so many samples."""
    bad = [k for k in ks if k < 1]
    if bad:
        raise RladError(f"pass@k needs k from 1 on, not {bad[0]}")
    if ks and max(ks) > samples:
        raise RladError(f"pass@{max(ks)} needs at least {max(ks)} samples of each problem, not {samples}")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON to a file, which is there in full or not at all (`rlad.files.whole_file`)."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with whole_file(path) as file:
        file.write(text.encode())


def by_difficulty(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    """The problems of each difficulty: numbers in their order, and before words."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.difficulty, []).append(problem)
    return dict(
        sorted(
            groups.items(),
            key=lambda item: (not item[0].isdecimal(), int(item[0]) if item[0].isdecimal() else 0, item[0]),
        )
    )


# What the lists of a Problem hold, None apart where the class says so.
_KINDS: dict[str, tuple[type, ...]] = {
    "correct": (bool,),
    "values": (int, float),
    "tokens": (int, type(None)),
    "truncated": (bool, type(None)),
    "extracted": (str, type(None)),
    "format_ok": (bool, type(None)),
}


def _checked(problem: Problem) -> Problem:
    """A problem as it was read. Raises TypeError where it is none; format_ok and responses may be empty."""
    if not isinstance(problem.problem, str) or not isinstance(problem.difficulty, str):
        raise TypeError("problem and difficulty must be texts")
    for name, kinds in _KINDS.items():
        values = getattr(problem, name)
        if not isinstance(values, list) or not all(isinstance(value, kinds) for value in values):
            raise TypeError(
                f"{name} must be a list of {' or '.join(kind.__name__ for kind in kinds)}, not {values!r:.80}"
            )
        if len(values) != len(problem.correct) and (values or name != "format_ok"):
            raise TypeError(f"{name} has {len(values)} entries for {len(problem.correct)} responses")
    if not problem.correct:
        raise TypeError("a problem must have a response")
    return problem


def _problem(rows: Sequence[Mapping[str, Any]]) -> Problem:
    def column(name: str) -> list[Any]:
        return [row[name] for row in rows]

    return Problem(
        problem=rows[0]["problem"],
        difficulty=rows[0]["difficulty"],
        values=column("value"),
        correct=column("correct"),
        tokens=column("tokens"),
        truncated=column("truncated"),
        extracted=column("extracted"),
        responses=column("response") if "response" in rows[0] else [],
        format_ok=column("format_ok"),
    )


def _row(name: str, problems: Sequence[Problem], shown: Sequence[int], samples: int) -> dict[str, Any]:
    accuracy, low, high = accuracy_interval([problem.accuracy for problem in problems])
    ks = sorted({1 << i for i in range(samples.bit_length())} | {samples} | set(shown))
    passed = {k: [pass_at_k(len(each.correct), sum(each.correct), k) for each in problems] for k in ks}
    return {
        "difficulty": name,
        "problems": len(problems),
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "pass_at": {str(k): math.fsum(values) / len(values) for k, values in passed.items()},
        "pass_at_intervals": {str(k): list(accuracy_interval(passed[k])[1:]) for k in shown},
        "reward": _mean(_mean(problem.values) for problem in problems),  # over problems, as the accuracy is
        "tokens": _mean(tokens for problem in problems for tokens in problem.tokens),
        "truncated": _mean(cut for problem in problems for cut in problem.truncated),
        "format_ok": _mean(ok for problem in problems for ok in problem.format_ok),
    }


def _average_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    accuracy, low, high = average_interval([(row["accuracy"], row["low"], row["high"]) for row in rows])
    intervals = {
        k: list(average_interval([(row["pass_at"][k], *row["pass_at_intervals"][k]) for row in rows])[1:])
        for k in rows[0]["pass_at_intervals"]
    }
    rates = ("reward", "tokens", "truncated", "format_ok")
    return {
        "difficulty": AVERAGE,
        "problems": sum(row["problems"] for row in rows),
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "pass_at": {k: _mean(row["pass_at"][k] for row in rows) for k in rows[0]["pass_at"]},
        "pass_at_intervals": intervals,
        **{name: _mean_of_all([row[name] for row in rows]) for name in rates},
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """None where one is None: of some rows alone it would be another average than that of the accuracies beside it."""
    return None if None in values else _mean(values)


def percent(share: float | None) -> str:
    """A share as a table shows it."""
    return "-" if share is None else f"{100 * share:.1f} %"


def _range(low: float, high: float) -> str:
    return f"{percent(low)} to {percent(high)}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text, in columns that end together, without what a terminal would obey: names are from data."""
    lines = [[on_one_line(cell) for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
