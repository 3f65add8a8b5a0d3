"""The objectives again, in plain Python, one token at a time: an oracle for the tests and a second text for readers.

No tensors and no autograd: each token function returns its objective and, derived by hand, the derivative of that
objective by log S. s, old, teacher: log S, log old, log T of the sampled token, in nats. No schedules, no batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Token = tuple[float, float]
"""(objective, d objective / d log S)."""


def surrogate(log_ratio: float, slope: float, advantage: float, clip_low: float, clip_high: float) -> Token:
    """min(rho A, clip(rho) A); `slope` is d log_ratio / d log S. Beyond e^20 the ratio stays put."""
    if log_ratio > 20:
        log_ratio, slope = 20.0, 0.0
    ratio = math.exp(log_ratio)
    held = min(max(ratio, 1 - clip_low), 1 + clip_high)
    if ratio * advantage <= held * advantage:
        return ratio * advantage, ratio * advantage * slope
    return held * advantage, 0.0


def grpo(s: float, old: float, advantage: float, clip_low: float, clip_high: float) -> Token:
    """rho = S/old."""
    return surrogate(s - old, 1.0, advantage, clip_low, clip_high)


def rlad(
    s: float,
    old: float,
    teacher: float,
    advantage: float,
    alpha: float,
    teacher_clip: float | None,
    teacher_clip_gradient: str,
    clip_low: float,
    clip_high: float,
) -> Token:
    """rho = (S/old)^alpha (S/T)^(1 - alpha), log S - log T clamped to +-teacher_clip."""
    if broken(teacher):
        return grpo(s, old, advantage, clip_low, clip_high)
    gap, gap_slope = s - teacher, 1.0
    if teacher_clip is not None and abs(gap) > teacher_clip:
        gap = math.copysign(teacher_clip, gap)
        gap_slope = 0.0 if teacher_clip_gradient == "literal" else 1.0
    log_ratio = alpha * (s - old) + (1 - alpha) * gap
    return surrogate(log_ratio, alpha + (1 - alpha) * gap_slope, advantage, clip_low, clip_high)


def kdrl(
    s: float,
    old: float,
    teacher: float,
    advantage: float,
    coefficient: float,
    form: str,
    clip_low: float,
    clip_high: float,
) -> Token:
    """rho = S/old; either A + beta (log T - log S), or minus beta 0.5 (log S - log T)^2."""
    gap = 0.0 if broken(teacher) else s - teacher
    if form == "reward":
        return grpo(s, old, advantage - coefficient * gap, clip_low, clip_high)
    value, slope = grpo(s, old, advantage, clip_low, clip_high)
    return value - coefficient * 0.5 * gap**2, slope - coefficient * gap


def opd(s: float, old: float, teacher: float, clip_low: float, clip_high: float) -> Token:
    """rho = S/old, A = log T - log S."""
    return grpo(s, old, 0.0 if broken(teacher) else teacher - s, clip_low, clip_high)


def kdrl_mask(
    s: float, old: float, teacher: float, advantage: float, right: bool, beta: float, clip_low: float, clip_high: float
) -> Token:
    """rho = S/old, A + beta (log T - log S) where the rollout is wrong."""
    if right:
        return grpo(s, old, advantage, clip_low, clip_high)
    return kdrl(s, old, teacher, advantage, beta, "reward", clip_low, clip_high)


def srpo(
    s: float, old: float, teacher: float, advantage: float, right: bool, clip_low: float, clip_high: float
) -> Token:
    """rho = S/old, A where the rollout is right, else log T - log S."""
    if right:
        return grpo(s, old, advantage, clip_low, clip_high)
    return opd(s, old, teacher, clip_low, clip_high)


def hdpo(
    s: float,
    old: float,
    teacher: float,
    advantage: float,
    group: Sequence[bool],
    beta: float,
    clip_low: float,
    clip_high: float,
) -> Token:
    """rho = S/old, A + beta (log T - log S) where no rollout of the group is right; `group` says which are."""
    return kdrl_mask(s, old, teacher, advantage, any(group), beta, clip_low, clip_high)


def rlsd(
    s: float,
    old: float,
    teacher: float,
    advantage: float,
    mix: float,
    width: float,
    clip_low: float,
    clip_high: float,
) -> Token:
    """rho = S/old, A ((1 - mix) + mix w), w = T/S where A > 0, S/T where A < 0, held in 1 +- width."""
    gap = 0.0 if broken(teacher) else teacher - s
    weight = math.exp(gap if advantage > 0 else -gap)
    weight = min(max(weight, 1 - width), 1 + width)
    return grpo(s, old, advantage * ((1 - mix) + mix * weight), clip_low, clip_high)


def broken(teacher: float) -> bool:
    """NaN, infinite, a sign for -inf, or above 0 by more than rounding."""
    return not -9998 < teacher <= 1e-4


def group_advantages(rewards: Sequence[float], group_size: int, std: str = "population") -> list[float]:
    """(r - mean) / std of each group of `group_size` neighbours; 0 where all rewards are equal."""
    advantages: list[float] = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size]
        mean = sum(group) / group_size
        spread = math.sqrt(sum((r - mean) ** 2 for r in group) / (group_size - (std == "sample")))
        for reward in group:
            if max(group) - min(group) <= max(1e-6 * max(map(abs, group)), 1e-18):
                advantages.append(0.0)
            else:
                advantages.append((reward - mean) / (1.0 if std == "none" else spread))
    return advantages


def token_mean(rollouts: Sequence[Sequence[float]]) -> float:
    """Mean over all tokens; each rollout is the list of its own tokens' values, without padding."""
    return sum(sum(tokens) for tokens in rollouts) / sum(len(tokens) for tokens in rollouts)


def sequence_mean(rollouts: Sequence[Sequence[float]]) -> float:
    """Mean over rollouts of the mean over tokens; a rollout without tokens counts as 0."""
    return sum(sum(tokens) / max(len(tokens), 1) for tokens in rollouts) / len(rollouts)


def fixed_length(rollouts: Sequence[Sequence[float]], length: int) -> float:
    """Mean over rollouts of their sum / length."""
    return sum(sum(tokens) / length for tokens in rollouts) / len(rollouts)
