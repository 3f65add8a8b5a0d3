"""What finished cells say, as numbers: means with intervals over seeds, paired tests, Pass@k, tokens, seconds by part.

Each `*_rows` gives plain data, a row a group; tables.py, charts.py and report.json show them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from rlad.compare.cells import Finished
from rlad.compare.identity import digest, evaluated_by
from rlad.compare.study import shown
from rlad.errors import RladError
from rlad.evaluation.metrics import mean_interval, paired_difference, pass_at_k, sign_flip_p_value

BEFORE = "before training"
PARTS = ("generation", "rewards", "teacher", "ours", "recorder")
REST = "forward and backward"
TOKENS = {  # column: metric
    "clipped above": "rlad/clip_high",
    "clipped below": "rlad/clip_low",
    "clamped": "rlad/clamped",
    "log T - log S": "rlad/student_minus_teacher",
    "entropy": "entropy",
    "response tokens": "completions/mean_length",
}
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Group:
    """A row of the tables. cells: its finished ones, one a seed, in the order of seeds. wanted: how many it needs.

    family: the name that the rows of one grid share. grid: its place there.
    """

    label: str
    cells: Sequence[Finished]
    wanted: int
    chosen: Mapping[str, Any]
    family: str = ""
    grid: Mapping[str, Any] = field(default_factory=dict)

    def values(self, when: str, difficulty: str | None = None) -> list[float]:
        """Accuracy of each seed that has it."""
        found = (cell.accuracy(when, difficulty) for cell in self.cells)
        return [value for value in found if value is not None]

    def training(self) -> list[float]:
        """Training accuracy of each seed that has it."""
        return [value for cell in self.cells if (value := training_accuracy(cell)) is not None]

    @property
    def name(self) -> str:
        """With the point that a sweep chose."""
        return " ".join(filter(None, (self.label, shown(self.chosen))))


def numeric_grid(group: Group) -> tuple[str, str, float] | None:
    """(family, key, value) of a row that one number tells from the others of its grid."""
    values = list(group.grid.items())
    if len(values) != 1 or not isinstance(values[0][1], (int, float)) or isinstance(values[0][1], bool):
        return None
    return group.family, values[0][0], float(values[0][1])


def training_accuracy(cell: Finished) -> float | None:
    """The mean accuracy of the rollouts over the second half of the steps.

    A problem is answered before it is trained on, so where none comes twice this is of new problems too, and of as many
    students as there are steps: it does not hang on the one with which a run happens to end.
    """
    known = [row["accuracy"] for row in cell.curve if row.get("accuracy") is not None]
    half = known[len(known) // 2 :]
    return math.fsum(half) / len(half) if half else None


def accuracy_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row a group, and first the students before training (`students`): the mean over seeds of the accuracy on all
    problems and of each difficulty, as (mean, low, high), n seeds; the gain over the student's own accuracy before,
    seed by seed; training: of `training_accuracy`."""
    rows = [_before(label, cells) for label, cells in students(groups)]
    for group in groups:
        after = group.values("after")
        if not after:
            continue
        gains = [
            last - first
            for cell in group.cells
            if (first := cell.accuracy("before")) is not None and (last := cell.accuracy("after")) is not None
        ]
        rows.append(
            {
                "label": group.name,
                "seeds": len(after),
                "wanted": group.wanted,
                "accuracy": mean_interval(after),
                "gain": mean_interval(gains) if gains else None,
                "training": mean_interval(training) if (training := group.training()) else None,
                "by_difficulty": _by_difficulty(group.cells, "after"),
            }
        )
    return rows


def students(groups: Sequence[Group]) -> list[tuple[str, list[Finished]]]:
    """(label, a cell a seed) of each student before training; cells that know their problems are preferred.

    All cells of a seed begin with the same one, unless the study varies the model, or what it is asked: then there are
    several, and each label says by what they differ.
    """
    found: dict[str, dict[int, Finished]] = {}
    asked: dict[str, dict[str, Any]] = {}
    for cell in (cell for group in groups for cell in group.cells):
        if cell.accuracy("before") is None:
            continue
        question = _asked(cell)
        name = digest(question)
        asked[name] = _flat(question)
        by_seed = found.setdefault(name, {})
        known = by_seed.get(cell.seed)
        if known is None or (known.problems is None and cell.problems is not None):
            by_seed[cell.seed] = cell
    keys = dict.fromkeys(key for each in asked.values() for key in each)
    varied = [key for key in keys if len({digest(each.get(key)) for each in asked.values()}) > 1]
    made = []
    for name, by_seed in found.items():
        differs = [f"{key}={asked[name][key]}" for key in varied if key in asked[name]]
        made.append((" ".join([BEFORE, *differs]), [by_seed[seed] for seed in sorted(by_seed)]))
    return made


