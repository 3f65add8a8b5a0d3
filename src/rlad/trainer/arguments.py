"""RLADConfig: trl.GRPOConfig with a method, the paper's defaults, and what does not fit refused when it is made."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trl import GRPOConfig

from rlad.errors import RladError
from rlad.objectives import METHODS, Method
from rlad.trainer.options import PAPER_DEFAULTS, cautions
from rlad.trainer.recorder import GROUPS
from rlad.trainer.rules import conflicts


@dataclass
class RLADConfig(GRPOConfig):
    """trl.GRPOConfig with the paper's defaults (rlad.trainer.options.PAPER_DEFAULTS) and fields of our own.

    method: a name ("rlad"), a mapping ({"name": "rlad", "alpha": 0.3}), or a Method of rlad.objectives.
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
    method: Any = "rlad"
    advantage_std: str = "population"
    max_broken_teacher: float = 0.01
    trim_padding: bool = True
    groups: str = "keep"
    refill_rounds: int = 4
    record_every: int = 0
    record_groups: int = GROUPS
    record_folder: str | None = None

    def __post_init__(self) -> None:
        self.method, given = method_options(self.method, self.epsilon, self.epsilon_high), self.method
        method = make_method(self.method)
        self._refuse_two_clips(given, method)
        self.epsilon, self.epsilon_high = method.clip_low, method.clip_high
        if self.advantage_std not in ("population", "sample"):
            raise RladError(f"advantage_std must be population or sample, not {self.advantage_std!r}")
        if self.groups not in ("keep", "refill"):
            raise RladError(f"groups must be keep or refill, not {self.groups!r}")
        super().__post_init__()
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "method"}
        if found := conflicts(values, method, has_teacher=True, processes=self.world_size):
            raise RladError("; ".join(found))
        for caution in cautions(values, method.name):
            warnings.warn(caution, stacklevel=3)

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


def method_options(method: Any, epsilon: float, epsilon_high: float | None) -> dict[str, Any]:
    """A method as plain options, so that a config can be saved. The clip range comes from the method where it is given
    there, and else from TRL's epsilon and epsilon_high. Raises RladError for an unknown method or option."""
    if isinstance(method, Method):
        return {"name": method.name, **asdict(method)}
    if isinstance(method, str):
        method = {"name": method}
    if not isinstance(method, Mapping) or method.get("name") not in METHODS:
        raise RladError(
            f"method must be one of {', '.join(METHODS)}, a mapping with such a name, or a Method: {method!r}"
        )
    clip = {"clip_low": epsilon, "clip_high": epsilon if epsilon_high is None else epsilon_high}
    options = {**clip, **method}
    return {"name": options["name"], **asdict(make_method(options))}


def make_method(options: Mapping[str, Any]) -> Method:
    """The Method that `method_options` describes. Raises RladError with what is wrong in it."""
    kind = METHODS[options["name"]]
    try:
        return kind(**{key: value for key, value in options.items() if key != "name"})
    except (TypeError, ValueError) as error:
        raise RladError(f"method {options['name']}: {error}") from None
