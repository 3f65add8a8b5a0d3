"""Two evaluations of the same problems, in pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlad.errors import RladError
from rlad.evaluation.metrics import average_interval, paired_difference, sign_flip_p_value
from rlad.evaluation.problems import keys
from rlad.evaluation.results import ALL, AVERAGE, Evaluation, Problem, aligned, by_difficulty, percent

# What makes two numbers comparable. The seed is none of it, nor is the batch size.
COMPARED = (
    "samples temperature top_p max_new_tokens prompt_format append chat_template_kwargs backend split task".split()
)
Pair = tuple[Problem, Problem]


def compare(before: Evaluation, after: Evaluation) -> list[dict[str, Any]]:
    """After minus before in accuracy, over the same problems, whatever their order: one row for each difficulty, and
    where there are several, one for their average with equal weights and, last, one for all problems.

    A row has difficulty, problems, before, after, difference, low, high (its 95 % interval, by Student's t on the
    differences) and p_value (`sign_flip_p_value`). Raises RladError where the two are not of the same problems.
    """
    groups = _pairs(before, after)
    rows = [_row(name, pairs) for name, pairs in groups.items()]
    if len(rows) > 1:
        average = _average_row(rows, list(groups.values()))
        rows += [average, _row(ALL, [pair for pairs in groups.values() for pair in pairs])]
    return rows


def comparison_table(difficulty_name: str, rows: Sequence[Mapping[str, Any]], against: str) -> str:
    """The rows of `compare` as text. against: what `before` is called."""
    lines = [[difficulty_name, "problems", against, "this", "difference", "95 % interval", "p"]]
    for row in rows:
        p = "< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}"
        difference, low, high = (f"{100 * row[name]:+.1f}" for name in ("difference", "low", "high"))
        accuracies = (percent(row["before"]), percent(row["after"]))
        lines.append([row["difficulty"], str(row["problems"]), *accuracies, difference, f"{low} to {high}", p])
    return aligned(lines)


def differing_settings(before: Evaluation, after: Evaluation) -> list[str]:
    """What was not the same in both, as "top_p: 0.95 and 1.0"; settings that one of them does not know are left out."""
    first, second = before.settings, after.settings
    return [
        f"{name}: {first[name]} and {second[name]}"
        for name in COMPARED
        if name in first and name in second and first[name] != second[name]
    ]


def check_same_problems(before: Sequence[str], after: Sequence[str]) -> None:
    """Raises RladError where these are not the ids of the same problems, in whatever order; ids alone are enough, so
    that it can be known before there is any response."""
    first, second = set(keys(before)), set(keys(after))
    shared = first & second
    if len(shared) < max(len(first), len(second)):
        raise RladError(
            "these two evaluations are not of the same problems, so they cannot be compared in pairs: "
            f"of {len(first)} and {len(second)}, {len(shared)} are shared; evaluate both with the same task, split "
            "and number of problems"
        )


def _pairs(before: Evaluation, after: Evaluation) -> dict[str, list[Pair]]:
    ids, others = ([problem.problem for problem in each.problems] for each in (before, after))
    check_same_problems(ids, others)
    first = dict(zip(keys(ids), before.problems, strict=True))
    second = dict(zip(keys(others), after.problems, strict=True))
    groups: dict[str, list[Pair]] = {name: [] for name in by_difficulty(after.problems)}
    for key, problem in second.items():
        groups[problem.difficulty].append((first[key], problem))
    return groups


def _row(name: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    first, second = [pair[0].accuracy for pair in pairs], [pair[1].accuracy for pair in pairs]
    difference, low, high = paired_difference(first, second)
    return {
        "difficulty": name,
        "problems": len(pairs),
        "before": math.fsum(first) / len(pairs),
        "after": math.fsum(second) / len(pairs),
        "difference": difference,
        "low": max(low, -1.0),
        "high": min(high, 1.0),
        "p_value": sign_flip_p_value(_differences(pairs)),
    }


def _average_row(rows: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    difference, low, high = average_interval([(row["difference"], row["low"], row["high"]) for row in rows])
    # A problem weighs as much as it does in the average: 1 / (groups * problems of its group).
    weighted = [each / len(pairs) for pairs in groups for each in _differences(pairs)]
    return {
        "difficulty": AVERAGE,
        "problems": sum(row["problems"] for row in rows),
        "before": math.fsum(row["before"] for row in rows) / len(rows),
        "after": math.fsum(row["after"] for row in rows) / len(rows),
        "difference": difference,
        "low": max(low, -1.0),
        "high": min(high, 1.0),
        "p_value": sign_flip_p_value(weighted),
    }


def _differences(pairs: Sequence[Pair]) -> list[float]:
    return [after.accuracy - before.accuracy for before, after in pairs]
