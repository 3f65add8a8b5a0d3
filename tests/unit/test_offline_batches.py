"""Rows of like length together: the same rows, as many in each micro-batch, and no column of padding alone."""

from __future__ import annotations

import torch
from torch import Tensor

from rlad.offline.batches import by_length


def batch(*lengths: int, width: int | None = None, first: int = 0) -> dict[str, Tensor]:
    """Row i holds 10 (first + i) + 1, 2, ...; its labels are the same but for the first token, which is the prompt."""
    wide = width or max(lengths)
    ids = torch.zeros(len(lengths), wide, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, length in enumerate(lengths):
        ids[i, :length] = 10 * (first + i) + torch.arange(1, length + 1)
        labels[i, 1:length] = ids[i, 1:length]
        mask[i, :length] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def test_longest_first_each_cut_to_its_own_longest_row() -> None:
    # Rows of 2, 4 | 3, 5 | 1 tokens: 5, 4 | 3, 2 | 1 after.
    found = by_length([batch(2, 4), batch(3, 5, width=6, first=2), batch(1, first=4)])
    assert [each["input_ids"].tolist() for each in found] == [
        [[31, 32, 33, 34, 35], [11, 12, 13, 14, 0]],
        [[21, 22, 23], [1, 2, 0]],
        [[41]],
    ]
    assert [each["labels"].tolist() for each in found] == [
        [[-100, 32, 33, 34, 35], [-100, 12, 13, 14, -100]],
        [[-100, 22, 23], [-100, 2, -100]],
        [[-100]],
    ]
    assert [each["attention_mask"].tolist() for each in found] == [
        [[1] * 5, [1, 1, 1, 1, 0]],
        [[1] * 3, [1, 1, 0]],
        [[1]],
    ]


def test_equal_lengths_stay_in_their_order() -> None:
    (found,) = by_length([batch(2, 2, 2)])
    assert found["input_ids"][:, 0].tolist() == [1, 11, 21]


def test_what_is_not_padded_on_the_right_alone_stays_as_it_is() -> None:
    packed = [batch(2, 4) | {"position_ids": torch.zeros(2, 4)}, batch(1)]
    left = [{name: value.flip(1) for name, value in batch(2, 4).items()}]
    for given in (packed, left):
        found = by_length(given)
        assert [each.keys() for each in found] == [each.keys() for each in given]
        assert all(torch.equal(a[k], b[k]) for a, b in zip(found, given, strict=True) for k in a)
