"""A task for models of a few thousand weights: letters are worth more than anything else. Named in recipes of tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import tiny
from rlad.tasks import Score
from rlad.trainer.config import Recipe

TEXTS = ("Who is a knight?", "Is Bob a knave", "Alice says that Bob is a knight.", "Carol")


class Letters:
    """`first`: evaluate on the texts from this one on."""

    name = "letters"

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def train(self) -> list[dict[str, Any]]:
        return [{"prompt": [{"role": "user", "content": text}]} for text in TEXTS * 4]

    def evaluation(self, split: str = "test", count: int | None = None) -> list[dict[str, Any]]:
        return self.train()[self.first :][:count]

    def score(self, response: str, example: Mapping[str, Any]) -> Score:
        share = sum(each.isascii() and each.isalpha() for each in response) / max(len(response), 1)
        return Score(share, share > 0.6, None, "the share of letters")


def recipe(base: str, output: Path, trainer: Mapping[str, Any], **more: Any) -> Recipe:
    """A recipe for a model in `base` on this task, with grpo unless `more` says otherwise: two updates of two groups,
    each saved."""
    options = {
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "logging_steps": 1, "learning_rate": 1e-2,
        "num_generations": tiny.GROUP, "per_device_train_batch_size": 2 * tiny.GROUP, "max_steps": 2,
        "max_completion_length": tiny.RESPONSE, "save_strategy": "steps", "save_steps": 1,
    }  # fmt: skip
    data = {
        "model": base,
        "task": "letters_task:Letters",
        "method": "grpo",
        "trainer": options | dict(trainer),
        "evaluate": {"puzzles": 4, "batch_size": 4},
        "output": str(output),
    }
    return Recipe.from_mapping(data | more)


def same_weights(one: Path, other: Path, file: str = "model.safetensors") -> bool:
    """Whether two folders hold the same weights, to the bit."""
    ours, theirs = load_file(one / file), load_file(other / file)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
