"""Reinforcement-aware knowledge distillation (arXiv 2602.22495): a small reasoning model, a reward and a teacher.

from rlad import RLADTrainer, RLADConfig   # a trl.GRPOTrainer whose ratio is anchored at the teacher
from rlad import objectives                # the methods as pure functions of log-probabilities
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlad.trainer.arguments import RLADConfig
    from rlad.trainer.trainer import RLADTrainer

__version__ = "0.1.0"
__all__ = ["RLADConfig", "RLADTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    # TRL and torch take seconds to import, and `rlad --help` needs neither.
    homes = {"RLADConfig": "rlad.trainer.arguments", "RLADTrainer": "rlad.trainer.trainer"}
    if name in homes:
        return getattr(import_module(homes[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
