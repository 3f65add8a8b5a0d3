"""The recipe: one YAML file that says what to train, checked whole before any model loads.

    model: embedded:student            # or {path, revision, dtype, attn_implementation, trust_remote_code, lora}
    teacher: embedded:teacher          # the same, or served: http://host:port (rlad.trainer.sections); or null
    task: knights_knaves               # or {name: ..., options}, or {prompts: file.jsonl, reward: "module:function"}
    method: {name: rlad, alpha: 0.5}   # or a bare name
    trainer: {max_steps: 40}           # any field of trl.GRPOConfig, OUR_FIELDS, and validate: {every: 20}
    evaluate: {puzzles: 200}           # before and after training; leave it out for no evaluation
    output: runs/mine
    seed: 0
    stages: [{trainer: {...}}, ...]    # or in one go (rlad.trainer.stages)

Dotted overrides (`method.alpha=0.3`) are read as YAML and win over the file. A value may refer to another: `${seed}`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic import Field as Limits

from rlad import layout
from rlad.errors import RladError
from rlad.trainer.messages import close_to, model_problems, type_problem, unknown_key
from rlad.trainer.options import PAPER_DEFAULTS
from rlad.trainer.rules import conflicts, in_parts
from rlad.trainer.sections import (
    EvaluateSpec,
    LocalTeacherSpec,
    Section,
    SharedBaseSpec,
    StudentSpec,
    TeacherSpec,
    ValidateSpec,
    expanded_teacher,
    read_teacher,
    served,
    validated,
)

if TYPE_CHECKING:
    from rlad.objectives import Method

PACKAGED = Path(__file__).parent.parent / "recipes"
STAGE_KEYS = ("teacher", "task", "method", "trainer", "evaluate")  # what a stage may change, beside the seed
SHORTHAND = {"model": "path", "task": "name", "method": "name"}
_EVALUATE = "say it with `evaluate`: TRL's own evaluation needs an eval_dataset, which a recipe cannot name"
# GRPOConfig fields that a recipe says elsewhere, so that there is one place for each thing.
SAID_ELSEWHERE: dict[str, str] = {
    "output_dir": "say it with `output`",
    "seed": "say it with `seed`",
    "model_init_kwargs": "say it with `model`: {path, revision, dtype, attn_implementation}",
    "trust_remote_code": "say it with `model.trust_remote_code`",
    "push_to_hub": "upload what is finished, with hf upload USER/NAME OUTPUT/model: checkpoints would go there too",
    "disable_tqdm": "leave it out: rlad train prints its own progress",
    **dict.fromkeys(("do_eval", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start"), _EVALUATE),
    "load_best_model_at_end": _EVALUATE,
}
# What a run that a recipe describes has in the place of transformers' default.
RUN_DEFAULTS: dict[str, Any] = {
    "logging_steps": 1,  # 10: curve and tables are of every step
    "ddp_timeout": 7_200,  # 1,800 seconds: while the first process evaluates the others wait
}
# Fields of RLADConfig that GRPOConfig does not have, beside `method`: (type, default), as grpo_fields has them.
OUR_FIELDS: dict[str, tuple[Any, Any]] = {
    "advantage_std": (Literal["population", "sample"], "population"),
    "max_broken_teacher": (float, 0.01),
    "trim_padding": (bool, True),
    "groups": (Literal["keep", "refill"], "keep"),
    "refill_rounds": (int, 4),
    "record_every": (int, 0),  # 5 in `rlad train` (rlad.trainer.recorder.EVERY)
    "record_groups": (int, 4),
    "record_folder": (str | None, None),
}


class RecipeError(RladError):
    """A recipe that cannot run. `problems` has one sentence for each thing that is wrong; the message, the first."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = len(self.problems) - 1
        super().__init__(self.problems[0] + (f" (and {more} more: `rlad check` lists them all)" if more else ""))


