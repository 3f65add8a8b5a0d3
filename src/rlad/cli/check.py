"""`rlad check`: what a recipe would run, and everything that is wrong with it, without loading a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rlad.cli.memory import memory
from rlad.cli.train import OUTPUT, OVERRIDES, RECIPE, with_output
from rlad.errors import RladError

if TYPE_CHECKING:
    from rlad.trainer.config import Recipe
    from rlad.trainer.sections import ModelSpec, ServerSpec, SharedBaseSpec, TeacherSpec


def check(
    recipe: Annotated[str, RECIPE],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    output: Annotated[str | None, OUTPUT] = None,
) -> int:
    """Say what a recipe would run, and everything that is wrong with it.

    Loads no model. A served teacher is asked what it serves, for 3 seconds at most.
    """
    from rlad.trainer.config import Recipe, RecipeError, find_recipe
    from rlad.trainer.options import cautions

    try:
        checked = Recipe.resolve(recipe, with_output(overrides, output))
    except RecipeError as error:
        return _report(error.problems)
    problems = found_problems(checked)
    print(f"{'recipe':<10}{find_recipe(recipe)}")
    for line in description(checked):
        print(line)
    for caution in [*cautions(checked.trainer, "trainer."), *_think_caution(checked), *_here(checked)]:
        print(f"caution: {caution}")
    return _report(problems)


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


def found_problems(recipe: Recipe) -> list[str]:
    """What only the surroundings can tell: models that are not there, the task's options, TRL's own refusals."""
    from rlad.tasks import load_task

    problems = _model_problems("model", recipe.model) + _teacher_problems("teacher", recipe.teacher)
    try:
        load_task(recipe.task)
    except RladError as error:
        problems.append(str(error))
    if Path(recipe.output).exists() and not Path(recipe.output).is_dir():
        problems.append(f"output: {recipe.output} is a file")
    if not problems:
        problems += _pair_problems(recipe)
    return problems + _trl_problems(recipe.trainer_arguments(), recipe.method)


def _pair_problems(recipe: Recipe) -> list[str]:
    """Why the teacher cannot score the student's tokens, as far as their files here tell."""
    from rlad.teacher.compatibility import length_problem
    from rlad.trainer.sections import ModelSpec, alignment

    teacher = recipe.teacher
    if not isinstance(teacher, ModelSpec) or not recipe.make_method().needs_teacher:
        return []
    problems = []
    ours, theirs = _tokenizer(recipe.model), _tokenizer(teacher)
    if ours is not None and theirs is not None:
        problems += _alignment_problems(ours, theirs, alignment(teacher))
    config = _config(teacher)
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


def _pair_notes(recipe: Recipe) -> list[str]:
    """What was compared of student and teacher, and what to know although it is no error."""
    from rlad.teacher.compatibility import template_difference
    from rlad.trainer.sections import ModelSpec, alignment

    teacher = recipe.teacher
    if not isinstance(teacher, ModelSpec) or not recipe.make_method().needs_teacher:
        return []
    ours, theirs = _tokenizer(recipe.model), _tokenizer(teacher)
    if ours is None or theirs is None:
        return [f"{'':<10}tokenizers are compared when they load: not both are on this disk"]
    note = template_difference(ours, theirs) or "the chat templates agree"
    if alignment(teacher) == "spans":
        note = "tokens are aligned in spans, where the tokenizers differ; the teacher's prompts are in its own template"
    return [f"{'':<10}{note}"]


def _tokenizer(spec: ModelSpec) -> Any:
    """A tokenizer that is here, or None."""
    from transformers import AutoTokenizer

    from rlad.models import resolve

    try:
        return AutoTokenizer.from_pretrained(
            resolve(spec.path),
            revision=spec.revision,
            local_files_only=True,
            trust_remote_code=spec.trust_remote_code,
        )
    except (OSError, ValueError):
        return None


def _config(spec: ModelSpec) -> Any:
    from transformers import AutoConfig

    from rlad.models import resolve

    try:
        return AutoConfig.from_pretrained(resolve(spec.path), revision=spec.revision, local_files_only=True)
    except (OSError, ValueError):
        return None


