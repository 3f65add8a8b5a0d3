"""Group-relative advantages (RLAD Eq. 1): a rollout is compared with the others of the same prompt.

Rewards are (B,), the `group_size` rollouts of one prompt next to each other.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

GroupStd = Literal["population", "sample", "none"]
SAME_REWARD = 1e-6
"""Relative. Equal sums of several rewards can differ by a few float32 roundings (6e-8 each); divided by their own
standard deviation these would be advantages like any other."""


def group_advantages(rewards: Tensor, group_size: int, std: GroupStd = "population") -> Tensor:
    """A = (r - mean of the group) / std of the group: (B,), float32 or the rewards' float64.

    "population" divides by G under the root (RLAD Eq. 1), "sample" by G - 1 (what TRL does; it also adds 1e-4, which
    we do not), "none" leaves the difference from the mean (Dr. GRPO, arXiv 2503.20783). A group whose rewards are
    all equal (`zero_variance_groups`) has advantage exactly 0: rounding over rounding is anything up to sqrt(G - 1).

    Raises ValueError when B is not a multiple of group_size, group_size is below 2, or a reward is not finite.
    """
    if std not in get_args(GroupStd):
        raise ValueError(f"std is {std!r}: choose 'population', 'sample' or 'none'")
    equal = zero_variance_groups(rewards, group_size).unsqueeze(-1)
    groups = (rewards if rewards.dtype == torch.float64 else rewards.float()).reshape(-1, group_size)
    deviation = groups - groups.mean(-1, keepdim=True)
    if std == "none":
        advantages = deviation
    else:
        divisor = group_size if std == "population" else group_size - 1
        variance = deviation.square().sum(-1, keepdim=True) / divisor
        advantages = deviation / variance.sqrt()
    return torch.where(equal, 0.0, advantages).flatten()


def zero_variance_groups(rewards: Tensor, group_size: int) -> Tensor:
    """True for each group whose rewards are all equal, so that it teaches nothing: (B // G,) bool.

    Equal means to SAME_REWARD of the largest absolute reward, or to 1e-18, whose square float32 still holds.

    Raises ValueError as `group_advantages`.
    """
    if rewards.dim() != 1:
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}: expected one per rollout, (B,)")
    if group_size < 2:
        raise ValueError(f"group_size is {group_size}: an advantage compares at least 2 rollouts of a prompt")
    if len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards do not divide into groups of {group_size}: give whole groups")
    if not torch.isfinite(rewards).all():
        rollout = int((~torch.isfinite(rewards)).nonzero()[0])
        raise ValueError(f"the reward of rollout {rollout} is {rewards[rollout].item()}: a reward must be finite")
    groups = rewards.double().reshape(-1, group_size)
    rounding = SAME_REWARD * groups.abs().amax(-1)
    return groups.amax(-1) - groups.amin(-1) <= rounding.clamp(min=1e-18)


def all_wrong(correct: Tensor, group_size: int) -> Tensor:
    """True for each rollout of a group in which no rollout is right: (B,) bool, for `correct` (B,), bool or 0/1.

    Raises ValueError as `group_advantages`.
    """
    if correct.dim() != 1 or group_size < 1 or len(correct) % group_size:
        raise ValueError(f"correct has shape {tuple(correct.shape)}: expected (B,), whole groups of {group_size}")
    return (~correct.bool().reshape(-1, group_size).any(-1)).repeat_interleave(group_size)
