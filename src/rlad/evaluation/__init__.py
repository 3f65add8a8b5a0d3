"""Evaluation: generate responses, score them, and say how sure one can be of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlad.evaluation.metrics import (
    average_interval,
    bootstrap_interval,
    mean_at_k,
    mean_interval,
    paired_difference,
    pass_at_k,
    sign_flip_p_value,
    wilson_interval,
)

if TYPE_CHECKING:
    from rlad.evaluation.generate import Response, generate_responses
    from rlad.evaluation.problems import PromptFormat, problem_id
    from rlad.evaluation.run import Evaluation, compare, evaluate, load_run

__all__ = [
    "Evaluation",
    "PromptFormat",
    "Response",
    "average_interval",
    "bootstrap_interval",
    "compare",
    "evaluate",
    "generate_responses",
    "load_run",
    "mean_at_k",
    "mean_interval",
    "paired_difference",
    "pass_at_k",
    "problem_id",
    "sign_flip_p_value",
    "wilson_interval",
]

_LAZY = {
    "Response": "rlad.evaluation.generate",
    "generate_responses": "rlad.evaluation.generate",
    "Evaluation": "rlad.evaluation.run",
    "compare": "rlad.evaluation.run",
    "PromptFormat": "rlad.evaluation.problems",
    "problem_id": "rlad.evaluation.problems",
    "evaluate": "rlad.evaluation.run",
    "load_run": "rlad.evaluation.run",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
