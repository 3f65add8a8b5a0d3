"""What is wrong with a recipe that only its surroundings can tell: models, data, tokenizers, TRL's own refusals.

`rlad check` says all of it, and `rlad compare` asks before the first cell of a study. No model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlad.errors import RladError

if TYPE_CHECKING:
    from rlad.offline.config import SftRecipe
    from rlad.trainer.config import Recipe
    from rlad.trainer.sections import ModelSpec, TeacherSpec


def found_problems(recipe: Recipe, here: bool = False) -> list[str]:
    """A sentence for each thing that a run of the recipe would stumble over.

    here: it is to run on this machine, so that a GPU which the recipe asks for must be in it.
    """
    from rlad.trainer.run import arguments_of, prepared
    from rlad.trainer.stages import stage_recipe

    problems = surroundings(recipe, lambda: prepared(recipe))
    if not problems:
        problems += _pair_problems(recipe)
    problems += _trl_problems(recipe, here, arguments_of)
    for index in range(len(recipe.stages)):
        of_stage = found_problems(stage_recipe(recipe, index), here)
        problems += [f"stages.{index + 1}: {each}" for each in of_stage if each not in problems]
    return problems


def sft_problems(recipe: SftRecipe, here: bool = False) -> list[str]:
    """The same of a recipe of `rlad sft`."""
    from rlad.offline.sft import arguments_of, trace_examples
    from rlad.tasks import load_task
    from rlad.trainer.session import check_data

    def read() -> None:
        task = load_task(recipe.task)
        check_data(recipe, task)
        if recipe.teacher is not None:
            trace_examples(recipe, task)

    problems = surroundings(recipe, read)
    if recipe.teacher is None and not Path(recipe.traces).is_dir():
        problems.append(f"sft.traces: there is no folder {recipe.traces}, and no teacher to make it with")
    return problems + _trl_problems(recipe, here, arguments_of)


def evaluation_problems(recipe: Recipe) -> list[str]:
    """The same of the evaluation of a recipe's model, as it is."""
    from rlad.tasks import load_task
    from rlad.trainer.session import check_data

    problems = model_problems("model", recipe.model)
    return problems + _data_problems(recipe, lambda: check_data(recipe, load_task(recipe.task)))


def surroundings(recipe: Recipe | SftRecipe, read: Callable[[], object]) -> list[str]:
    """What is not there, or is in the way: models, the task's options and data (see _data_problems), the output."""
    problems = model_problems("model", recipe.model) + teacher_problems("teacher", recipe.teacher)
    problems += _data_problems(recipe, read)
    if Path(recipe.output).exists() and not Path(recipe.output).is_dir():
        problems.append(f"output: {recipe.output} is a file")
    return problems


def _data_problems(recipe: Recipe | SftRecipe, read: Callable[[], object]) -> list[str]:
    """What is wrong with the task's options, and, where its data are on this disk, with these: `read` reads them."""
    from rlad.tasks import load_task
    from rlad.trainer.session import validation_task

    try:
        task = load_task(recipe.task)
        validated = validation_task(recipe, task)
        if all(getattr(each, "is_local", False) for each in (task, validated)):
            read()
    except RladError as error:
        return [str(error)]
    return []


def _pair_problems(recipe: Recipe) -> list[str]:
    """Why the teacher cannot score the student's tokens, as far as their files here tell."""
    from rlad.teacher.compatibility import length_problem
    from rlad.trainer.sections import ModelSpec, alignment

    teacher = recipe.teacher
    if not isinstance(teacher, ModelSpec) or not recipe.make_method().needs_teacher:
        return []
    problems = []
    try:
        ours, theirs = local_tokenizer(recipe.model), local_tokenizer(teacher)
    except RladError as error:
        return [str(error)]
    if ours is not None and theirs is not None:
        problems += _alignment_problems(ours, theirs, alignment(teacher))
    config = local_config(teacher)
    longest = recipe.all_arguments()["max_completion_length"]
    if config is not None and (problem := length_problem(config, longest)):
        problems.append(f"teacher: {problem}")
    return problems


