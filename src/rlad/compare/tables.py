"""The numbers of a study (numbers.py) as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlad.compare.numbers import (
    PARTS,
    REST,
    TOKENS,
    Group,
    Interval,
    accuracy_rows,
    paired_rows,
    pass_rows,
    seconds_rows,
    token_rows,
)
from rlad.compare.study import shown

SAID = {"ours": "advantages and objective"}


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
        body = [[row["label"], str(row["steps"]), *(_ends(name, row[name]) for name in TOKENS)] for row in rows]
        head = "Tokens, means over the first and over the last quarter of the steps, all seeds together:"
        parts.append(f"{head}\n\n" + table(["", "steps", *TOKENS], body))
    if rows := seconds_rows(groups):
        parts.append(_seconds_table(rows))
    return "\n\n".join(parts)


def _sweep_table(sweeps: Sequence[Mapping[str, Any]]) -> str:
    def rate(value: float | None) -> str:
        return "-" if value is None else percent(value)

    body = [
        [row["label"], shown(row["point"]), "missing" if row["accuracy"] is None else percent(row["accuracy"]),
         rate(row["training"]), "chosen" if row["chosen"] else ""]
        for row in sweeps
    ]  # fmt: skip
    head = ["", "tried", "accuracy", "training, second half", ""]
    return "Sweeps (validation split, one seed):\n\n" + table(head, body)


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
    head = ["", "seeds", "by seed", "training, by seed"]
    problems = any(row["by_problem"] is not None for row in rows)
    body = []
    for row in rows:
        training = "-" if row["training"] is None else points(row["training"])
        by_seed = "-" if row["by_seed"] is None else points(row["by_seed"])
        line = [row["label"], str(row["seeds"]), by_seed, training]
        if problems and row["by_problem"] is None:
            line += ["-", "-", "-", "-"]
        elif problems:
            seeds = "" if row["problem_seeds"] == row["seeds"] else f" ({row['problem_seeds']} of the seeds)"
            line += [f"{row['problems']}{seeds}", points(row["by_problem"]), p(row["p_value"]), p(row["p_holm"])]
        body.append(line)
    if problems:
        head += ["problems", "by problem", "p", "p, Holm"]
    text = f"Minus {baseline}, in points with their 95 % interval:\n\n" + table(head, body)
    if apart := [f"{row['label']} ({row['apart']})" for row in rows if row["apart"]]:
        text += (
            f"\n\nSeeds left out, because they were evaluated on other problems than {baseline}: {', '.join(apart)}."
        )
    return text


def _pass_table(rows: Sequence[Mapping[str, Any]]) -> str:
    ks = sorted({k for row in rows for k in row["pass_at"]})
    body = [
        [row["label"], str(row["seeds"]), str(row["problems"]), *(_with_interval(row["pass_at"].get(k)) for k in ks)]
        for row in rows
    ]
    return "Pass@k, means over seeds with their 95 % interval:\n\n" + table(
        ["", "seeds", "problems", *(f"pass@{k}" for k in ks)], body
    )


def _seconds_table(rows: Sequence[Mapping[str, Any]]) -> str:
    seen = [name for name in (*PARTS, REST) if any(row[name] >= 0.005 for row in rows)]
    body = []
    for row in rows:
        middle, low, high = row["step"]
        line = [row["label"], str(row["generations"]), f"{middle:.2f} ({low:.2f} to {high:.2f})"]
        body.append([*line, *(f"{row[name]:.2f}" for name in seen)])
    head = ["", "n", "step (quartiles)", *(SAID.get(name, name) for name in seen)]
    hidden = ", ".join(SAID.get(name, name) for name in (*PARTS, REST) if name not in seen)
    return (
        "Seconds of a step, medians over generations and seeds, each run's first left out"
        + (f" (under 0.005 in every row: {hidden})" if hidden else "")
        + ":\n\n"
        + table(head, body)
    )


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. A cell may say anything: what would end it is escaped."""
    lines = [[" ".join(cell.replace("|", "\\|").split("\n")) for cell in line] for line in (head, *body)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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


def _ends(name: str, values: Sequence[float | None]) -> str:
    """`0.30 % -> 0.15 %`."""
    first, last = (_token(name, value) for value in values)
    return first if first == last else f"{first} -> {last}"


def _token(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "response tokens":
        return f"{value:.0f}"
    return f"{100 * value:.2f} %" if name.startswith("cl") else f"{value:.3f}"
