"""The recipe of `rlad sft`: the same file as `rlad train`'s, with `sft` in the place of `method`.

model: embedded:student
teacher: embedded:teacher          # null: train on the traces that are there
task: knights_knaves
sft: {samples: 4, per_problem: 2}  # how traces are made, and where they are kept
trainer: {max_steps: 40}           # any field of trl.SFTConfig, and validate: {every: 20}
evaluate: {puzzles: 200}
output: runs/mine
seed: 0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self, get_type_hints

import yaml
from pydantic import BaseModel, ValidationError
from pydantic import Field as Limits

from rlad.errors import RladError
from rlad.trainer.config import (
    RUN_DEFAULTS,
    SAID_ELSEWHERE,
    RecipeError,
    RecipeFile,
    expanded,
    field_default,
    field_problems,
    process_problems,
    task_problems,
)
from rlad.trainer.messages import model_problems
from rlad.trainer.sections import (
    EvaluateSpec,
    LocalTeacherSpec,
    Section,
    ServerSpec,
    StudentSpec,
    TeacherSpec,
    ValidateSpec,
    alignment,
    read_teacher,
    validated,
)

DEFAULTS: dict[str, Any] = {
    **RUN_DEFAULTS,
    "completion_only_loss": True,
    "max_length": None,  # TRL: 1024
    "report_to": "none",
}
_OURS = "leave it out: rlad writes the prompt and the response as token ids before TRL sees them"
# SFTConfig fields that a recipe says elsewhere, or that would change what is trained on.
NOT_HERE: dict[str, str] = {
    **SAID_ELSEWHERE,
    "completion_only_loss": "leave it out: the loss is of the response alone",
    "assistant_only_loss": "leave it out: the loss is of the response alone",
    **dict.fromkeys(
        ("dataset_text_field", "dataset_kwargs", "chat_template_path", "eos_token", "pad_token", "eval_packing"), _OURS
    ),
}


class SftSpec(Section):
    """How traces are made and which are trained on.

    traces: their folder, which a later run goes on from or reuses; None: OUTPUT-traces. problems: how many of the
    task's training problems, the first ones; None: all. samples: to each. per_problem: kept of one problem at most.
    seed: of the sampling; None: the recipe's. backend: what generates with a teacher in this process.
    chat_template_kwargs: options of the chat template, for the teacher's prompts and the student's.
    """

    traces: str | None = Limits(None, min_length=1)
    problems: int | None = Limits(None, ge=1)
    samples: int = Limits(4, ge=1)
    per_problem: int = Limits(2, ge=1)
    temperature: float = Limits(1.0, ge=0, allow_inf_nan=False)
    top_p: float = Limits(1.0, gt=0, le=1)
    max_new_tokens: int = Limits(512, ge=1)
    batch_size: int = Limits(64, ge=1)
    seed: int | None = Limits(None, ge=0)
    backend: Literal["transformers", "vllm"] = "transformers"
    chat_template_kwargs: dict[str, Any] = Limits(default_factory=dict)


# What is said of traces that are made; without a teacher they are there already.
MAKING = ("problems", "samples", "per_problem", "temperature", "top_p", "batch_size", "seed", "backend")


class SftRecipe(RecipeFile):
    """A recipe that has passed every check. Make one with `SftRecipe.resolve` or `SftRecipe.from_mapping`."""

    model: StudentSpec
    teacher: TeacherSpec | None = None
    task: dict[str, Any]
    sft: SftSpec = SftSpec.model_validate({})
    trainer: dict[str, Any] = Limits(default_factory=dict)
    evaluate: EvaluateSpec | None = None
    output: str = Limits("runs/sft", min_length=1)
    seed: int = Limits(0, ge=0)

    SECTIONS: ClassVar[dict[str, type[BaseModel]]] = {"model": StudentSpec, "evaluate": EvaluateSpec, "sft": SftSpec}

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Self:
        """Check plain data, shorthands allowed. Raises RladError with everything that is wrong at once."""
        if "method" in data:
            raise RladError("method: is for rlad train; a recipe of rlad sft says `sft` in its place")
        data = {key: expanded(key, value) for key, value in data.items()}
        teacher, problems = read_teacher(data.get("teacher"))
        recipe = None
        try:
            recipe = cls.model_validate({**data, "teacher": teacher})
        except ValidationError as error:
            problems += model_problems(error, cls, cls.SECTIONS)
        problems += task_problems(data.get("task"))
        if isinstance(data.get("trainer", {}), dict):
            problems += _trainer_problems(data.get("trainer", {}))
        if recipe is not None and not problems:
            problems += _teacher_problems(teacher, recipe.sft) + process_problems(recipe)
        if problems or recipe is None:
            raise RecipeError(problems)
        return recipe

    def trainer_arguments(self) -> dict[str, Any]:
        """SFTConfig arguments."""
        given = {key: value for key, value in self.trainer.items() if key != "validate"}
        return {**DEFAULTS, **given, "output_dir": self.output, "seed": self.seed}

    def all_arguments(self) -> dict[str, Any]:
        """`trainer_arguments` with every other field at its default. Imports TRL, which takes seconds."""
        return {name: default for name, (_, default) in sft_fields().items()} | self.trainer_arguments()

    @property
    def validate_spec(self) -> ValidateSpec | None:
        """What `trainer.validate` says, None where it is not there."""
        return validated(ValidateSpec, self.trainer.get("validate"), "trainer.validate")[0]

    @property
    def traces(self) -> str:
        """The folder of the traces. Not in the output's: that is renamed when it is trained again."""
        return self.sft.traces or f"{self.output}-traces"

    def to_yaml(self) -> str:
        """The recipe with its overrides and shorthands written out: reading it back gives an equal recipe."""
        data = self.model_dump()
        data["sft"] = self.sft.model_dump(exclude_unset=True)  # without a teacher, what is not said must stay so
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