def _model_problems(role: str, spec: ModelSpec) -> list[str]:
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


def _teacher_problems(role: str, spec: TeacherSpec | None) -> list[str]:
    from rlad.teacher.local import WEIGHTS
    from rlad.teacher.transport import read_key
    from rlad.trainer.sections import ByTaskSpec, LocalTeacherSpec, SharedBaseSpec

    if spec is None:
        return []
    if isinstance(spec, SharedBaseSpec):
        return _path_problems(f"{role}.adapter", spec.adapter, WEIGHTS)
    if isinstance(spec, LocalTeacherSpec):
        adapter = _path_problems(f"{role}.adapter", spec.adapter, WEIGHTS) if spec.adapter is not None else []
        return _model_problems(role, spec) + adapter
    if isinstance(spec, ByTaskSpec):
        return [p for task, one in spec.by_task.items() for p in _teacher_problems(f"{role}.by_task.{task}", one)]
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

    from rlad.trainer.trainer import RLADConfig

    if _needs_gpu(arguments):
        arguments = arguments | {"use_cpu": True}  # what else is wrong, for a machine with a GPU
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            RLADConfig(**arguments, method=method)
    except (RladError, ValueError, ImportError, NotImplementedError) as error:
        return [f"trainer: {' '.join(str(error).split())}"]
    return []


def description(recipe: Recipe) -> list[str]:
    """What would run, one fact a line."""
    arguments = recipe.trainer_arguments()
    return [
        f"{'student':<10}{_model(recipe.model)}",
        *_teacher(recipe),
        *_pair_notes(recipe),
        *_method(recipe),
        f"{'task':<10}{_options(recipe.task)}",
        *_steps(arguments),
        *_differences(arguments),
        f"{'evaluate':<10}{_evaluation(recipe)}",
        *_validation(recipe),
        *_stages(recipe),
        f"{'output':<10}{_output(recipe.output)}",
        *(f"{'' if i else 'memory':<10}{line}" for i, line in enumerate(memory(recipe))),
    ]


def _model(spec: ModelSpec) -> str:
    from rlad.models import resolve

    where = resolve(spec.path) if spec.path.startswith("embedded:") else ""
    options = ", ".join(f"{key} {value}" for key, value in _model_options(spec).items() if value)
    return " ".join(part for part in (spec.path, f"({where})" if where else "", options) if part)


def _model_options(spec: ModelSpec) -> dict[str, Any]:
    options = spec.model_dump(exclude={"path", "alignment"}, exclude_none=True)
    if "lora" in options:
        options["lora"] = ", ".join(f"{key} {value}" for key, value in options["lora"].items())
    return options


def _teacher(recipe: Recipe) -> list[str]:
    from rlad.trainer.sections import ByTaskSpec

    spec, used = recipe.teacher, recipe.make_method().needs_teacher
    if spec is None:
        return [f"{'teacher':<10}none"]
    if isinstance(spec, ByTaskSpec):
        lines = [f"by column {spec.column}"]
        for task, one in spec.by_task.items():
            first, *rest = _one_teacher(one, used)
            lines += [f"{task}: {first}", *rest]
    else:
        lines = _one_teacher(spec, used)
    lines[0] += "" if used else f"   not loaded: {recipe.method['name']} needs none"
    return [f"{'teacher' if i == 0 else '':<10}{line}" for i, line in enumerate(lines)]


def _one_teacher(spec: ModelSpec | SharedBaseSpec | ServerSpec, used: bool) -> list[str]:
    """A model in this process in one line; a served one, and below it what each of its servers says now."""
    from rlad.trainer.sections import ModelSpec, SharedBaseSpec

    if isinstance(spec, ModelSpec):
        return [_model(spec)]
    if isinstance(spec, SharedBaseSpec):
        return [str(spec)]
    options = spec.model_dump(exclude={"url", "urls"}, exclude_none=True)
    return [
        f"served at {spec}: {', '.join(f'{key} {value}' for key, value in options.items())}",
        *(_now(url, spec) for url in spec.addresses if used),
    ]


