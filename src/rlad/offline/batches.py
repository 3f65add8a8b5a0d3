"""Micro-batches with less padding: rows of like length together, within the micro-batches of one update.

The loss of an update is a sum over its tokens with one denominator, so that it does not matter which micro-batch a row
is in. (`rlad.trainer.trim` does the same for rollouts.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PADDING = {"input_ids": 0, "labels": -100, "attention_mask": 0}  # where the mask is 0, any id will do


def by_length(micro_batches: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The same rows in micro-batches of the same sizes, longest first, each padded to its own longest row.

    micro_batches: of one update; input_ids, labels and attention_mask, each (rows, T), padded on the right. Where they
    hold anything else (packed or padding-free ones) they are returned as they are.
    """
    if any(batch.keys() != PADDING.keys() or _holes(batch["attention_mask"]) for batch in micro_batches):
        return [dict(batch) for batch in micro_batches]
    lengths = [length for batch in micro_batches for length in batch["attention_mask"].sum(1).tolist()]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    rows = {
        name: [row[:length] for row, length in zip(_rows(micro_batches, name), lengths, strict=True)]
        for name in PADDING
    }
    found, start = [], 0
    for batch in micro_batches:
        here = order[start : start + len(batch["input_ids"])]
        start += len(here)
        found.append(
            {
                name: pad_sequence([rows[name][i] for i in here], batch_first=True, padding_value=value)
                for name, value in PADDING.items()
            }
        )
    return found


def _rows(micro_batches: Sequence[Mapping[str, Tensor]], name: str) -> list[Tensor]:
    return [row for batch in micro_batches for row in batch[name]]


def _holes(mask: Tensor) -> bool:
    """Whether there is anything but padding on the right."""
    return bool((mask.diff(dim=1) > 0).any()) or not bool(torch.all(mask[:, 0] == 1))