def measured_twice(groups: Sequence[Group]) -> list[int]:
    """Seeds of which two cells asked one student the same before training and do not agree: they were evaluated by
    different versions."""
    found: dict[tuple[int, str], set[float]] = {}
    for cell in (cell for group in groups for cell in group.cells):
        if (value := cell.accuracy("before")) is not None:
            found.setdefault((cell.seed, digest(_asked(cell))), set()).add(round(value, 6))
    return sorted({seed for (seed, _), values in found.items() if len(values) > 1})


def _asked(cell: Finished) -> dict[str, Any]:
    """Which student, and what, beside the seed: two cells of a seed must agree on it where this is equal."""
    try:
        found = evaluated_by(cell.identity)
    except (RladError, KeyError):  # of a version whose recipes say other things
        found = {key: cell.data["recipe"].get(key) for key in ("model", "task", "evaluate")}
    return {key: value for key, value in found.items() if key != "seed"}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names in the place of mappings in mappings."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _before(label: str, cells: Sequence[Finished]) -> dict[str, Any]:
    values = [value for cell in cells if (value := cell.accuracy("before")) is not None]
    return {
        "label": label,
        "seeds": len(cells),
        "wanted": len(cells),
        "accuracy": mean_interval(values),
        "gain": None,
        "training": None,
        "by_difficulty": _by_difficulty(cells, "before"),
    }


def _by_difficulty(cells: Sequence[Finished], when: str) -> dict[str, Interval]:
    names = list(dict.fromkeys(name for cell in cells for name in cell.difficulties))
    found = {name: [v for cell in cells if (v := cell.accuracy(when, name)) is not None] for name in names}
    return {name: mean_interval(values) for name, values in found.items() if values}


def paired_rows(groups: Sequence[Group], baseline: str) -> list[dict[str, Any]]:
    """Each group minus the baseline in accuracy, in two pairings. None where there is nothing to pair.

    by_seed: the difference of each of `seeds` that both have, evaluated on the same problems (Student's t): would
    another training come out so? training: the same of `training_accuracy`. by_problem: the difference of each of
    `problems`, its mean over those `problem_seeds` that know their problems (Student's t, and the sign-flip test, with
    Holm's correction over the rows): do these models differ on other problems? apart: how many seeds both have, but on
    other problems.
    """
    base = next(group for group in groups if group.label == baseline)
    rows = []
    for group in groups:
        both = _pairs(base, group)
        if group.label == baseline or not both or group.cells[0].kind == "evaluate":
            continue  # a teacher is no method
        pairs = [pair for pair in both if _same_problems(*pair)]
        row: dict[str, Any] = {"label": group.name, "seeds": len(pairs), "apart": len(both) - len(pairs)}
        row["by_seed"] = _by_seed([(one.accuracy("after"), other.accuracy("after")) for one, other in pairs])
        row["training"] = _by_seed([(training_accuracy(one), training_accuracy(other)) for one, other in pairs])
        row |= {"problems": 0, "problem_seeds": 0, "by_problem": None, "p_value": None, "p_holm": None}
        if alike := _of_one_digest(pairs):
            first, second = (_mean_by_problem([pair[i] for pair in alike]) for i in (0, 1))
            row |= {"problems": len(first), "problem_seeds": len(alike), "by_problem": paired_difference(first, second)}
            row["p_value"] = sign_flip_p_value([b - a for a, b in zip(first, second, strict=True)])
        rows.append(row)
    tested = [row for row in rows if row["p_value"] is not None]
    for row, corrected in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
        row["p_holm"] = corrected
    return rows


def _pairs(base: Group, group: Group) -> list[tuple[Finished, Finished]]:
    """Cells of the same seed that were evaluated."""
    ours = {cell.seed: cell for cell in base.cells if cell.accuracy("after") is not None}
    return [(ours[c.seed], c) for c in group.cells if c.seed in ours and c.accuracy("after") is not None]


def _same_problems(one: Finished, other: Finished) -> bool:
    """Whether two cells were evaluated on the same: by their problems, or by their recipes where one knows none."""
    if one.problems is not None and other.problems is not None:
        return bool(one.problems["digest"] == other.problems["digest"])
    ours, theirs = _asked(one), _asked(other)
    return all(ours[key] == theirs[key] for key in ("task", "evaluate"))


def _by_seed(values: Sequence[tuple[float | None, float | None]]) -> Interval | None:
    """The mean difference of the pairs that are known. Over seeds nothing bounds what another would bring: no interval
    where all are equal, unlike of problems."""
    known = [other - one for one, other in values if one is not None and other is not None]
    return mean_interval(known) if known else None


def _of_one_digest(pairs: Sequence[tuple[Finished, Finished]]) -> list[tuple[Finished, Finished]]:
    """The pairs that know what was right, and of the same problems: the largest set of them."""
    found: dict[str, list[tuple[Finished, Finished]]] = {}
    for pair in pairs:
        digests = {None if cell.problems is None else cell.problems["digest"] for cell in pair}
        if len(digests) == 1 and (name := digests.pop()) is not None:
            found.setdefault(name, []).append(pair)
    return max(found.values(), key=len, default=[])