class RecipeFile(Section):
    """What both kinds of recipe have in common: they are read from a file, with overrides."""

    @classmethod
    def resolve(cls, reference: str, overrides: Sequence[str] = ()) -> Self:
        """Read a packaged recipe by name, or a recipe file by path, apply dotted overrides, and check it.

        Raises RladError for a recipe that is not there or is not YAML, and RecipeError with everything wrong in it.
        """
        path = find_recipe(reference)
        data = read_recipe(path, overrides)
        data.setdefault("output", f"runs/{path.parent.name if path.name == 'recipe.yaml' else path.stem}")
        return cls.from_mapping(data)

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Self:
        """Check plain data."""
        raise NotImplementedError


class Recipe(RecipeFile):
    """A recipe that has passed every check. Make one with `Recipe.resolve` or `Recipe.from_mapping`."""

    model: StudentSpec
    teacher: TeacherSpec | None = None
    task: dict[str, Any]
    method: dict[str, Any]
    trainer: dict[str, Any] = Limits(default_factory=dict)
    evaluate: EvaluateSpec | None = None
    output: str = Limits("runs/rlad", min_length=1)
    seed: int = Limits(0, ge=0)
    stages: list[dict[str, Any]] = Limits(default_factory=list)

    SECTIONS: ClassVar[dict[str, type[BaseModel]]] = {
        "model": StudentSpec,
        "evaluate": EvaluateSpec,
    }

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Self:
        """Check plain data, shorthands allowed. Raises RecipeError with everything that is wrong at once."""
        data = {key: expanded(key, value) for key, value in data.items()}
        teacher, problems = read_teacher(data.get("teacher"))
        recipe = None
        try:
            recipe = cls.model_validate({**data, "teacher": teacher})
        except ValidationError as error:
            problems += model_problems(error, cls, cls.SECTIONS)
        method, method_problems = _method(data.get("method"))
        problems += method_problems + task_problems(data.get("task"))
        if isinstance(data.get("trainer", {}), dict):
            problems += _trainer_problems(data.get("trainer", {}), method, data.get("teacher") is not None)
            problems += _temperature_problems(data.get("trainer", {}), method, teacher)
        if recipe is not None and isinstance(teacher, SharedBaseSpec) and recipe.model.lora is None:
            problems.append(
                "teacher.adapter: on the student's own base it needs a student that is trained as an adapter too, or "
                "that base would change: set model.lora, or give the teacher a path"
            )
        if recipe is not None:
            problems += process_problems(recipe)
        if problems or recipe is None:
            raise RecipeError(problems)
        if recipe.stages and (problems := _stage_problems(recipe)):
            raise RecipeError(problems)
        return recipe

    def make_method(self) -> Method:
        """The method that the recipe names, with its values."""
        method, _ = _method(self.method)
        assert method is not None  # checked when the recipe was made
        return method

    def trainer_arguments(self) -> dict[str, Any]:
        """GRPOConfig arguments: the paper's, then the recipe's, then those that other parts of the recipe decide."""
        method = self.make_method()
        clip = {"epsilon": method.clip_low, "epsilon_high": method.clip_high}
        given = {key: value for key, value in self.trainer.items() if key != "validate"}
        return {**RUN_DEFAULTS, **PAPER_DEFAULTS, **clip, **given, "output_dir": self.output, "seed": self.seed}

    def all_arguments(self) -> dict[str, Any]:
        """`trainer_arguments` with every other field at its default. Imports TRL, which takes seconds."""
        return {name: default for name, (_, default) in trainer_fields().items()} | self.trainer_arguments()

    @property
    def validate_spec(self) -> ValidateSpec | None:
        """What `trainer.validate` says, None where it is not there."""
        found, _ = validated(ValidateSpec, self.trainer.get("validate"), "trainer.validate")
        return found

    def to_yaml(self) -> str:
        """The recipe with its overrides and shorthands written out: reading it back gives an equal recipe."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def packaged_recipes() -> list[str]:
    """Names of the recipes that travel with the package."""
    return sorted(path.parent.name for path in PACKAGED.glob("*/recipe.yaml"))


def find_recipe(reference: str) -> Path:
    """The file of a recipe: a packaged name, a YAML file, or a folder that holds a recipe.yaml. Raises RladError."""
    if reference in packaged_recipes():
        return PACKAGED / reference / layout.RECIPE
    path = Path(reference).expanduser()
    if path.is_dir() and (path / layout.RECIPE).is_file():
        return path / layout.RECIPE
    if path.is_file():
        return path
    names = packaged_recipes()
    raise RladError(
        f"there is no recipe {reference!r}: it is no file, and the packaged recipes are {', '.join(names)}"
        f"{close_to(reference, names)}"
    )


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The data of a recipe file with overrides applied, unchecked. Raises RladError where either cannot be read."""
    try:
        config = OmegaConf.load(path)
        if not isinstance(config, DictConfig):
            raise RladError(f"{path}: a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}")
        for override in overrides:
            _override(config, override)
        data = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise RladError(f"{path}: {' '.join(str(error).split())}") from None
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def _override(config: DictConfig, override: str) -> None:
    """Apply one `key.sub=value`, the value read as YAML; a mapping replaces what was there."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        raise RladError(f"{override!r} is not an override: write key.sub=value, as in method.alpha=0.3")
    try:
        value = OmegaConf.from_dotlist([f"value={text}"])["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise RladError(f"{override!r}: the value is not YAML: {' '.join(str(error).split())}") from None
    section = key.split(".")[0]
    if section in (*SHORTHAND, "teacher") and isinstance(config.get(section), str):
        config[section] = expanded(section, config[section])
    OmegaConf.update(config, key, value, merge=False, force_add=True)


def expanded(section: str, value: Any) -> Any:
    """`rlad` as {name: rlad}, `embedded:student` as {path: embedded:student}; anything else unchanged."""
    if section == "teacher":
        return expanded_teacher(value)
    return {SHORTHAND[section]: value} if section in SHORTHAND and isinstance(value, str) else value


def processes() -> int:
    """How many there are of this one, as torchrun and accelerate launch set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_problems(recipe: Any) -> list[str]:
    """What cannot be done by several processes, or with a student that is spread over them. recipe: of either kind."""
    problems = []
    kind = in_parts(recipe.trainer)
    if kind and (recipe.evaluate or recipe.trainer.get("validate")):
        problems.append(
            f"{kind}: the student is in parts, and only the main process would evaluate it, while the others "
            "wait: set evaluate=null and trainer.validate=null, and use rlad evaluate afterwards"
        )
    if kind and isinstance(recipe.teacher, SharedBaseSpec):
        problems.append(
            f"{kind}: the base that teacher.adapter shares with the student is in parts, and processes score different "
            "numbers of batches, so they would wait for each other: give the teacher a path of its own"
        )
    if processes() > 1 and isinstance(recipe.teacher, LocalTeacherSpec) and recipe.teacher.device_map is not None:
        problems.append(
            f"teacher.device_map: each of {processes()} processes would spread a copy over the same GPUs: leave it "
            "out, or serve the teacher (rlad teacher serve)"
        )
    return problems


