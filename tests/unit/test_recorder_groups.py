"""The parts of the recorder that need no training."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlad.tasks.base import gold
from rlad.trainer.environment import source_commit
from rlad.trainer.recorder import Recorder, chosen_groups, token_weights


def test_the_most_mixed_group_an_all_wrong_one_and_the_rest_at_random() -> None:
    # Groups of 4: right 1, 2, 0, 4, 0, 3.
    right = [1, 2, 0, 4, 0, 3]
    correct = [i < count for count in right for i in range(4)]
    rewards = [float(each) for each in correct]
    seen = set()
    for seed in range(40):
        chosen = dict(chosen_groups(rewards, correct, 4, 3, random.Random(seed)))
        assert chosen[1] == "the most mixed of 6 groups: 2 of 4 right"
        (wrong,) = [group for group, why in chosen.items() if why == "all wrong: one of 2 such groups"]
        (other,) = [group for group, why in chosen.items() if why == "at random"]
        assert wrong in (2, 4) and other not in (1, wrong)
        seen |= {wrong, other}
    assert seen == {0, 2, 3, 4, 5}


def test_without_scores_the_largest_spread_counts_and_no_group_is_called_wrong() -> None:
    rewards = [0.1, 0.2, 0.0, 0.9, 0.5, 0.5]
    assert chosen_groups(rewards, None, 2, 1, random.Random(0)) == [(1, "the largest spread of rewards of 3 groups")]
    chosen = chosen_groups(rewards, None, 2, 9, random.Random(0))
    assert [why for _, why in chosen] == ["at random", "the largest spread of rewards of 3 groups", "at random"]


def test_one_group_is_the_most_mixed_one() -> None:
    correct = [False, False, True, False]
    assert [g for g, _ in chosen_groups([0.0, 0.0, 1.0, 0.0], correct, 2, 1, random.Random(0))] == [1]


@pytest.mark.parametrize("correct", [None, [True, False, True]])
def test_a_process_without_a_whole_group_records_none(correct: list[bool] | None) -> None:
    assert chosen_groups([1.0, 0.0, 1.0], correct, 4, 2, random.Random(0)) == []


def trainer(step: int = 0, **options: Any) -> Any:
    args = {"steps_per_generation": 1, "num_iterations": 1, "gradient_accumulation_steps": 1} | options
    return SimpleNamespace(args=SimpleNamespace(**args), state=SimpleNamespace(global_step=step, max_steps=20))


@pytest.mark.parametrize(
    ("options", "steps", "expected"),
    [
        ({}, range(20), [1, 5, 10, 15, 20]),
        # A generation lasts two updates, so those before 1, 3, 5, ... generate; 10 falls into that of 9, 20 into 19's.
        ({"num_iterations": 2}, range(0, 20, 2), [1, 5, 11, 15, 19]),
        ({"steps_per_generation": 8}, range(0, 20, 8), [1, 9, 17]),
        # Two generations for each update: the first of the two.
        ({"gradient_accumulation_steps": 2}, [0, 0, 4, 4, 8, 8], [1, 5]),
    ],
)
def test_which_generations_are_recorded(
    options: dict[str, int], steps: Any, expected: list[int], tmp_path: Any
) -> None:
    recorder = Recorder(tmp_path, 5, 4, "run", 0)
    assert [step + 1 for step in steps if recorder.due(trainer(step, **options))] == expected


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        # Two rows of 1 and 4 tokens; two micro-batches an update.
        ("grpo", [1 / (1 * 2 * 2), 1 / (4 * 2 * 2)]),
        ("bnpo", [1 / (5 * 2)] * 2),
        ("dr_grpo", [1 / (2 * 10 * 2)] * 2),
        ("dapo", [1 / 30] * 2),  # 60 tokens in a generation of 4 micro-batches, so 30 in the update
    ],
)
def test_weights(loss_type: str, expected: list[float]) -> None:
    of: Any = SimpleNamespace(
        args=SimpleNamespace(loss_type=loss_type, steps_per_generation=4),
        current_gradient_accumulation_steps=2,
        accelerator=SimpleNamespace(num_processes=1),
        max_completion_length=10,
    )
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    weights = token_weights(of, {"num_items_in_batch": torch.tensor(60)}, mask)
    assert weights.tolist() == pytest.approx(expected)


def test_the_right_answer_of_an_example() -> None:
    assert gold({"names": ["Zoey", "Bob"], "solution": [True, False]}) == "Zoey is a knight, Bob is a knave"
    assert gold({"answer": ["\\frac{1}{2}", "0.5"]}) == "\\frac{1}{2} or 0.5"
    assert gold({"answer": 7}) == "7" and gold({"gold": "a", "answer": "b"}) == "a" and gold({"x": 1}) is None


def test_the_commit_is_that_of_the_source_tree(repository: Path) -> None:
    git = subprocess.run(["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True)
    if git.returncode:  # from an archive
        assert source_commit() is None
    else:
        assert str(source_commit()).rstrip("+") == git.stdout.strip()
