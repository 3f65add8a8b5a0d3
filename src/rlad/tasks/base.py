"""What a task is: examples, and a score for a response to one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from rlad.errors import RladError

Example = dict[str, Any]
"""One problem: `prompt` (a list of chat messages) and the columns that the task's scorer reads.

`difficulty`, where present, names the row of an evaluation table that the problem counts in (the number of people of a
Knights & Knaves puzzle). Every example of a task has the same columns.
"""

GOLD = ("gold", "answer", "solution", "target")
"""Columns that hold the right answer, by custom."""


@dataclass(frozen=True)
class Score:
    """What a response is worth, and why.

    value: the reward. correct: whether the answer is right (what accuracy counts). extracted: the answer that was read
    out of the response, None where there was none. explanation: one sentence for a person. format_ok: whether the
    response has the form that its task asks for, right or wrong; None where the task does not say.
    """

    value: float
    correct: bool
    extracted: str | None
    explanation: str
    format_ok: bool | None = None


@runtime_checkable
class Task(Protocol):
    """Examples to train on, examples to evaluate on, and a scorer. Any object with these four members is one.

    A task may also say `is_local`, true where its examples need no network: then `rlad check` and `rlad compare` read
    them beforehand, and find there what is wrong with them. `problem_key(example)`, where it has that, tells its
    problems apart better than their prompts do; `held_out`, "refuse" or "drop", says what happens to training examples
    that a run validates on.
    """

    @property
    def name(self) -> str:
        """What the task is called in results."""

    def train(self) -> Sequence[Example]:
        """The training examples."""

    def evaluation(self, split: str = "test", count: int | None = None) -> Sequence[Example]:
        """`count` examples of a held-out split ("test" or "validation"), or all that the task has."""

    def score(self, response: str, example: Mapping[str, Any]) -> Score:
        """Score a response. It comes from a model: nothing in it may raise, hang or run."""


def score_all(task: Task, responses: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> list[Score]:
    """The score of responses[i] for examples[i]. A task whose scorer is slow may do them together, in `score_many`.

    score_many(responses, examples) returns what `score` would, in the same order. Raises RladError for a value that is
    no finite number, and where scores are missing.
    """
    many = getattr(task, "score_many", None)
    if many is not None:
        scores = list(many(responses, examples))
    else:
        scores = [task.score(response, example) for response, example in zip(responses, examples, strict=True)]
    if len(scores) != len(responses):
        raise RladError(f"score_many of the task {task.name} gave {len(scores)} scores for {len(responses)} responses")
    return [checked(task, score) for score in scores]


def checked(task: Task, score: Score) -> Score:
    """The same score. Raises RladError where its value is no finite number."""
    value = getattr(score, "value", score)
    if not is_finite(value):  # it would make the group's advantages, and the weights, NaN
        raise RladError(f"the task {task.name} must score a response by a finite number, not {value!r}")
    return score


def is_finite(value: Any) -> bool:
    """Whether a value, of whatever type, is a finite number."""
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of a tensor of several
        return False


def gold(example: Mapping[str, Any]) -> str | None:
    """The right answer of an example, as a text; None where no column is known to hold it. Of several answers, any of
    which counts, all; of a puzzle's people (`names`, and whether each is a knight in `solution`), their roles."""
    names, solution = example.get("names"), example.get("solution")
    if isinstance(names, Sequence) and isinstance(solution, Sequence) and not isinstance(solution, str):
        roles = zip(names, solution, strict=False)
        return ", ".join(f"{name} is a {'knight' if knight else 'knave'}" for name, knight in roles)
    value = next((example[name] for name in GOLD if example.get(name) is not None), None)
    if value is None:
        return None
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    return " or ".join(map(str, value)) if listed else str(value)