def task_problems(task: Any) -> list[str]:
    """The shape of the task section; its options are checked by the task itself (rlad.tasks.load_task)."""
    if not isinstance(task, dict):  # said already
        return []
    if isinstance(task.get("name"), str) or ("prompts" in task and "reward" in task):
        return []
    return ["task: needs `name` (knights_knaves, or package.module:Class), or both `prompts` and `reward`"]


def _method(data: Any) -> tuple[Method | None, list[str]]:
    """The method that the section names, or None with what is wrong."""
    from rlad.trainer.methods import checked_method

    return checked_method(data) if isinstance(data, dict) else (None, [])  # said already


@lru_cache(maxsize=1)
def grpo_fields() -> dict[str, tuple[Any, Any]]:
    """(type, default) of every field of the installed trl.GRPOConfig. Imports TRL, which takes seconds."""
    from trl.trainer.grpo_config import GRPOConfig

    hints = get_type_hints(GRPOConfig)
    hints["scale_rewards"] = str | bool  # as TRL documents it; its annotation says str
    return {field.name: (hints[field.name], field_default(field)) for field in fields(GRPOConfig)}


def trainer_fields() -> dict[str, tuple[Any, Any]]:
    """(type, default) of everything that `trainer` in a recipe may say: GRPOConfig's fields, and our own."""
    return grpo_fields() | OUR_FIELDS


