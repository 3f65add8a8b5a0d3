"""Evaluation: generate responses, score them, and say how sure one can be of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlad.evaluation.metrics import (
    average_interval,
    mean_at_k,
    mean_interval,
    paired_difference,
    pass_at_k,
    wilson_interval,
)

if TYPE_CHECKING:
    from rlad.evaluation.generate import Response, generate_responses
    from rlad.evaluation.run import Evaluation, compare, evaluate

__all__ = [
    "Evaluation",
    "Response",
    "average_interval",
    "compare",
    "evaluate",
    "generate_responses",
    "mean_at_k",
    "mean_interval",
    "paired_difference",
    "pass_at_k",
    "wilson_interval",
]

_LAZY = {
    "Response": "rlad.evaluation.generate",
    "generate_responses": "rlad.evaluation.generate",
    "Evaluation": "rlad.evaluation.run",
    "compare": "rlad.evaluation.run",
    "evaluate": "rlad.evaluation.run",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
