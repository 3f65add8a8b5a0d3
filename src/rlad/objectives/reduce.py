"""From per-token values to one number. The denominator is an argument, so that the call shows what is averaged over.

`values` and `mask` are (B, T); the result is 0-dim. Pass the denominator of the WHOLE batch, also when the tensors
are one micro-batch of it: the micro-batches' results then add up to the batch's, and so do their gradients.
A value outside the mask is never read, whatever it is.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_mean(values: Tensor, mask: Tensor, denominator: float | Tensor) -> Tensor:
    """Every token weighs the same: sum over tokens / `denominator` = tokens in the batch (DAPO)."""
    return _kept(values, mask).sum() / denominator


def sequence_mean(values: Tensor, mask: Tensor, denominator: float | Tensor) -> Tensor:
    """Every rollout weighs the same: sum of the rollouts' means / `denominator` = rollouts in the batch (RLAD Eq. 1).

    A rollout without tokens adds 0.
    """
    lengths = mask.sum(-1).clamp(min=1)
    return (_kept(values, mask).sum(-1) / lengths).sum() / denominator


def fixed_length(values: Tensor, mask: Tensor, length: int, denominator: float | Tensor) -> Tensor:
    """Every rollout's sum is divided by the same `length`, e.g. the longest allowed (Dr. GRPO, arXiv 2503.20783).

    `denominator` = rollouts in the batch.
    """
    return (_kept(values, mask).sum(-1) / length).sum() / denominator


def _kept(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.bool(), values, 0.0)
