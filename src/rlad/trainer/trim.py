"""No forward pass over padding that can be left out: micro-batches cut to their own longest rows, and rows of like
length put into the same micro-batch. Rewards, advantages and masks stay with their rows; nothing here knows a method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Losses whose sum over an update does not depend on which micro-batch a row is in, for micro-batches of equal counts:
# a mean over sequences (grpo), over the update's tokens (dapo), or over a fixed length (dr_grpo). bnpo divides by the
# tokens of the micro-batch, so moving a row would change it.
BALANCED_LOSSES = ("grpo", "dapo", "dr_grpo")


def trimmed(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A micro-batch without the columns in which every row is padding: prompts (B, P) lose them on the left, and
    everything (B, T) on the right. At least one column of each is kept. Tensors of other shapes pass through, and a
    batch with tensors over prompt and response together (token types of a multimodal model) is returned as it is."""
    prompt, response = batch["prompt_mask"], batch["completion_mask"]
    whole = prompt.shape[1] + response.shape[1]
    if any(isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == whole for value in batch.values()):
        return dict(batch)
    first = _columns(prompt)[0]
    end = _columns(response)[1]
    cut = dict(batch)
    for name, value in batch.items():
        if name in ("prompt_ids", "prompt_mask"):
            cut[name] = value[:, first:]
        elif isinstance(value, Tensor) and value.shape == response.shape:
            cut[name] = value[:, :end]
    return cut


def _columns(mask: Tensor) -> tuple[int, int]:
    """The first column that any row has something in, and the end behind the last; (0, 1) when there is none."""
    used = mask.bool().any(0).nonzero()[:, 0]
    return (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)


def balanced(micro_batches: Sequence[Mapping[str, Any]], window: int) -> list[dict[str, Any]]:
    """The same rows with those of like length together, longest first; rows stay within their `window` micro-batches,
    which are those of one update. Micro-batches that hold anything but rows of equal count are returned as they are."""
    found: list[dict[str, Any]] = []
    for start in range(0, len(micro_batches), window):
        found += _balanced(micro_batches[start : start + window])
    return found


def _balanced(group: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = group[0]["completion_mask"].shape[0]
    plain = all(
        not isinstance(value, (list, tuple))
        and (not isinstance(value, Tensor) or value.ndim == 0 or len(value) == rows)
        for each in group
        for value in each.values()
    )
    if len(group) < 2 or not plain:
        return [dict(each) for each in group]
    lengths = torch.cat([each["prompt_mask"].sum(1) + each["completion_mask"].sum(1) for each in group])
    order = lengths.argsort(descending=True, stable=True)
    joined = {
        name: torch.cat([each[name] for each in group])[order] if isinstance(value, Tensor) and value.ndim else value
        for name, value in group[0].items()
    }
    return [
        {
            name: value[i * rows : (i + 1) * rows] if isinstance(value, Tensor) and value.ndim else value
            for name, value in joined.items()
        }
        for i in range(len(group))
    ]


def by_length(
    forward: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor | None]],
    ids: Tensor,
    mask: Tensor,
    keep: int,
    rows: int,
) -> tuple[Tensor, Tensor | None]:
    """A pass without gradients over padded rows, in batches of like length cut to their own size.

    forward: (ids, mask, keep) of a batch to its log-probs, and its entropies or None, each (b, keep) over the last
        `keep` columns. ids, mask: (B, P + keep), prompts padded on the left, responses on the right.
    Returns both as (B, keep), 0 where nothing was scored.
    """
    real = mask.bool()
    order = real.sum(1).argsort(descending=True, stable=True)
    parts: list[Tensor | None] = [None, None]
    for batch in order.split(rows):
        first, end = _columns(real[batch])
        end = max(end, ids.shape[1] - keep + 1)
        here = end - (ids.shape[1] - keep)
        for i, found in enumerate(forward(ids[batch, first:end], mask[batch, first:end], here)):
            if found is not None:
                whole = parts[i]
                if whole is None:
                    whole = parts[i] = found.new_zeros(ids.shape[0], keep)
                whole[batch, :here] = found
    assert parts[0] is not None
    return parts[0], parts[1]