def _alignment_problems(ours: Any, theirs: Any, how: str) -> list[str]:
    from rlad.teacher.compatibility import tokenizer_differences
    from rlad.teacher.spans import cannot_align

    differences = tokenizer_differences(ours, theirs)
    if not differences:
        return []
    if how == "spans":
        return [f"teacher.alignment: {each}" for each in [cannot_align(ours, theirs)] if each]
    return [f"teacher: {'; '.join(differences)}: choose another, or align the two on the text with alignment: spans"]


def model_problems(role: str, spec: ModelSpec) -> list[str]:
    """A sentence where a model should be in a folder and is not. role: its section of the recipe."""
    return _path_problems(f"{role}.path", spec.path, "config.json")


def _path_problems(key: str, path: str, needed: str) -> list[str]:
    """What is wrong with a folder that should hold the file `needed`; a hub id is left to the hub."""
    from rlad.models import resolve

    try:
        found = Path(resolve(path)).expanduser()
    except RladError as error:
        return [f"{key}: {error}"]
    if found.is_dir():
        return [] if (found / needed).is_file() else [f"{key}: {found} holds no {needed}"]
    if path.startswith(("embedded:", "/", ".", "~")) or path.count("/") > 1:  # no hub id looks like that
        return [f"{key}: there is no folder {found}"]
    return []


def teacher_problems(role: str, spec: TeacherSpec | None) -> list[str]:
    """A sentence for each part of a teacher (model, adapter, key, tokenizer) that is not where the section says."""
    from rlad.teacher.local import WEIGHTS
    from rlad.teacher.transport import read_key
    from rlad.trainer.sections import ByTaskSpec, LocalTeacherSpec, SharedBaseSpec

    if spec is None:
        return []
    if isinstance(spec, SharedBaseSpec):
        return _path_problems(f"{role}.adapter", spec.adapter, WEIGHTS)
    if isinstance(spec, LocalTeacherSpec):
        adapter = _path_problems(f"{role}.adapter", spec.adapter, WEIGHTS) if spec.adapter is not None else []
        return model_problems(role, spec) + adapter
    if isinstance(spec, ByTaskSpec):
        return [p for task, one in spec.by_task.items() for p in teacher_problems(f"{role}.by_task.{task}", one)]
    problems = []
    try:
        read_key(spec.api_key_env)
    except RladError as error:
        problems.append(f"{role}.{error}")
    if spec.tokenizer is not None:
        problems += _path_problems(f"{role}.tokenizer", spec.tokenizer, "tokenizer_config.json")
    return problems


def _trl_problems(recipe: Any, here: bool, arguments_of: Callable[[Any, Path], object]) -> list[str]:
    """What TRL itself refuses when its configuration is made, which loads no model."""
    import warnings

    from rlad.trainer.session import check_one_gpu

    if not here and needs_gpu(recipe.trainer_arguments()):  # what else is wrong, for a machine with a GPU
        recipe = recipe.model_copy(update={"trainer": {**recipe.trainer, "use_cpu": True}})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = arguments_of(recipe, Path(recipe.output))
        if here:
            check_one_gpu(arguments)
    except RladError as error:
        return [str(error)]
    return []


def needs_gpu(arguments: Mapping[str, Any]) -> bool:
    """Whether a run with these arguments takes a GPU, and there is none."""
    import torch

    return not arguments.get("use_cpu") and not torch.cuda.is_available()


def local_tokenizer(spec: ModelSpec) -> Any:
    """A tokenizer that is here, or None. Raises RladError where it lacks the student's `eos_token`."""
    from transformers import AutoTokenizer

    from rlad.models import resolve
    from rlad.trainer.sections import StudentSpec
    from rlad.trainer.session import end_with

    try:
        found = AutoTokenizer.from_pretrained(
            resolve(spec.path),
            revision=spec.revision,
            local_files_only=True,
            trust_remote_code=spec.trust_remote_code,
        )
    except (OSError, ValueError):
        return None
    if isinstance(spec, StudentSpec) and spec.eos_token is not None:
        end_with(found, spec.eos_token)
    return found


def local_config(spec: ModelSpec) -> Any:
    """The configuration of a model that is on this disk, or None."""
    from transformers import AutoConfig

    from rlad.models import resolve

    try:
        return AutoConfig.from_pretrained(resolve(spec.path), revision=spec.revision, local_files_only=True)
    except (OSError, ValueError):
        return None