def _now(url: str, spec: ServerSpec) -> str:
    """A note and no problem: a server may be started after the check."""
    from rlad.teacher.server import choose_model, look

    try:
        name = choose_model(spec.model, look(url, spec.api_key_env), url)
    except RladError as error:
        return f"  now: {error}"
    return f"  now: {url} answers and serves {name}"


def _method(recipe: Recipe) -> list[str]:
    """The method with every value, and the first paragraph of its docstring, which is its equation."""
    import dataclasses
    import inspect

    method = recipe.make_method()
    values = ", ".join(f"{field.name} {getattr(method, field.name)}" for field in dataclasses.fields(method))
    equation = (inspect.getdoc(type(method)) or "").split("\n\n")[0].split("\n")
    return [f"{'method':<10}{method.name}: {values}", *(f"{'':<10}{line}" for line in equation)]


def _options(task: dict[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in task.items() if key != "name")
    return f"{task.get('name', 'prompts')}{': ' if rest else ''}{rest}"


def _steps(arguments: dict[str, Any]) -> list[str]:
    from rlad.trainer.config import grpo_fields
    from rlad.trainer.rules import batches

    values = {name: default for name, (_, default) in grpo_fields().items()} | arguments
    plan = batches(values)
    group, steps, repeats = values["num_generations"], values["max_steps"], values["num_iterations"]
    length = f"{steps} updates" if steps > 0 else f"{values['num_train_epochs']:g} epochs"
    once = f"{plan.rollouts} rollouts at a time ({plan.rollouts // group} prompts x {group})"
    used = f", each used {repeats} times" if repeats > 1 else ""
    saved = f"; checkpoints at multiples of {plan.boundary}" if plan.boundary > 1 else ""
    return [f"{'steps':<10}{length} of {plan.rollouts_per_update} rollouts; generates {once}{used}{saved}"]


def _differences(arguments: dict[str, Any]) -> list[str]:
    """The settings whose values are not TRL's defaults."""
    from rlad.trainer.config import SAID_ELSEWHERE, trainer_fields

    known = trainer_fields()
    changed = {k: v for k, v in arguments.items() if v != known[k][1] and k not in SAID_ELSEWHERE}
    width = max((len(name) for name in changed), default=0)
    lines = [f"{name:<{width}}  {value}   (TRL: {known[name][1]})" for name, value in changed.items()]
    return [f"{'trainer' if i == 0 else '':<10}{line}" for i, line in enumerate(lines or ["TRL's defaults"])]


def _evaluation(recipe: Recipe) -> str:
    spec = recipe.evaluate
    if spec is None:
        return "none"
    strict = "; status 1 unless accuracy has improved" if spec.require_improvement else ""
    return (
        f"{spec.puzzles} problems of the {spec.split} split, before and after; {spec.samples} response"
        f"{'s' if spec.samples > 1 else ''} each at temperature {spec.temperature:g}, top-p {spec.top_p:g}{strict}"
    )


def _validation(recipe: Recipe) -> list[str]:
    spec = recipe.validate_spec
    if spec is None:
        return []
    best = "; the best model is kept and evaluated" if spec.keep_best else ""
    return [
        f"{'validate':<10}every {spec.every} updates: {spec.metric} on {spec.puzzles} problems of the {spec.split} "
        f"split{' of ' + str(spec.task) if spec.task else ''}, {spec.samples} responses each{best}"
    ]


def _stages(recipe: Recipe) -> list[str]:
    from rlad.trainer.stages import describe

    lines = [f"{i}: {describe(stage)}" for i, stage in enumerate(recipe.stages, 1)]
    return [f"{'' if i else 'stages':<10}{line}" for i, line in enumerate(lines)]


def _output(folder: str) -> str:
    """The folder, and where a run in it could go on."""
    from rlad.trainer.saving import last_checkpoint

    if not Path(folder).exists():
        return f"{folder} (will be made)"
    found = last_checkpoint(Path(folder) / "checkpoints")
    return f"{folder} (has {found.name}: --resume goes on from it)" if found else f"{folder} (exists)"
