"""Combinations of trainer settings that cannot work, found before any model loads; and the arithmetic of a step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlad.trainer.options import refusals

if TYPE_CHECKING:
    from rlad.objectives import Method


SIZES = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_iterations",
    "num_generations",
    "generation_batch_size",
    "steps_per_generation",
)


@dataclass(frozen=True)
class Batches:
    """How rollouts become updates: counts of rollouts (responses) and of optimiser updates.

    rollouts: generated at once. rollouts_per_update: seen by one update. boundary: after every so many updates no
    generated batch is half used, and only there can a run go on from a checkpoint exactly.
    """

    rollouts: int
    rollouts_per_update: int
    boundary: int


def batches(values: Mapping[str, Any], processes: int = 1) -> Batches:
    """The arithmetic of TRL's GRPOTrainer for these GRPOConfig values.

    TRL generates once for `steps_per_generation` micro-batches and passes over them `num_iterations` times, so
    `steps_per_generation * num_iterations` micro-batches use a generated batch up, and an update takes
    `gradient_accumulation_steps` of them.
    """
    micro = int(values["per_device_train_batch_size"]) * processes
    accumulation = int(values["gradient_accumulation_steps"])
    if values.get("generation_batch_size") is not None:
        rollouts = int(values["generation_batch_size"])
    else:
        rollouts = micro * int(values.get("steps_per_generation") or accumulation)
    window = max(1, rollouts // micro) * int(values["num_iterations"])
    return Batches(rollouts, micro * accumulation, window // math.gcd(window, accumulation))


def in_parts(trainer: Mapping[str, Any]) -> str | None:
    """What spreads the student's weights over processes, None where each has all of them.

    trainer: a recipe's section. What accelerate launch was configured with stands in the environment.
    """
    if trainer.get("fsdp"):
        return "trainer.fsdp"
    if _is_on("ACCELERATE_USE_FSDP"):
        return "FSDP (accelerate's configuration)"
    if _zero_stage(trainer.get("deepspeed")) == 3:
        return "trainer.deepspeed (ZeRO-3)"
    if _is_on("ACCELERATE_USE_DEEPSPEED") and "3" in (
        os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"),
        str(_zero_stage(os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"))),
    ):
        return "ZeRO-3 (accelerate's configuration)"
    return None


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes", "on")


def _zero_stage(deepspeed: Any) -> int | None:
    """Of a DeepSpeed configuration, as a mapping or in a JSON file; None where there is none, or it does not say."""
    if isinstance(deepspeed, str):
        try:
            deepspeed = json.loads(Path(deepspeed).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError):  # DeepSpeed says what is wrong with it
            return None
    zero = deepspeed.get("zero_optimization") if isinstance(deepspeed, Mapping) else None
    return zero.get("stage") if isinstance(zero, Mapping) else None


def conflicts(
    values: Mapping[str, Any], method: Method | None, has_teacher: bool, processes: int = 1, prefix: str = ""
) -> list[str]:
    """One sentence, with what to do, for each thing in `values` that cannot work together; empty when all of it can.

    values: every field of RLADConfig that this module reads, defaults included. method: None leaves out what depends
    on it. prefix: as in options.refusals.
    """
    problems = refusals(values, prefix)
    if values["temperature"] <= 0:
        problems.append(f"{prefix}temperature: must be above 0, not {values['temperature']}: rollouts are sampled")
    if values["beta"] != 0 and values["use_bias_correction_kl"]:
        problems.append(
            f"{prefix}beta: {values['beta']} needs {prefix}use_bias_correction_kl: false (TRL's ratio, which would "
            "correct the reference KL, is held at 1 under our objective)"
        )
    if method is not None:
        problems += _method_conflicts(values, method, has_teacher, prefix)
    return problems + _own_conflicts(values, prefix) + _batch_conflicts(values, processes, prefix)


def _own_conflicts(values: Mapping[str, Any], prefix: str) -> list[str]:
    """Of the fields that TRL does not have; `values` may be TRL's alone."""
    problems = []
    if values.get("refill_rounds", 1) < 1:
        problems.append(
            f"{prefix}refill_rounds: must be at least 1, not {values['refill_rounds']}: to drop no group, "
            f"{prefix}groups=keep"
        )
    if values.get("record_every", 0) < 0 or values.get("record_groups", 1) < 1:
        problems.append(
            f"{prefix}record_every must be at least 0 (0 records nothing) and {prefix}record_groups at least 1, not "
            f"{values['record_every']} and {values['record_groups']}"
        )
    if not 0 <= values.get("max_broken_teacher", 0) <= 1:  # NaN is not either
        problems.append(f"{prefix}max_broken_teacher: must be a share from 0 to 1, not {values['max_broken_teacher']}")
    if values.get("trim_padding") and isinstance(values.get("pad_to_multiple_of"), int):  # not TRL's "auto"
        problems.append(
            f"{prefix}pad_to_multiple_of: trim_padding cuts it off again: set {prefix}trim_padding=false, or leave it "
            "out"
        )
    if values["save_total_limit"] == 1 and values["save_strategy"] != "no":
        problems.append(
            f"{prefix}save_total_limit: 1 would remove the last checkpoint before the next is whole: keep at least 2"
        )
    return problems


