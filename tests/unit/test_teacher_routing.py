"""Several teachers: each row goes to the one of its task, and comes back in its place."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rlad.errors import RladError
from rlad.teacher import Teacher
from rlad.teacher.routing import ByTask


class Scorer:
    """Scores a token with its id times `factor`."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.seen: list[list[int]] = []

    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Tensor]:
        self.seen += [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
        return [torch.tensor([self.factor * token for token in response]) for response in responses]


def test_each_row_is_scored_by_the_teacher_of_its_task() -> None:
    several = {"math": Scorer(-1.0), "logic": Scorer(-10.0), "unused": Scorer(0.0)}
    scores = ByTask(several).score([[1], [2], [3]], [[4], [5, 6], [7]], ["logic", "math", "logic"])
    assert [row.tolist() for row in scores] == [[-40.0], [-5.0, -6.0], [-70.0]]
    assert several["logic"].seen == [[1, 4], [3, 7]] and several["math"].seen == [[2, 5, 6]]
    assert several["unused"].seen == []
    assert isinstance(ByTask(several), Teacher)


def test_a_row_whose_task_has_no_teacher_is_an_error() -> None:
    several = ByTask({"math": Scorer(1.0), "logic": Scorer(1.0)}, column="kind")
    for tasks in (["math", "poetry"], ["math", None]):
        with pytest.raises(RladError, match=r"no teacher for .* in column 'kind': teachers are for 'math', 'logic'"):
            several.score([[1], [2]], [[3], [4]], tasks)  # type: ignore[arg-type]
    several.check(["logic", "math"])
    with pytest.raises(RladError, match="no teacher for 'chess', 'poetry'"):
        several.check(["poetry", "math", "chess", "poetry"])


def test_tasks_must_be_given_for_every_row() -> None:
    several = ByTask({"math": Scorer(1.0)})
    for tasks in (None, ["math"]):
        with pytest.raises(ValueError, match="2 prompts, 2 responses, but tasks"):
            several.score([[1], [2]], [[3], [4]], tasks)
    with pytest.raises(RladError, match="at least one teacher"):
        ByTask({})


def test_a_dataset_is_checked_as_a_whole() -> None:
    from datasets import Dataset

    several, rows = ByTask({"math": Scorer(1.0)}), Dataset.from_dict({"prompt": ["a", "b"], "task": ["math", "poetry"]})
    several.check_dataset(rows.select([0]))
    several.check_dataset(iter([]))
    with pytest.raises(RladError, match="no teacher for 'poetry'"):
        several.check_dataset(rows)
    with pytest.raises(RladError, match=r"column 'task', which the dataset does not have: it has prompt$"):
        several.check_dataset(rows.remove_columns("task"))
