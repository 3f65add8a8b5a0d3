"""Dynamic sampling, without a model: the prompts that come next, why a group is dropped, how two batches are joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlad.errors import RladError
from rlad.tasks import Score
from rlad.trainer.groups import Counts, Rollouts, fresh_prompts, replaced

ROWS = [{"prompt": str(i)} for i in range(5)]


def test_fresh_prompts_are_the_dataset_in_a_new_order_each_time_through() -> None:
    stream = [row["prompt"] for row in fresh_prompts(ROWS, 0, 20, seed=3)]
    epochs = [stream[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(epoch) == list("01234") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_cursor_is_all_that_the_stream_needs() -> None:
    stream = fresh_prompts(ROWS, 0, 12, seed=3)
    assert fresh_prompts(ROWS, 4, 3, seed=3) == stream[4:7]
    assert fresh_prompts(ROWS, 0, 5, seed=4) != stream[:5]


def score(correct: bool) -> Score:
    return Score(float(correct), correct, None, "")


@pytest.mark.parametrize(
    ("correct", "words"),
    [([True, True], "all_right"), ([False, False], "all_wrong"), ([True, False], "equal"), (None, "equal")],
)
def test_the_reason_is_what_the_responses_have_in_common(correct: list[bool] | None, words: str) -> None:
    scores = None if correct is None else [score(True), score(False), *(score(each) for each in correct)]
    assert Rollouts({}, [], scores).reason(1, 2) == words


def test_counts_add_up() -> None:
    total, one = Counts(all_right=1, cursor=4), Counts(rounds=2, cursor=3)
    one.add("all_right", "all_wrong", "all_wrong")
    total += one
    assert total == Counts(all_right=2, all_wrong=2, rounds=2, cursor=7) and total.dropped == 4


def batch(prompts: list[list[int]], responses: list[list[int]], **more: Any) -> dict[str, Any]:
    """As TRL pads them: prompts on the left, responses on the right, with 0."""
    p, r = max(map(len, prompts)), max(map(len, responses))
    return {
        "prompt_ids": torch.tensor([[0] * (p - len(x)) + x for x in prompts]),
        "prompt_mask": torch.tensor([[0] * (p - len(x)) + [1] * len(x) for x in prompts]),
        "completion_ids": torch.tensor([x + [0] * (r - len(x)) for x in responses]),
        "completion_mask": torch.tensor([[1] * len(x) + [0] * (r - len(x)) for x in responses]),
        "advantages": torch.tensor([float(x[0]) for x in responses]),
        "num_items_in_batch": torch.tensor(99),
        **more,
    }


def test_groups_take_the_place_of_others_under_one_padding() -> None:
    """Two groups of two; the second gives way to the first of the fresh ones, whose rows are longer on both sides."""
    ours = batch([[1], [1], [2], [2]], [[10], [11, 12], [13], [14]])
    fresh = batch([[3, 4, 5], [3, 4, 5]], [[20, 21, 22], [23]])
    before = {name: value.clone() for name, value in ours.items()}
    found = replaced(ours, [1], fresh, [0], 2, pad_id=7)
    assert found["prompt_ids"].tolist() == [[7, 7, 1], [7, 7, 1], [3, 4, 5], [3, 4, 5]]
    assert found["prompt_mask"].tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 1], [1, 1, 1]]
    assert found["completion_ids"].tolist() == [[10, 0, 7], [11, 12, 7], [20, 21, 22], [23, 0, 0]]
    assert found["completion_mask"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert found["advantages"].tolist() == [10, 11, 20, 23] and found["num_items_in_batch"] == 99
    assert all(torch.equal(ours[name], before[name]) for name in ours)
    # The other way round the fresh rows are the shorter ones.
    back = replaced(fresh, [0], ours, [1], 2, pad_id=7)
    assert back["prompt_ids"].tolist() == [[7, 7, 2], [7, 7, 2]]
    assert back["completion_ids"].tolist() == [[13, 0, 7], [14, 0, 7]]


def test_examples_and_scores_move_with_their_rows() -> None:
    one = Rollouts(batch([[1]] * 4, [[1]] * 4), [{"n": i} for i in range(4)], [score(False)] * 4)
    two = Rollouts(batch([[2]] * 4, [[2]] * 4), [{"n": 10 + i} for i in range(4)], [score(True)] * 4)
    found = one.replaced([0], two, [1], 2, pad_id=0)
    assert [row["n"] for row in found.inputs] == [12, 13, 2, 3]
    assert found.scores is not None and [each.correct for each in found.scores] == [True, True, False, False]
    assert found.batch["prompt_ids"].flatten().tolist() == [2, 2, 1, 1]


def test_what_cannot_be_joined_is_refused() -> None:
    ours, images = batch([[1]], [[1]]), batch([[1]], [[1]], num_images=[1])
    with pytest.raises(RladError, match="differ from the first in num_images"):
        replaced(ours, [0], images, [0], 1, pad_id=0)
    with pytest.raises(RladError, match="groups: refill does not fit rollouts with num_images"):
        replaced(images, [0], images, [0], 1, pad_id=0)
