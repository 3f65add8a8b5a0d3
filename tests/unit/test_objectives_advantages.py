"""Group-relative advantages and the three reductions, in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from rlad.objectives import (
    GRPO,
    RLAD,
    fixed_length,
    group_advantages,
    objective_terms,
    sequence_mean,
    token_mean,
    token_signals,
    zero_variance_groups,
)
from rlad.objectives.advantages import GroupStd


def test_advantages_of_one_right_answer_in_four() -> None:
    # mean 1/4, deviations 3/4, -1/4 x 3, sum of squares 9/16 + 3/16 = 3/4
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    third = 1 / math.sqrt(3)
    # population: sqrt(3/16) = .4330: 3/4 / .4330 = sqrt 3, -1/4 / .4330 = -1/sqrt 3
    assert group_advantages(rewards, 4).tolist() == pytest.approx([math.sqrt(3), -third, -third, -third])
    # sample: sqrt((3/4) / 3) = .5
    assert group_advantages(rewards, 4, std="sample").tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5])
    assert group_advantages(rewards, 4, std="none").tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_groups_do_not_see_each_other() -> None:
    # (0, 2): mean 1, population std 1. (5, 5): equal. (-3, -1): mean -2, std 1.
    rewards = torch.tensor([0.0, 2.0, 5.0, 5.0, -3.0, -1.0])
    assert group_advantages(rewards, 2).tolist() == [-1, 1, 0, 0, -1, 1]
    assert zero_variance_groups(rewards, 2).tolist() == [False, True, False]


@pytest.mark.parametrize("std", ["population", "sample", "none"])
@pytest.mark.parametrize("reward", [0.1, 0.3, 0.7, -1.0, 0.0, 1e-30])
def test_equal_rewards_have_exactly_zero_advantage(reward: float, std: GroupStd) -> None:
    # In float32 the mean of eight times .7 is not .7: without the rule the advantage is rounding over rounding.
    for size in (3, 8, 11):
        rewards = torch.full((size,), reward)
        assert group_advantages(rewards, size, std).tolist() == [0] * size
        assert zero_variance_groups(rewards, size).tolist() == [True]


@pytest.mark.parametrize("std", ["population", "sample", "none"])
def test_equal_sums_of_rewards_that_round_differently_are_equal(std: GroupStd) -> None:
    """.7, and .3 + .4 in float32: one rounding apart. Over its own deviation that would be an advantage of -sqrt 3."""
    sums = torch.tensor([0.7, 0.3, 0.3, 0.3]) + torch.tensor([0.0, 0.4, 0.4, 0.4])
    assert 0 < (sums.max() - sums.min()).item() < 1.2e-7
    assert group_advantages(sums, 4, std).tolist() == [0] * 4 and zero_variance_groups(sums, 4).tolist() == [True]
    assert group_advantages(1000 * sums, 4, std).tolist() == [0] * 4
    tiny = torch.tensor([1e-25, 0.0, 0.0, 0.0])  # whose square is 0 in float32
    assert group_advantages(tiny, 4, std).tolist() == [0] * 4


@pytest.mark.parametrize("base, step", [(0.0, 1e-3), (1.0, 1e-4), (-1000.0, 1.0)])
def test_rewards_that_differ_by_more_than_rounding_teach(base: float, step: float) -> None:
    # One of four above the others: sqrt 3 and -1/sqrt 3, however small the step; float32 leaves 3 to 7 digits of it.
    rewards = base + step * torch.tensor([1.0, 0.0, 0.0, 0.0])
    third = 1 / math.sqrt(3)
    found = group_advantages(rewards, 4).tolist()
    assert found == pytest.approx([math.sqrt(3), -third, -third, -third], rel=1e-2)
    assert zero_variance_groups(rewards, 4).tolist() == [False]


def test_groups_without_signal_have_no_policy_gradient() -> None:
    torch.manual_seed(0)
    rewards = torch.tensor([0.7] * 8 + [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    assert int(zero_variance_groups(rewards, 8).sum()) == 1
    old, teacher = -3 * torch.rand(16, 5), -3 * torch.rand(16, 5)
    for method in (GRPO(), RLAD(), RLAD(teacher_clip=None, alpha=0.0)):
        s = (old - 0.05).requires_grad_()
        signals = token_signals(s, old, teacher, group_advantages(rewards, 8), torch.ones(16, 5))
        objective = objective_terms(method, signals).objective
        gradient = torch.autograd.grad(objective.sum(), s)[0]
        assert torch.count_nonzero(gradient[:8]) == 0 and torch.count_nonzero(objective[:8]) == 0
        assert torch.count_nonzero(gradient[8:]) > 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.float32, torch.float64, torch.bool])
def test_advantages_are_float_whatever_the_rewards_are(dtype: torch.dtype) -> None:
    advantages = group_advantages(torch.tensor([1, 0, 0, 0]).to(dtype), 4)
    assert advantages.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert advantages[0].item() == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize(
    "rewards, group_size, message",
    [
        ([1.0, 0.0, 1.0], 2, "3 rewards"),
        ([1.0, 0.0], 1, "group_size is 1"),
        ([1.0, 0.0, math.nan, 0.0], 2, "rollout 2 is nan"),
        ([1.0, math.inf], 2, "rollout 1 is inf"),
    ],
)
def test_bad_rewards_are_refused(rewards: list[float], group_size: int, message: str) -> None:
    for function in (group_advantages, zero_variance_groups):
        with pytest.raises(ValueError, match=message):
            function(torch.tensor(rewards), group_size)


def test_bad_std_and_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="std is 'unbiased'"):
        group_advantages(torch.zeros(4), 2, std="unbiased")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one per rollout"):
        group_advantages(torch.zeros(2, 2), 2)


VALUES = torch.tensor([[1.0, 2.0, math.nan], [4.0, math.inf, math.nan], [math.nan, math.nan, math.nan]])
MASK = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])


def test_reductions_divide_by_what_they_say() -> None:
    # rollouts (1, 2), (4), (): 3 tokens, 3 rollouts
    assert token_mean(VALUES, MASK, 3).item() == pytest.approx((1 + 2 + 4) / 3)
    assert sequence_mean(VALUES, MASK, 3).item() == pytest.approx((3 / 2 + 4 / 1 + 0) / 3)
    assert fixed_length(VALUES, MASK, 10, 3).item() == pytest.approx((3 / 10 + 4 / 10 + 0) / 3)


def test_reductions_accept_a_tensor_denominator_and_an_integer_mask() -> None:
    mask = MASK.long()
    assert token_mean(VALUES, mask, mask.sum()).item() == pytest.approx(7 / 3)
    assert sequence_mean(VALUES, mask, torch.tensor(2.0)).item() == pytest.approx(5.5 / 2)
    assert fixed_length(VALUES, mask, 2, torch.tensor(2)).item() == pytest.approx(3.5 / 2)
