"""The teacher: token ids in, log-probs of the sampled tokens out. It scores what the student wrote, nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Teacher"]


@runtime_checkable
class Teacher(Protocol):
    """Anything that scores responses. `rlad.teacher.local.LocalTeacher` is a model in this process."""

    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Tensor]:
        """log pi_T(y_t | x, y_<t) for each token of each response, in nats, at the student's temperature.

        prompts, responses: token ids of the vocabulary that teacher and student share, B of each. Returns B float32
        CPU tensors; the i-th has one value for each token of responses[i], in order, without a gradient.
        """