def _method_conflicts(values: Mapping[str, Any], method: Method, has_teacher: bool, prefix: str) -> list[str]:
    problems = []
    if method.needs_teacher and not has_teacher:
        problems.append(f"teacher: method {method.name} needs one and there is none: name one, or use method grpo")
    if method.name == "hdpo" and values.get("groups") == "refill":
        problems.append(
            f"{prefix}groups: refill drops the groups that are all wrong, which are those that hdpo is for: use keep"
        )
    return problems + _clip_conflicts(values, method, prefix)


def _clip_conflicts(values: Mapping[str, Any], method: Method, prefix: str) -> list[str]:
    high = values["epsilon"] if values["epsilon_high"] is None else values["epsilon_high"]
    pairs = (("epsilon", values["epsilon"], "clip_low"), ("epsilon_high", high, "clip_high"))
    return [
        f"{prefix}{field}: {value} disagrees with method.{ours} = {getattr(method, ours)}: set method.{ours} instead"
        for field, value, ours in pairs
        if not math.isclose(value, getattr(method, ours))
    ]


def _batch_conflicts(values: Mapping[str, Any], processes: int, prefix: str) -> list[str]:
    small = [name for name in SIZES if values.get(name) is not None and values[name] < 1]
    if small:
        return [f"{prefix}{name}: must be at least 1, not {values[name]}" for name in small]
    problems = []
    group, micro = values["num_generations"], values["per_device_train_batch_size"] * processes
    if group is None or group < 2:
        problems.append(f"{prefix}num_generations: a group needs at least 2 responses for an advantage, not {group}")
        return problems
    plan = batches(values, processes)
    if plan.rollouts % micro:
        problems.append(
            f"{prefix}generation_batch_size: {plan.rollouts} must be a multiple of a micro-batch's {micro} rollouts "
            f"(per_device_train_batch_size x {processes} process{'es' if processes > 1 else ''})"
        )
        return problems
    if plan.rollouts % group:
        problems.append(
            f"{prefix}num_generations: a generation batch of {plan.rollouts} rollouts does not hold whole groups of "
            f"{group}: make per_device_train_batch_size x gradient_accumulation_steps (or generation_batch_size) a "
            f"multiple of {group}"
        )
    own = plan.rollouts // processes
    if values.get("groups") == "refill" and own % group:
        problems.append(
            f"{prefix}groups: refill needs whole groups in each process, and {own} rollouts are no multiple of "
            f"num_generations = {group}"
        )
    return problems + _checkpoint_conflicts(values, plan.boundary, prefix)


def _checkpoint_conflicts(values: Mapping[str, Any], boundary: int, prefix: str) -> list[str]:
    """Saving where a generated batch is half used: TRL does not keep it, and a resumed run would silently differ."""
    strategy = getattr(values["save_strategy"], "value", values["save_strategy"])
    if boundary == 1 or strategy == "no":
        return []
    reason = f"a generated batch is used up only after every {boundary} updates, and checkpoints exist only there"
    if strategy == "best":
        return [f"{prefix}save_strategy: best can save anywhere, but {reason}: use steps"]
    problems, last, steps = [], values["max_steps"], values["save_steps"]
    if strategy == "steps":
        if 0 < steps < 1:  # a share of the run, as transformers reads it
            steps = math.ceil(last * steps) if last > 0 else steps
        if steps % boundary:
            problems.append(f"{prefix}save_steps: {values['save_steps']} must be a multiple of {boundary}: {reason}")
    if last > 0 and last % boundary:
        problems.append(f"{prefix}max_steps: {last} must be a multiple of {boundary}: {reason}")
    return problems