def _mean_by_problem(cells: Sequence[Finished]) -> list[float]:
    """Accuracy of each problem, its mean over cells."""
    shares = [[right / each["samples"] for right in each["after"]] for cell in cells if (each := cell.problems)]
    return [math.fsum(values) / len(values) for values in zip(*shares, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of m times m - k + 1, never falling, at most 1."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - place)))
        corrected[i] = highest
    return corrected


def pass_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Pass@k for k = 1, 2, 4, ... and the number of samples, as (mean, low, high) over seeds: of the student, and of
    each group whose cells have more than one sample."""
    rows = []
    named = [(label, "before", cells) for label, cells in students(groups)]
    named += [(group.name, "after", list(group.cells)) for group in groups]
    for label, when, cells in named:
        found = [each for cell in cells if (each := cell.problems) is not None and when in each]
        samples = min((each["samples"] for each in found), default=0)
        if samples < 2:
            continue
        ks = sorted({1 << i for i in range(samples.bit_length())} | {samples})
        passed = {
            k: mean_interval(
                [
                    math.fsum(pass_at_k(each["samples"], right, k) for right in each[when]) / len(each[when])
                    for each in found
                ]
            )
            for k in ks
            if k <= samples
        }
        rows.append({"label": label, "seeds": len(found), "problems": len(found[0][when]), "pass_at": passed})
    return rows


def token_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """What was logged of tokens (TOKENS) at both ends of training: (mean over the first quarter of the steps, mean over
    the last one), of all seeds together; None of what was not logged there."""
    rows = []
    for group in groups:
        curves = [cell.curve for cell in group.cells]
        ends = [[row for curve in curves for row in part(curve)] for part in (_first_quarter, _last_quarter)]
        row: dict[str, Any] = {
            column: tuple(_mean(each.get(metric) for each in steps) for steps in ends)
            for column, metric in TOKENS.items()
        }
        if all(value is None for pair in row.values() for value in pair):
            continue
        if not any(has_clamp(cell) for cell in group.cells):
            row["clamped"] = (None, None)
        row["log T - log S"] = tuple(None if value is None else -value for value in row["log T - log S"])
        rows.append({"label": group.name, "steps": sum(map(len, curves)), **row})
    return rows


def _first_quarter(curve: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """A quarter of the steps, and one at least."""
    return curve[: max(1, len(curve) // 4)]


def _last_quarter(curve: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return curve[-max(1, len(curve) // 4) :]


def has_clamp(cell: Finished) -> bool:
    """Whether its method clamps log S - log T at all."""
    from rlad.objectives import METHODS

    method = cell.data["recipe"].get("method") or {}
    options = {"name": method} if isinstance(method, str) else method
    default = getattr(METHODS.get(str(options.get("name"))), "teacher_clip", None)
    return options.get("teacher_clip", default) is not None


def seconds_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Seconds of a step by part: medians over generations and seeds. Each run's first generation warms up, and is left
    out.

    A generation is the steps from one with rollouts to the next: its mean, where num_iterations makes several of them.
    step: (median, lower and upper quartile). forward and backward: what is left of a step. Without the optimiser, which
    TRL does not time.
    """
    rows = []
    for group in groups:
        found = [each for cell in group.cells for each in _generations(cell.curve)[1:]]
        if not found:
            continue
        steps = [each["step"] for each in found]
        quartiles = (median(steps), *(quantiles(steps, n=4)[::2] if len(steps) > 1 else (steps[0], steps[0])))
        row: dict[str, Any] = {"label": group.name, "generations": len(found), "step": quartiles}
        rows.append(row | {part: median(each[part] for each in found) for part in (*PARTS, REST)})
    return rows


def _generations(curve: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Means of a step of each generation: of the whole, of each part, and of the rest."""
    made: list[list[tuple[int, Mapping[str, Any]]]] = []  # steps that a row stands for (logging_steps), and the row
    before = 0
    for row in curve:
        steps, before = row["step"] - before, row["step"]
        if row.get("step_time") is None:
            continue
        if row.get("rlad/seconds/generation") is not None:
            made.append([])
        if made:
            made[-1].append((steps, row))
    found = []
    for rows in made:
        total = sum(steps for steps, _ in rows)
        # A row has the sum of its steps' parts, and the mean of their whole (docs/trainer.md).
        each = {part: math.fsum(row.get(f"rlad/seconds/{part}") or 0.0 for _, row in rows) / total for part in PARTS}
        step = math.fsum(steps * row["step_time"] for steps, row in rows) / total
        found.append({**each, "step": step, REST: step - math.fsum(each.values())})
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
