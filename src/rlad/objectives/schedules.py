"""A number that changes over training, as a function of the fraction of the steps that is done."""

from __future__ import annotations

import math
from typing import Literal, get_args

Shape = Literal["constant", "linear", "cosine", "step"]


def scheduled(start: float, end: float, shape: Shape, progress: float, switch: float) -> float:
    """The value when the fraction `progress`, in [0, 1], of the steps is done.

    constant: `start`. linear: start + (end - start) progress. cosine: start + (end - start) (1 - cos(pi progress)) / 2,
    flat at both ends. step: `start` before the fraction `switch`, `end` from there on. Only step reads `switch`.
    """
    if shape == "constant":
        return start
    if shape == "step":
        return start if progress < switch else end
    done = progress if shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return (1 - done) * start + done * end  # exactly `end` at 1


def check_shape(shape: str, switch: float) -> None:
    """Refuse, with ValueError, a shape that there is not, and a switch outside (0, 1)."""
    if shape not in get_args(Shape):
        raise ValueError(f"shape is {shape!r}: choose one of {', '.join(get_args(Shape))}")
    if not 0 < switch < 1:
        raise ValueError(f"switch is {switch}: choose it inside (0, 1), the fraction of the steps before the change")
