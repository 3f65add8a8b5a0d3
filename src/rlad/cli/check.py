"""`rlad check`: what a recipe would run, and everything that is wrong with it, without loading a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rlad.cli.describe import description, local_config, local_tokenizer
from rlad.cli.train import OUTPUT, OVERRIDES, RECIPE, with_output
from rlad.errors import RladError

if TYPE_CHECKING:
    from rlad.offline.config import SftRecipe
    from rlad.trainer.config import Recipe
    from rlad.trainer.sections import ModelSpec, TeacherSpec


def check(
    recipe: Annotated[str, RECIPE],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    output: Annotated[str | None, OUTPUT] = None,
) -> int:
    """Say what a recipe would run, and everything that is wrong with it.

    Loads no model. A served teacher is asked what it serves, for 3 seconds at most.
    """
    from rlad.trainer.config import Recipe, RecipeError, find_recipe, read_recipe
    from rlad.trainer.options import cautions

    path, changes = find_recipe(recipe), with_output(overrides, output)
    try:
        if "sft" in read_recipe(path, changes):
            return _check_sft(recipe, path, changes)
        checked = Recipe.resolve(recipe, changes)
    except RecipeError as error:
        return _report(error.problems)
    problems = found_problems(checked)
    print(f"{'recipe':<10}{path}")
    for line in description(checked):
        print(line)
    for caution in [*cautions(checked.trainer, "trainer."), *_think_caution(checked), *_here(checked)]:
        print(f"caution: {caution}")
    return _report(problems)


def _check_sft(reference: str, path: Path, overrides: list[str]) -> int:
    from rlad.cli.check_sft import sft_description, sft_problems
    from rlad.offline.config import SftRecipe

    checked = SftRecipe.resolve(reference, overrides)
    for line in (f"{'recipe':<10}{path} (for rlad sft)", *sft_description(checked)):
        print(line)
    return _report(sft_problems(checked))


def _think_caution(recipe: Recipe) -> list[str]:
    task = recipe.task
    if task.get("scorer") != "logic-rl" or recipe.model.open_think == bool(task.get("prompt_ends_with_think")):
        return []
    return [
        "the scorer logic-rl counts the prompt's <think>: model.open_think and task.prompt_ends_with_think should "
        "agree (unless the chat template itself opens <think>)"
    ]


def _here(recipe: Recipe) -> list[str]:
    """What the recipe needs and this machine lacks: it may be checked here to be run elsewhere."""
    from importlib.util import find_spec

    found = []
    if _needs_gpu(recipe.trainer_arguments()):
        found.append(
            "this machine has no GPU: checked as for one that has; to train here set trainer.use_cpu=true and "
            "trainer.bf16=false"
        )
    if recipe.trainer.get("use_vllm") and find_spec("vllm") is None:
        found.append("trainer.use_vllm: vLLM is not installed here (pip install 'rlad[vllm]')")
    return found


def _needs_gpu(arguments: dict[str, Any]) -> bool:
    import torch

    return not arguments.get("use_cpu") and not torch.cuda.is_available()


def _report(problems: tuple[str, ...] | list[str]) -> int:
    sys.stdout.flush()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}: nothing would run", file=sys.stderr)
        return 2
    print("nothing wrong was found")
    return 0


def surroundings(recipe: Recipe | SftRecipe) -> list[str]:
    """A sentence for each thing that is not there, or is in the way: models, the tasks' data, the output folder."""
    from rlad.tasks import load_task
    from rlad.trainer.session import validation_task

    problems = model_problems("model", recipe.model) + teacher_problems("teacher", recipe.teacher)
    try:
        validation_task(recipe, load_task(recipe.task))
    except RladError as error:
        problems.append(str(error))
    if Path(recipe.output).exists() and not Path(recipe.output).is_dir():
        problems.append(f"output: {recipe.output} is a file")
    return problems


def found_problems(recipe: Recipe) -> list[str]:
    """What only the surroundings can tell: models that are not there, the task's options, TRL's own refusals."""
    from rlad.trainer.stages import stage_recipe

    problems = surroundings(recipe)
    if not problems:
        problems += _pair_problems(recipe)
    problems += _trl_problems(recipe.trainer_arguments(), recipe.method)
    for index in range(len(recipe.stages)):
        of_stage = found_problems(stage_recipe(recipe, index))
        problems += [f"stages.{index + 1}: {each}" for each in of_stage if each not in problems]
    return problems


def _pair_problems(recipe: Recipe) -> list[str]:
    """Why the teacher cannot score the student's tokens, as far as their files here tell."""
    from rlad.teacher.compatibility import length_problem
    from rlad.trainer.sections import ModelSpec, alignment

    teacher = recipe.teacher
    if not isinstance(teacher, ModelSpec) or not recipe.make_method().needs_teacher:
        return []
    problems = []
    ours, theirs = local_tokenizer(recipe.model), local_tokenizer(teacher)
    if ours is not None and theirs is not None:
        problems += _alignment_problems(ours, theirs, alignment(teacher))
    config = local_config(teacher)
    longest = int(recipe.trainer_arguments().get("max_completion_length") or 512)
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


def _trl_problems(arguments: dict[str, Any], method: dict[str, Any]) -> list[str]:
    """What TRL itself refuses when its configuration is made, which loads no model."""
    import warnings

    from rlad.trainer.arguments import RLADConfig

    if _needs_gpu(arguments):
        arguments = arguments | {"use_cpu": True}  # what else is wrong, for a machine with a GPU
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            RLADConfig(**arguments, method=method)
    except (RladError, ValueError, ImportError, NotImplementedError) as error:
        return [f"trainer: {' '.join(str(error).split())}"]
    return []
