"""What each recorded token contributed to its update, and what it would have under GRPO: by the code that trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from rlad.objectives import Method


def method_of(options: Mapping[str, Any] | None) -> Method | None:
    """The method that a record names; None where this rlad does not know it, or it is a schedule."""
    from rlad.objectives import METHODS

    try:
        values = dict(options or {})
        return METHODS[values.pop("name")](**values)
    except (KeyError, TypeError, ValueError):
        return None


def group_contributions(rows: Sequence[Mapping[str, Any]], method: Method) -> list[dict[str, np.ndarray]]:
    """For each rollout of a group, arrays over its tokens; NaN where a token does not count.

    contribution: the derivative of the token's objective by log pi, before the denominator (`weight` of its record):
        A r where nothing is clipped, 0 where something is, times alpha where the clamp is active and literal.
    changed: the same minus GRPO's, with the same signals and clip range.
    advantage: A as the method uses it. log_ratio: log r, computed again, to be compared with the recorded one.
    """
    import torch

    from rlad.objectives import GRPO, objective_terms, token_signals

    width = max((len(row["tokens"]) for row in rows), default=0)
    lengths = [len(row["tokens"]) for row in rows]

    def padded(name: str, missing: float = 0.0) -> torch.Tensor:
        values = torch.full((len(rows), width), missing, dtype=torch.float64)
        for place, row in enumerate(rows):
            values[place, : len(row[name])] = torch.tensor(row[name], dtype=torch.float64)
        return values

    mask = padded("mask").bool()
    logps, old = padded("logps").nan_to_num(), padded("old_logps").nan_to_num()
    teacher = None if any(row["teacher_logps"] is None for row in rows) else padded("teacher_logps", float("nan"))
    usable = None if teacher is None else torch.isfinite(teacher)
    advantages = torch.tensor([row["advantage"] for row in rows], dtype=torch.float64)
    right = torch.tensor([bool(row["correct"]) for row in rows])
    wrong = torch.full_like(right, not bool(right.any()))
    found: dict[str, torch.Tensor] = {}
    for which in (method, GRPO(clip_low=method.clip_low, clip_high=method.clip_high)):
        student = logps.clone().requires_grad_()
        signals = token_signals(
            student, old, teacher, advantages, mask, teacher_ok=usable, correct=right, group_wrong=wrong
        )
        terms = objective_terms(which, signals)
        (slope,) = torch.autograd.grad(terms.objective.sum(), student)
        if which is method:
            found |= {"contribution": slope, "advantage": terms.advantage, "log_ratio": terms.log_ratio}
        else:
            found["changed"] = found["contribution"] - slope
    return [
        {name: torch.where(mask, values, torch.nan)[place, :length].numpy() for name, values in found.items()}
        for place, length in enumerate(lengths)
    ]
