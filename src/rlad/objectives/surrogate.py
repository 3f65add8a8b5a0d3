"""The clipped surrogate that all methods share, and the one entry the trainer calls.

Per token, to be maximised:  min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) - penalty     (RLAD Eq. 1)
A method says what rho, A and the penalty are; see methods.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .signals import TokenSignals

if TYPE_CHECKING:
    from .methods import Method

MAX_LOG_RATIO = 20.0
"""Nats. A ratio is held at e^20 (as verl does): exp must not overflow, because a clipped token's gradient is then
0 * inf = NaN. A token beyond it has no gradient."""


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) per token: (B, T), to be maximised (RLAD Eq. 1).

    `log_ratio` is log rho, (B, T), in nats; `advantages` is (B,) or (B, T). Its gradient is rho A times that of
    log_ratio, or 0 where the clipped branch is the smaller one: rho above 1 + clip_high with A > 0, or below
    1 - clip_low with A < 0. Where A = 0 value and gradient are exactly 0.
    Raises ValueError when clip_low is outside (0, 1] or clip_high is not above 0.
    """
    check_clip(clip_low, clip_high)
    advantages = _per_token(advantages, log_ratio)
    ratio = held_ratio(log_ratio)
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.min(ratio * advantages, clipped_ratio * advantages)


def clip_branches(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """Which tokens the clip stops, below (rho < 1 - clip_low, A < 0) and above (rho > 1 + clip_high, A > 0).

    Arguments as `clipped_surrogate`; two (B, T) bool tensors. A token that is not in either has its full gradient.
    """
    advantages = _per_token(advantages, log_ratio)
    ratio = held_ratio(log_ratio)
    return (ratio < 1 - clip_low) & (advantages < 0), (ratio > 1 + clip_high) & (advantages > 0)


@dataclass(frozen=True)
class ObjectiveTerms:
    """One batch under one method; all (B, T). Only `objective` carries a gradient. At masked positions all are 0.

    objective: to be maximised. log_ratio: log rho, nats. advantage: A as the method uses it.
    penalty: what was subtracted, or None. clipped_low, clipped_high: bool, see `clip_branches`.
    clamped: bool, where the method's clamp on log S - log T is active.
    """

    objective: Tensor
    log_ratio: Tensor
    advantage: Tensor
    penalty: Tensor | None
    clipped_low: Tensor
    clipped_high: Tensor
    clamped: Tensor


def objective_terms(method: Method, signals: TokenSignals) -> ObjectiveTerms:
    """The objective of each token under `method`, and the statistics that explain it.

    For a method with a schedule pass `method.at(progress)`. Raises ValueError when the method needs a teacher, or
    which rollouts are right, and the signals do not say; or when a schedule was not resolved.
    """
    log_ratio = method.log_ratio(signals)
    advantage = method.advantage(signals)
    penalty = method.penalty(signals)
    objective = clipped_surrogate(log_ratio, advantage, method.clip_low, method.clip_high)
    if penalty is not None:
        objective = objective - penalty
        penalty = penalty.detach()
    log_ratio = log_ratio.detach()
    clipped_low, clipped_high = clip_branches(log_ratio, advantage, method.clip_low, method.clip_high)
    return ObjectiveTerms(
        objective=objective,
        log_ratio=log_ratio,
        advantage=advantage,
        penalty=penalty,
        clipped_low=clipped_low,
        clipped_high=clipped_high,
        clamped=method.clamped(signals),
    )


def check_clip(clip_low: float, clip_high: float) -> None:
    """Refuse, with ValueError, an empty or impossible clip range."""
    if not 0 < clip_low <= 1:
        raise ValueError(f"clip_low is {clip_low}: choose it in (0, 1]; the ratio is held above 1 - clip_low")
    if not clip_high > 0:
        raise ValueError(f"clip_high is {clip_high}: choose it above 0; the ratio is held below 1 + clip_high")


def held_ratio(log_ratio: Tensor) -> Tensor:
    """rho: (B, T), at most e^MAX_LOG_RATIO."""
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def _per_token(advantages: Tensor, log_ratio: Tensor) -> Tensor:
    return advantages.unsqueeze(-1) if advantages.dim() == log_ratio.dim() - 1 else advantages