@lru_cache(maxsize=1)
def sft_fields() -> dict[str, tuple[Any, Any]]:
    """(type, default) of every field of the installed trl.SFTConfig. Imports TRL, which takes seconds."""
    from trl.trainer.sft_config import SFTConfig

    hints = get_type_hints(SFTConfig)
    return {field.name: (hints[field.name], field_default(field)) for field in fields(SFTConfig)}


def _trainer_problems(trainer: Mapping[Any, Any]) -> list[str]:
    return field_problems(trainer, sft_fields(), NOT_HERE, "any field of trl.SFTConfig")[0]


def _teacher_problems(teacher: TeacherSpec | None, sft: SftSpec) -> list[str]:
    if teacher is None:
        if sft.traces is None:
            return ["teacher: is missing: name one, or the folder of its traces in sft.traces"]
        idle = [f"sft.{name}" for name in MAKING if name in sft.model_fields_set]
        return [f"{', '.join(idle)}: without a teacher the traces are taken as they are: leave it out"] if idle else []
    if not isinstance(teacher, (LocalTeacherSpec, ServerSpec)):
        return ["teacher: rlad sft samples from one whole model: give its path, or the url of one that is served"]
    if alignment(teacher) != "tokens":
        return ["teacher.alignment: leave it out: only text goes from teacher to student, so any tokenizer will do"]
    if isinstance(teacher, ServerSpec):
        return _served_problems(teacher, sft)
    if sft.backend == "vllm" and (teacher.quantization or teacher.device_map or teacher.attn_implementation):
        return ["sft.backend: vllm takes no quantization, device_map or attn_implementation of transformers'"]
    if sft.temperature == 0 and sft.samples > 1:
        return [f"sft.samples: at temperature 0 all {sft.samples} samples of a problem are the same: ask for 1"]
    return []


def _served_problems(teacher: ServerSpec, sft: SftSpec) -> list[str]:
    if len(teacher.addresses) > 1:
        return ["teacher.urls: rlad sft samples from one server: give url"]
    if teacher.tokenizer is None:
        return ["teacher.tokenizer: say the hub id or path of the served teacher's tokenizer, which writes its prompts"]
    if "backend" in sft.model_fields_set:
        return ["sft.backend: leave it out: a served teacher is what generates"]
    return []
