"""What a recipe would run, one fact a line, for `rlad check`. No model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlad import layout
from rlad.cli.memory import memory
from rlad.errors import RladError

if TYPE_CHECKING:
    from rlad.trainer.config import Recipe
    from rlad.trainer.sections import EvaluateSpec, ModelSpec, ServerSpec, SharedBaseSpec, ValidateSpec


def description(recipe: Recipe) -> list[str]:
    """What would run, one fact a line."""
    arguments = recipe.trainer_arguments()
    return [
        f"{'student':<10}{model_line(recipe.model)}",
        *_teacher(recipe),
        *_pair_notes(recipe),
        *_method(recipe),
        f"{'task':<10}{task_line(recipe.task)}",
        *_steps(recipe.all_arguments()),
        *_differences(arguments),
        f"{'evaluate':<10}{evaluation_line(recipe.evaluate)}",
        *validation_lines(recipe.validate_spec),
        *_stages(recipe),
        f"{'output':<10}{output_line(recipe.output)}",
        *(f"{'' if i else 'memory':<10}{line}" for i, line in enumerate(memory(recipe))),
    ]


def model_line(spec: ModelSpec) -> str:
    """A model: its name, its folder where it is embedded, and how it is loaded."""
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
        return [model_line(spec)]
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


def _pair_notes(recipe: Recipe) -> list[str]:
    """What was compared of student and teacher, and what to know although it is no error."""
    from rlad.teacher.compatibility import template_difference
    from rlad.trainer.preflight import local_tokenizer
    from rlad.trainer.sections import ModelSpec, alignment

    teacher = recipe.teacher
    if not isinstance(teacher, ModelSpec) or not recipe.make_method().needs_teacher:
        return []
    ours, theirs = local_tokenizer(recipe.model), local_tokenizer(teacher)
    if ours is None or theirs is None:
        return [f"{'':<10}tokenizers are compared when they load: not both are on this disk"]
    note = template_difference(ours, theirs) or "the chat templates agree"
    if alignment(teacher) == "spans":
        note = "tokens are aligned in spans, where the tokenizers differ; the teacher's prompts are in its own template"
    return [f"{'':<10}{note}"]


def _method(recipe: Recipe) -> list[str]:
    """The method with every value, and the first paragraph of its docstring, which is its equation."""
    import dataclasses
    import inspect

    method = recipe.make_method()
    values = ", ".join(f"{field.name} {getattr(method, field.name)}" for field in dataclasses.fields(method))
    equation = (inspect.getdoc(type(method)) or "").split("\n\n")[0].split("\n")
    return [f"{'method':<10}{method.name}: {values}", *(f"{'':<10}{line}" for line in equation)]


def task_line(task: dict[str, Any]) -> str:
    """A task: its name and its options."""
    rest = ", ".join(f"{key} {value}" for key, value in task.items() if key != "name")
    return f"{task.get('name', 'prompts')}{': ' if rest else ''}{rest}"


def _steps(values: dict[str, Any]) -> list[str]:
    from rlad.trainer.rules import batches

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


def evaluation_line(spec: EvaluateSpec | None) -> str:
    """What is evaluated before and after training."""
    if spec is None:
        return "none"
    strict = "; status 1 unless accuracy has improved" if spec.require_improvement else ""
    return (
        f"{spec.puzzles} problems of the {spec.split} split, before and after; {_responses(spec.samples)} each at "
        f" temperature {spec.temperature:g}, top-p {spec.top_p:g}{strict}"
    )


def _responses(count: int) -> str:
    return f"{count} response{'s' if count > 1 else ''}"


def validation_lines(spec: ValidateSpec | None) -> list[str]:
    """What is validated while training; no line where nothing is."""
    if spec is None:
        return []
    best = "; the best model is kept and evaluated" if spec.keep_best else ""
    return [
        f"{'validate':<10}every {spec.every} updates: {spec.metric} on {spec.puzzles} problems of the {spec.split} "
        f"split{' of ' + str(spec.task) if spec.task else ''}, {_responses(spec.samples)} each{best}"
    ]


def _stages(recipe: Recipe) -> list[str]:
    from rlad.trainer.stages import describe

    lines = [f"{i}: {describe(stage)}" for i, stage in enumerate(recipe.stages, 1)]
    return [f"{'' if i else 'stages':<10}{line}" for i, line in enumerate(lines)]


def output_line(folder: str) -> str:
    """The folder, and where a run in it could go on."""
    from rlad.trainer.saving import last_checkpoint

    if not Path(folder).exists():
        return f"{folder} (will be made)"
    found = last_checkpoint(Path(folder) / layout.CHECKPOINTS)
    return f"{folder} (has {found.name}: --resume goes on from it)" if found else f"{folder} (exists)"
