"""What finished cells say: means with their interval over seeds, paired tests, Pass@k, seconds by part; as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlad.compare.cells import Finished
from rlad.compare.study import shown
from rlad.evaluation.metrics import mean_interval, paired_difference, pass_at_k, sign_flip_p_value

BEFORE = "before training"
PARTS = ("generation", "rewards", "teacher", "ours", "recorder")
TOKENS = {  # column: metric
    "clipped above": "rlad/clip_high",
    "clipped below": "rlad/clip_low",
    "clamped": "rlad/clamped",
    "log T - log S": "rlad/student_minus_teacher",
    "entropy": "entropy",
    "tokens": "completions/mean_length",
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


def training_accuracy(cell: Finished) -> float | None:
    """The mean accuracy of the rollouts over the second half of the steps.

    A problem is answered before it is trained on, so where none comes twice this is of new problems too, and of as many
    students as there are steps: it does not hang on the one with which a run happens to end.
    """
    known = [row["accuracy"] for row in cell.curve if row.get("accuracy") is not None]
    half = known[len(known) // 2 :]
    return math.fsum(half) / len(half) if half else None


def accuracy_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row a group, and first the student before training: the mean over seeds of the accuracy on all problems and
    of each difficulty, as (mean, low, high), n seeds; the gain over the student's own accuracy before, seed by seed;
    training: of `training_accuracy`."""
    student = _before(groups)
    rows = [] if student is None else [student]
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


def _before(groups: Sequence[Group]) -> dict[str, Any] | None:
    """The student, once a seed: every cell of a seed begins with the same one."""
    by_seed: dict[int, Finished] = {}
    for cell in (cell for group in groups for cell in group.cells):
        if cell.accuracy("before") is not None:
            by_seed.setdefault(cell.seed, cell)
    if not by_seed:
        return None
    cells = [by_seed[seed] for seed in sorted(by_seed)]
    values = [value for cell in cells if (value := cell.accuracy("before")) is not None]
    return {
        "label": BEFORE,
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
    """Each group minus the baseline in accuracy, in two pairings.

    seeds: the difference of each seed that both have (Student's t): would another training come out so? problems: the
    difference of each problem, its mean over those seeds (Student's t, and the sign-flip test, with Holm's correction
    over the rows): do these models differ on other problems? training: the difference of each seed in
    `training_accuracy`. None where there is nothing to pair.
    """
    base = next(group for group in groups if group.label == baseline)
    rows = []
    for group in groups:
        pairs = _pairs(base, group)
        if group.label == baseline or not pairs:
            continue
        ours, theirs = ([pair[i].accuracy("after") for pair in pairs] for i in (0, 1))
        row: dict[str, Any] = {"label": group.name, "seeds": len(pairs), "by_seed": None, "by_problem": None}
        row["by_seed"] = paired_difference([x or 0.0 for x in ours], [x or 0.0 for x in theirs])
        row |= {"problems": 0, "p_value": None, "p_holm": None, "training": None}
        training = [(training_accuracy(one), training_accuracy(other)) for one, other in pairs]
        known = [(one, other) for one, other in training if one is not None and other is not None]
        if known:
            row["training"] = paired_difference([one for one, _ in known], [other for _, other in known])
        if _same_problems(pairs):
            first, second = (_mean_by_problem([pair[i] for pair in pairs]) for i in (0, 1))
            row |= {"problems": len(first), "by_problem": paired_difference(first, second)}
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


def _same_problems(pairs: Sequence[tuple[Finished, Finished]]) -> bool:
    """Whether all cells know what was right, and of the same problems."""
    digests = {None if cell.problems is None else cell.problems["digest"] for pair in pairs for cell in pair}
    return len(digests) == 1 and None not in digests


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
    everyone = {cell.seed: cell for group in groups for cell in group.cells if "before" in (cell.problems or {})}
    named = [(BEFORE, "before", list(everyone.values()))] + [(g.name, "after", list(g.cells)) for g in groups]
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
    """Means over all steps and seeds of what was logged of tokens (TOKENS)."""
    rows = []
    for group in groups:
        steps = [row for cell in group.cells for row in cell.curve]
        means = {column: _mean(row.get(metric) for row in steps) for column, metric in TOKENS.items()}
        if any(value is not None for value in means.values()):
            if means["log T - log S"] is not None:
                means["log T - log S"] = -means["log T - log S"]
            rows.append({"label": group.name, "steps": len(steps), **means})
    return rows


def seconds_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Seconds of a step by part, means over the steps after the first (which warms up) and over seeds. update and the
    rest: forward, backward and the trainer's bookkeeping."""
    rows = []
    for group in groups:
        steps = [row for cell in group.cells for row in cell.curve[1:] if row.get("step_time") is not None]
        steps = [row for row in steps if row.get("rlad/seconds/generation") is not None]
        if not steps:
            continue
        row: dict[str, Any] = {"label": group.name, "steps": len(steps), "step": _mean(s["step_time"] for s in steps)}
        row |= {part: _mean((s.get(f"rlad/seconds/{part}") or 0.0) for s in steps) for part in PARTS}
        row["update and the rest"] = row["step"] - sum(row[part] for part in PARTS)
        rows.append(row)
    return rows


def markdown(groups: Sequence[Group], baseline: str, sweeps: Sequence[Mapping[str, Any]] = ()) -> str:
    """All tables that the cells have something for."""
    parts = [_sweep_table(sweeps)] if sweeps else []
    if rows := accuracy_rows(groups):
        parts += [_accuracy_table(rows), _difficulty_table(rows)]
        if paired := paired_rows(groups, baseline):
            parts.append(_paired_table(paired, next(g.name for g in groups if g.label == baseline)))
    if rows := pass_rows(groups):
        parts.append(_pass_table(rows))
    if rows := token_rows(groups):
        body = [[row["label"], str(row["steps"]), *(_token(name, row[name]) for name in TOKENS)] for row in rows]
        parts.append("Tokens, means over all steps and seeds:\n\n" + table(["", "steps", *TOKENS], body))
    if rows := seconds_rows(groups):
        names = ["step", *PARTS, "update and the rest"]
        body = [[row["label"], str(row["steps"]), *(f"{row[name]:.2f}" for name in names)] for row in rows]
        parts.append("Seconds of a step, means over steps and seeds, the first step left out:\n\n"
                     + table(["", "steps", *names], body))  # fmt: skip
    return "\n\n".join(parts)


def _sweep_table(sweeps: Sequence[Mapping[str, Any]]) -> str:
    body = [
        [row["label"], shown(row["point"]), "missing" if row["accuracy"] is None else percent(row["accuracy"]),
         "chosen" if row["chosen"] else ""]
        for row in sweeps
    ]  # fmt: skip
    return "Sweeps (validation split, one seed):\n\n" + table(["", "tried", "accuracy", ""], body)


def _accuracy_table(rows: Sequence[Mapping[str, Any]]) -> str:
    body = []
    for row in rows:
        seeds = str(row["seeds"]) if row["seeds"] == row["wanted"] else f"{row['seeds']} of {row['wanted']}"
        gain = "-" if row["gain"] is None else points(row["gain"])
        line = [row["label"], seeds, percent(row["accuracy"][0]), between(row["accuracy"]), gain]
        body.append([*line, _with_interval(row["training"])])
    head = ["", "seeds", "accuracy", "95 % interval over seeds", "gained, in points", "training, second half"]
    return "Accuracy on all problems, means over seeds (Student's t):\n\n" + table(head, body)


def _difficulty_table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row["by_difficulty"]))
    body = [[row["label"], *(_with_interval(row["by_difficulty"].get(name)) for name in names)] for row in rows]
    return "By difficulty, means over seeds with their 95 % interval:\n\n" + table(["", *names], body)


