"""Several teachers: each row is scored by the one that belongs to its task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlad.errors import RladError

if TYPE_CHECKING:
    from torch import Tensor


class ByTask:
    """Teachers by the value of a column of the dataset. See `rlad.teacher.Teacher`.

    teachers: task -> teacher. For `RLADTrainer` also anything that its teacher_model takes by name or as a model, or a
        mapping {"path": ..., and from_pretrained's options}.
    column: the column of the dataset that names the task of a row.

    The teachers score one after the other; a served one scores its rows concurrently.
    """

    def __init__(self, teachers: Mapping[str, Any], column: str = "task") -> None:
        if not teachers:
            raise RladError("by_task needs at least one teacher")
        self.teachers, self.column = dict(teachers), column

    def __repr__(self) -> str:
        return f"ByTask({self.teachers}, column={self.column!r})"

    def made_by(self, make: Callable[[Any], Any]) -> ByTask:
        """The same with each teacher replaced by `make(teacher)`."""
        return ByTask({task: make(each) for task, each in self.teachers.items()}, self.column)

    def check(self, tasks: Iterable[Any]) -> None:
        """Raise RladError, which names it, for a task that no teacher belongs to."""
        missing = sorted({repr(task) for task in tasks if task not in self.teachers})
        if missing:
            raise RladError(
                f"there is no teacher for {', '.join(missing)} in column {self.column!r}: teachers are for "
                f"{', '.join(map(repr, self.teachers))}"
            )

    def check_dataset(self, dataset: Any) -> None:
        """The same for a whole dataset before the first step. What a stream holds is only known when it comes."""
        if not hasattr(dataset, "unique"):
            return
        if self.column not in dataset.column_names:
            raise RladError(
                f"the teacher of a row is chosen by column {self.column!r}, which the dataset does not have: it has "
                f"{', '.join(dataset.column_names)}"
            )
        self.check(dataset.unique(self.column))

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        tasks: Sequence[str] | None = None,
    ) -> list[Tensor]:
        """See `rlad.teacher.Teacher`. tasks: the task of each of the B rows. RladError for one that has no teacher."""
        if tasks is None or not len(prompts) == len(responses) == len(tasks):
            count = "none" if tasks is None else len(tasks)
            raise ValueError(f"{len(prompts)} prompts, {len(responses)} responses, but tasks: {count}")
        self.check(tasks)
        scores: dict[int, Tensor] = {}
        for task, teacher in self.teachers.items():
            rows = [i for i, each in enumerate(tasks) if each == task]
            if rows:
                found = teacher.score([prompts[i] for i in rows], [responses[i] for i in rows])
                scores.update(zip(rows, found, strict=True))
        return [scores[i] for i in range(len(prompts))]
