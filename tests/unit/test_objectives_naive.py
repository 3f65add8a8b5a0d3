"""Tensors against the plain-Python loop: value and gradient of every method, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlad.objectives import (
    GRPO,
    HDPO,
    KDRL,
    OPD,
    RLAD,
    RLSD,
    SRPO,
    KDRLMask,
    Method,
    all_wrong,
    fixed_length,
    group_advantages,
    naive,
    objective_terms,
    sequence_mean,
    token_mean,
    token_signals,
)
from rlad.objectives.advantages import GroupStd

ROLLOUTS, TOKENS, GROUP = 12, 17, 4
METHOD_VARIANTS: list[Method] = [
    GRPO(),
    GRPO(clip_low=0.1, clip_high=0.4),
    *(RLAD(alpha=alpha, teacher_clip=clip) for alpha in (0.0, 0.3, 0.5, 0.9, 1.0) for clip in (1.0, 0.3, None)),
    *(RLAD(alpha=alpha, teacher_clip_gradient="anchor") for alpha in (0.0, 0.3, 0.5, 0.9, 1.0)),
    KDRL(),
    KDRL(coefficient=0.3),
    KDRL(coefficient=0.3, form="reward"),
    OPD(),
    KDRLMask(coefficient=0.3),
    SRPO(),
    HDPO(coefficient=0.3),
    RLSD(),
    RLSD(mix=1.0, width=0.6),
]


def naive_token(
    method: Method, s: float, old: float, teacher: float, advantage: float, right: bool, group: list[bool]
) -> naive.Token:
    clip = (method.clip_low, method.clip_high)
    if isinstance(method, RLAD):
        form = method.teacher_clip_gradient
        return naive.rlad(s, old, teacher, advantage, method.alpha, method.teacher_clip, form, *clip)
    if isinstance(method, KDRL):
        return naive.kdrl(s, old, teacher, advantage, method.coefficient, method.form, *clip)
    if isinstance(method, OPD):
        return naive.opd(s, old, teacher, *clip)
    if isinstance(method, KDRLMask):
        return naive.kdrl_mask(s, old, teacher, advantage, right, method.coefficient, *clip)
    if isinstance(method, SRPO):
        return naive.srpo(s, old, teacher, advantage, right, *clip)
    if isinstance(method, HDPO):
        return naive.hdpo(s, old, teacher, advantage, group, method.coefficient, *clip)
    if isinstance(method, RLSD):
        return naive.rlsd(s, old, teacher, advantage, method.mix, method.width, *clip)
    return naive.grpo(s, old, advantage, *clip)


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """s, old, teacher (with broken values), rewards (one group all equal), mask; float64."""
    generator = torch.Generator().manual_seed(seed)
    old = -2 * torch.rand(ROLLOUTS, TOKENS, generator=generator, dtype=torch.float64) - 0.5
    s = old + 0.3 * torch.randn(old.shape, generator=generator, dtype=torch.float64)
    teacher = (old + 0.8 * torch.randn(old.shape, generator=generator, dtype=torch.float64)).clamp(max=0)
    for index, value in enumerate((math.nan, math.inf, -math.inf, 0.5, -500.0)):
        teacher[index, 2 * index] = value
    rewards = torch.rand(ROLLOUTS, generator=generator, dtype=torch.float64).round(decimals=1)
    rewards[:GROUP] = 0.7
    lengths = torch.randint(1, TOKENS + 1, (ROLLOUTS, 1), generator=generator)
    return s, old, teacher, rewards, torch.arange(TOKENS) < lengths


@pytest.mark.parametrize("method", METHOD_VARIANTS, ids=repr)
def test_method_equals_the_loop(method: Method) -> None:
    for seed in range(2):
        s, old, teacher, rewards, mask = batch(seed)
        student = s.clone().requires_grad_()
        advantages = group_advantages(rewards, GROUP)
        correct = rewards > 0.7  # of the first group, whose rewards are all 0.7, none
        correct[GROUP] = True
        lost = all_wrong(correct, GROUP)
        assert lost.any() and not lost.all() and (correct != ~lost).any()
        signals = token_signals(student, old, teacher, advantages, mask, correct=correct, group_wrong=lost)
        objective = objective_terms(method, signals).objective
        (gradient,) = torch.autograd.grad(objective.sum(), student)
        expected = torch.zeros(2, ROLLOUTS, TOKENS, dtype=torch.float64)
        for i, t in mask.nonzero().tolist():
            token = (s[i, t].item(), old[i, t].item(), teacher[i, t].item(), advantages[i].item())
            group = correct[i - i % GROUP :][:GROUP].tolist()
            expected[0, i, t], expected[1, i, t] = naive_token(method, *token, bool(correct[i]), group)
        torch.testing.assert_close(objective.detach(), expected[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("std", ["population", "sample", "none"])
def test_advantages_equal_the_loop(std: GroupStd) -> None:
    rewards = batch(0)[3]
    expected = naive.group_advantages(rewards.tolist(), GROUP, std)
    assert group_advantages(rewards, GROUP, std).tolist() == pytest.approx(expected, rel=1e-12)


def test_reductions_equal_the_loop() -> None:
    s, _, _, _, mask = batch(0)
    rollouts = [row[kept].tolist() for row, kept in zip(s, mask, strict=True)]
    assert token_mean(s, mask, mask.sum()).item() == pytest.approx(naive.token_mean(rollouts), rel=1e-12)
    assert sequence_mean(s, mask, ROLLOUTS).item() == pytest.approx(naive.sequence_mean(rollouts), rel=1e-12)
    assert fixed_length(s, mask, 20, ROLLOUTS).item() == pytest.approx(naive.fixed_length(rollouts, 20), rel=1e-12)