def field_default(field: Field[Any]) -> Any:
    """The default of a dataclass field."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _temperature_problems(trainer: Mapping[Any, Any], method: Method | None, teacher: TeacherSpec | None) -> list[str]:
    temperature = trainer.get("temperature", 1)
    if not served(teacher) or (method is not None and not method.needs_teacher) or temperature == 1:
        return []
    from rlad.teacher.server import AT_TEMPERATURE_1

    return [f"trainer.temperature: {temperature!r} does not fit a served teacher: {AT_TEMPERATURE_1}"]


def field_problems(
    trainer: Mapping[Any, Any], known: Mapping[str, tuple[Any, Any]], elsewhere: Mapping[str, str], which: str
) -> tuple[list[str], dict[str, Any]]:
    """(a sentence for each entry of `trainer` that is wrong, the entries that are right without `validate`).

    known: (type, default) of each field. elsewhere: what to do with fields that are said elsewhere. which: `known` in
    words.
    """
    problems: list[str] = []
    good: dict[str, Any] = {}
    for key, value in trainer.items():
        dotted = f"trainer.{key}"
        if key == "validate":
            problems += validated(ValidateSpec, value, dotted)[1]
        elif key in elsewhere:
            problems.append(f"{dotted}: {elsewhere[key]}")
        elif key not in known:
            problems.append(unknown_key(dotted, list(known), which))
        elif wrong := type_problem(dotted, known[key][0], value):
            problems += wrong
        else:
            good[key] = value
    return problems, good


def _stage_problems(recipe: Recipe) -> list[str]:
    from rlad.trainer.stages import stage_recipe

    problems = []
    if recipe.model.lora is not None:
        problems.append(
            "stages: do not fit model.lora: each would put an adapter on the last one's; train them by hand"
        )
    for index, stage in enumerate(recipe.stages):
        where, allowed = f"stages.{index + 1}", [*STAGE_KEYS, "seed"]
        unknown = [unknown_key(f"{where}.{key}", allowed, "a stage may say") for key in stage if key not in allowed]
        problems += unknown
        if not unknown:
            try:
                stage_recipe(recipe, index)
            except RecipeError as error:
                problems += [f"{where}: {each}" for each in error.problems]
    return problems


def _trainer_problems(trainer: Mapping[Any, Any], method: Method | None, has_teacher: bool) -> list[str]:
    known = trainer_fields()
    problems, good = field_problems(trainer, known, SAID_ELSEWHERE, "any field of trl.GRPOConfig")
    if {"generation_batch_size", "steps_per_generation"} <= good.keys():
        problems.append("trainer: give generation_batch_size or steps_per_generation, not both (TRL derives the other)")
    if {"activation_checkpointing", "gradient_checkpointing"} <= good.keys():
        problems.append("trainer: give activation_checkpointing or gradient_checkpointing, not both (one is the other)")
    clip = {} if method is None else {"epsilon": method.clip_low, "epsilon_high": method.clip_high}
    values = {name: default for name, (_, default) in known.items()} | PAPER_DEFAULTS | clip | good
    return problems + conflicts(values, method, has_teacher, processes(), "trainer.")