def _paired_table(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    body = []
    for row in rows:
        line = [row["label"], str(row["seeds"]), points(row["by_seed"])]
        if row["by_problem"] is None:
            line += ["-", "-", "-", "-"]
        else:
            line += [str(row["problems"]), points(row["by_problem"]), p(row["p_value"]), p(row["p_holm"])]
        body.append([*line, "-" if row["training"] is None else points(row["training"])])
    head = ["", "seeds", "by seed", "problems", "by problem", "p", "p, Holm", "training, by seed"]
    return f"Minus {baseline}, in points with their 95 % interval:\n\n" + table(head, body)


def _pass_table(rows: Sequence[Mapping[str, Any]]) -> str:
    ks = sorted({k for row in rows for k in row["pass_at"]})
    body = [
        [row["label"], str(row["seeds"]), str(row["problems"]), *(_with_interval(row["pass_at"].get(k)) for k in ks)]
        for row in rows
    ]
    return "Pass@k, means over seeds with their 95 % interval:\n\n" + table(
        ["", "seeds", "problems", *(f"pass@{k}" for k in ks)], body
    )


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))


def percent(share: float) -> str:
    """`52.4 %`."""
    return f"{100 * share:.1f} %"


def between(interval: Interval) -> str:
    """The limits as rates, held in [0, 1]; one seed says nothing of them."""
    if not math.isfinite(interval[1]):
        return "-"
    return f"{percent(max(interval[1], 0.0))} to {percent(min(interval[2], 1.0))}"


def points(interval: Interval) -> str:
    """A difference of rates in points."""
    mean, low, high = (100 * value for value in interval)
    return f"{mean:+.1f}" + (f" ({low:+.1f} to {high:+.1f})" if math.isfinite(low) else "")


def p(value: float) -> str:
    """A p-value."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _with_interval(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return percent(interval[0]) + (f" ({between(interval)})" if math.isfinite(interval[1]) else "")


def _token(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "tokens":
        return f"{value:.0f}"
    return percent(value) if name.startswith("cl") else f"{value:.3f}"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
