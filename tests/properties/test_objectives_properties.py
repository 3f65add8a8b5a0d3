"""What holds for any batch: padding, order and micro-batches change nothing, and the teacher never sets the sign."""

from __future__ import annotations

import itertools
import math
from random import Random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
    objective_terms,
    sequence_mean,
    token_mean,
    token_signals,
    zero_variance_groups,
)

GROUP = 4
METHODS = st.one_of(
    st.builds(GRPO),
    st.builds(
        RLAD,
        alpha=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        teacher_clip=st.sampled_from([None, 0.5, 1.0]),
        teacher_clip_gradient=st.sampled_from(["literal", "anchor"]),
    ),
    st.builds(KDRL, coefficient=st.sampled_from([2e-3, 0.3]), form=st.sampled_from(["k2", "reward"])),
    st.builds(OPD),
    st.builds(KDRLMask, coefficient=st.sampled_from([2e-3, 0.3])),
    st.builds(SRPO),
    st.builds(HDPO),
    st.builds(RLSD, mix=st.sampled_from([0.0, 0.5, 1.0]), width=st.sampled_from([0.2, 1.0])),
)
BROKEN = [math.nan, math.inf, -math.inf, 0.5]
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """s, old, teacher, rewards, mask: whole groups, any lengths (0 too), a tenth of the teacher's values broken."""
    rollouts, tokens = GROUP * draw(st.integers(1, 3)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = (rollouts, tokens)
    old = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
    s = old + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    teacher = -4 * torch.rand(shape, generator=generator, dtype=torch.float64)
    broken = torch.tensor(BROKEN, dtype=torch.float64)[torch.randint(4, shape, generator=generator)]
    teacher = torch.where(torch.rand(shape, generator=generator) < 0.1, broken, teacher)
    rewards = torch.randint(4, (rollouts,), generator=generator).double() / 3
    mask = torch.arange(tokens) < torch.randint(0, tokens + 1, (rollouts, 1), generator=generator)
    return s, old, teacher, rewards, mask


def known(rewards: Tensor) -> dict[str, Tensor]:
    """What is right and which groups are all wrong: a reward above a half is right."""
    correct = rewards > 0.5
    return {"correct": correct, "group_wrong": all_wrong(correct, GROUP)}


def objective_and_gradient(method: Method, batch: Batch) -> tuple[Tensor, Tensor]:
    s, old, teacher, rewards, mask = batch
    student = s.clone().requires_grad_()
    signals = token_signals(student, old, teacher, group_advantages(rewards, GROUP), mask, **known(rewards))
    objective = objective_terms(method, signals).objective
    return objective.detach(), torch.autograd.grad(objective.sum(), student)[0]


@settings(max_examples=60, deadline=None)
@given(METHODS, batches(), st.integers(1, 4), st.integers(0, 3), st.sampled_from([*BROKEN, -1e30, 7.0]))
def test_padding_changes_nothing(method: Method, batch: Batch, right: int, left: int, junk: float) -> None:
    s, old, teacher, rewards, mask = batch

    def pad(values: Tensor, filler: float) -> Tensor:
        return torch.nn.functional.pad(values, (left, right), value=filler)

    plain = objective_and_gradient(method, batch)
    with_padding = objective_and_gradient(
        method, (pad(s, junk), pad(old, junk), pad(teacher, junk), rewards, pad(mask, False))
    )
    tokens = slice(left, left + s.shape[1])
    for before, after in zip(plain, with_padding, strict=True):
        assert torch.equal(before, after[:, tokens])
        assert torch.count_nonzero(after) == torch.count_nonzero(before)
    assert torch.count_nonzero(plain[0][~mask]) == 0


@settings(max_examples=60, deadline=None)
@given(METHODS, batches(), st.randoms(use_true_random=False))
def test_order_of_rollouts_changes_nothing(method: Method, batch: Batch, random: Random) -> None:
    rewards = batch[3]
    groups = [list(range(start, start + GROUP)) for start in range(0, len(rewards), GROUP)]
    random.shuffle(groups)
    for group in groups:
        random.shuffle(group)
    order = torch.tensor([rollout for group in groups for rollout in group])
    shuffled: Batch = tuple(x[order] for x in batch)  # type: ignore[assignment]
    for before, after in zip(
        objective_and_gradient(method, batch), objective_and_gradient(method, shuffled), strict=True
    ):
        torch.testing.assert_close(before[order], after, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(METHODS, batches(), st.lists(st.integers(1, 5), min_size=12, max_size=12))
def test_micro_batches_add_up_to_the_batch(method: Method, batch: Batch, sizes: list[int]) -> None:
    s, old, teacher, rewards, mask = batch
    advantages = group_advantages(rewards, GROUP)
    rollouts, token_count = len(rewards), mask.sum().clamp(min=1)

    def reduced(rows: slice) -> list[tuple[Tensor, Tensor]]:
        student = s.clone().requires_grad_()
        right = {name: values[rows] for name, values in known(rewards).items()}
        signals = token_signals(student[rows], old[rows], teacher[rows], advantages[rows], mask[rows], **right)
        objective = objective_terms(method, signals).objective
        results = (
            token_mean(objective, mask[rows], token_count),
            sequence_mean(objective, mask[rows], rollouts),
            fixed_length(objective, mask[rows], 9, rollouts),
        )
        return [(x.detach(), torch.autograd.grad(x, student, retain_graph=True)[0]) for x in results]

    starts = [0]
    while starts[-1] < rollouts:
        starts.append(starts[-1] + sizes[len(starts) - 1])
    parts = [reduced(slice(a, b)) for a, b in itertools.pairwise(starts)]
    for reduction, (value, gradient) in enumerate(reduced(slice(None))):
        value_sum = torch.stack([part[reduction][0] for part in parts]).sum()
        gradient_sum = torch.stack([part[reduction][1] for part in parts]).sum(0)
        torch.testing.assert_close(value_sum, value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient_sum, gradient, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(METHODS, batches())
def test_everything_stays_finite(method: Method, batch: Batch) -> None:
    objective, gradient = objective_and_gradient(method, batch)
    assert torch.isfinite(objective).all() and torch.isfinite(gradient).all()


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.sampled_from([None, 1.0]), st.booleans())
def test_under_rlad_and_rlsd_the_sign_is_the_rewards(
    batch: Batch, alpha: float, clip: float | None, rlsd: bool
) -> None:
    rewards = batch[3]
    advantages = group_advantages(rewards, GROUP)
    method = RLSD(mix=alpha, width=1.0) if rlsd else RLAD(alpha=alpha, teacher_clip=clip)
    _, gradient = objective_and_gradient(method, batch)
    assert (gradient * advantages.unsqueeze(-1) >= 0).all()
    # Zero-variance groups: exactly nothing, under grpo as well.
    silent = zero_variance_groups(rewards, GROUP).repeat_interleave(GROUP)
    _, grpo_gradient = objective_and_gradient(GRPO(), batch)
    assert torch.count_nonzero(gradient[silent]) == torch.count_nonzero(grpo_gradient[silent]) == 0


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(["literal", "anchor"]), st.sampled_from([None, 1.0]))
def test_alpha_one_is_grpo_to_the_bit(batch: Batch, form: str, clip: float | None) -> None:
    rlad = RLAD(alpha=1.0, teacher_clip=clip, teacher_clip_gradient=form)  # type: ignore[arg-type]
    for ours, grpo in zip(objective_and_gradient(rlad, batch), objective_and_gradient(GRPO(), batch), strict=True):
        assert torch.equal(ours, grpo)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=2, max_size=12),
    st.floats(0.1, 100),
    st.floats(-50, 50),
    st.sampled_from(["population", "sample"]),
)
def test_advantages_are_centred_and_know_no_scale(levels: list[int], scale: float, shift: float, std: str) -> None:
    rewards = torch.tensor(levels, dtype=torch.float64)
    advantages = group_advantages(rewards, len(levels), std)  # type: ignore[arg-type]
    again = group_advantages(rewards * scale + shift, len(levels), std)  # type: ignore[arg-type]
    torch.testing.assert_close(again, advantages, rtol=1e-9, atol=1e-9)
    assert abs(advantages.sum().item()) < 1e-9
    if max(levels) > min(levels):
        divisor = len(levels) - (std == "sample")
        assert math.isclose(advantages.square().sum().item() / divisor, 1, rel_tol=1e-9)
    else:
        assert torch.count_nonzero(advantages) == 0


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e3, 1e3, width=32), st.integers(2, 64), st.sampled_from([torch.float32, torch.float64]))
def test_equal_rewards_are_exactly_zero(reward: float, size: int, dtype: torch.dtype) -> None:
    assert torch.count_nonzero(group_advantages(torch.full((2 * size,), reward, dtype=dtype), size)) == 0
