"""A task for models of a few thousand weights: letters are worth more than anything else. Named in recipes of tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlad.tasks import Score

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
