"""RLADConfig: trl.GRPOConfig with a method, the paper's defaults, and what does not fit refused when it is made."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trl import GRPOConfig

from rlad.errors import RladError
from rlad.objectives import Method
from rlad.trainer.config import OUR_FIELDS
from rlad.trainer.messages import type_problem
from rlad.trainer.methods import make_method, method_options
from rlad.trainer.options import PAPER_DEFAULTS, cautions
from rlad.trainer.recorder import GROUPS
from rlad.trainer.rules import conflicts


@dataclass
class RLADConfig(GRPOConfig):
    """trl.GRPOConfig with the paper's defaults (rlad.trainer.options.PAPER_DEFAULTS) and fields of our own.

    method: a name ("rlad"), a mapping ({"name": "rlad", "alpha": 0.3}; as JSON on a command line), or a Method that
        rlad.objectives.METHODS has.
    advantage_std: "population" (RLAD Eq. 1) or "sample" (TRL's, without its 1e-4, for comparisons).
    max_broken_teacher: the largest share of tokens whose teacher log-prob is unusable before the run stops.
    trim_padding: leave padding out of every forward pass that can do without it (rlad.trainer.trim): gradients stay,
        seconds do not.
    groups: "keep" every group, or "refill" the batch: groups of equal rewards are dropped, and fresh prompts take their
        place (rlad.trainer.groups), in at most `refill_rounds` further generations.
    record_every: record `record_groups` groups with all their signals every so many updates (rlad.trainer.recorder), in
        `record_folder` (None: records below output_dir). 0 records nothing; `rlad train` records by default.

    Raises RladError for options that do not fit the objective (docs/trainer.md has the table).
    """

    loss_type: str = PAPER_DEFAULTS["loss_type"]
    epsilon: float = PAPER_DEFAULTS["epsilon"]
    epsilon_high: float | None = PAPER_DEFAULTS["epsilon_high"]
    use_bias_correction_kl: bool = PAPER_DEFAULTS["use_bias_correction_kl"]
    vllm_importance_sampling_mode: str = PAPER_DEFAULTS["vllm_importance_sampling_mode"]
    if TYPE_CHECKING:
        method: Any = "rlad"
    else:
        method: str = "rlad"  # what HfArgumentParser and TrlParser can read from a command line
    advantage_std: str = "population"
    max_broken_teacher: float = 0.01
    trim_padding: bool = True
    groups: str = "keep"
    refill_rounds: int = 4
    record_every: int = 0
    record_groups: int = GROUPS
    record_folder: str | None = None

    def __post_init__(self) -> None:
        self._settle_method()
        self._check_own_fields()
        super().__post_init__()
        method = self._check_together()
        for caution in cautions(self._values(), method.name):
            warnings.warn(caution, stacklevel=3)

    def check(self) -> None:
        """Ask again, after the fields were set one by one. Raises RladError for what does not fit."""
        self._settle_method()
        self._check_own_fields()
        self._check_together()

    def _settle_method(self) -> None:
        self.method, given = method_options(self.method, self.epsilon, self.epsilon_high), self.method
        method = make_method(self.method)
        self._refuse_two_clips(given, method)
        self.epsilon, self.epsilon_high = method.clip_low, method.clip_high

    def _check_own_fields(self) -> None:
        problems = [
            each for name, (hint, _) in OUR_FIELDS.items() for each in type_problem(name, hint, getattr(self, name))
        ]
        if problems:
            raise RladError("; ".join(problems))

    def _check_together(self) -> Method:
        method = make_method(self.method)
        if found := conflicts(self._values(), method, has_teacher=True, processes=self.world_size):
            raise RladError("; ".join(found))
        return method

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "method"}

    def _refuse_two_clips(self, given: Any, method: Method) -> None:
        """Where the method says its clip range, TRL's fields may only be left at their defaults, or say the same."""
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        for field, value, option in (("epsilon", self.epsilon, "clip_low"), ("epsilon_high", high, "clip_high")):
            told = isinstance(given, Method) or (isinstance(given, Mapping) and option in given)
            if told and value not in (PAPER_DEFAULTS[field], getattr(method, option)):
                raise RladError(
                    f"{field}={value} and the method's {option}={getattr(method, option)} contradict each other: the "
                    "clip range belongs to the method: leave epsilon and epsilon_high out"
                )
