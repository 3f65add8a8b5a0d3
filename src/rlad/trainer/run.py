"""`rlad train`: a recipe from its first check to its last table."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlad.errors import RladError
from rlad.models import resolve
from rlad.trainer.config import Recipe, grpo_fields
from rlad.trainer.rules import batches
from rlad.trainer.saving import last_checkpoint, save_model
from rlad.trainer.sections import ModelSpec, ServerSpec, SharedBaseSpec, StudentSpec, TeacherSpec, alignment, trained_by

if TYPE_CHECKING:
    from rlad.evaluation.run import Evaluation
    from rlad.tasks import Task

INTERRUPTED, NOT_BETTER = 130, 1


def train(
    recipe: Recipe, resume: bool = False, emit: Callable[[str], None] | None = None, callbacks: Sequence[Any] = ()
) -> int:
    """Train as the recipe says and write everything below recipe.output. Returns the exit status.

    0: done. 1: `evaluate.require_improvement` and the paired 95 % interval of the accuracy gained is not above 0.
    130: stopped by Ctrl-C at a checkpoint; `resume` goes on from there to the same weights.
    callbacks: further transformers.TrainerCallback.
    Raises RladError for what can be known to fail before the first step, and when there is nothing to resume.
    """
    say = emit or (lambda line: print(line, flush=True))
    if recipe.stages:
        from rlad.trainer.stages import train_stages

        return train_stages(recipe, resume, say)
    _quiet()
    from rlad.tasks import load_task

    output = Path(recipe.output)
    task = load_task(recipe.task)
    examples = list(task.train())
    _check_enough(recipe, len(examples))
    for line in getattr(task, "report", list)():  # corrections and overlaps: what a reader of the results should know
        say(f"data: {line}")
    checkpoint = _start(recipe, output, resume, say)

    import torch

    from rlad.trainer.progress import StopAtBoundary

    method = recipe.make_method()
    say(
        f"{method.name} on {task.name}: {recipe.model.path}"
        + (f", taught by {recipe.teacher}" if recipe.teacher and method.needs_teacher else "")
    )
    teacher = _teacher(recipe.teacher) if recipe.teacher and method.needs_teacher else None
    model, tokenizer = _load(recipe.model)
    trainer = _make_trainer(recipe, task, examples, model, tokenizer, teacher, output, say)
    stop = StopAtBoundary(batches(vars(trainer.args), trainer.args.world_size).boundary, say)
    for callback in (stop, *callbacks):
        trainer.add_callback(callback)
    validation = _validation(recipe, task, trainer, output, say)
    before = _evaluate(recipe, task, trainer, output / "evaluation-before.json", "before", say)
    started = time.monotonic()
    with stop.listening():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if stop.stopped:
        say(f"stopped after step {trainer.state.global_step}; go on with: rlad train {output / 'recipe.yaml'} --resume")
        return INTERRUPTED
    seconds = time.monotonic() - started
    save_model(trainer, output / "model")
    model, step = _best(recipe, validation, trainer, say)
    after = _evaluate(recipe, task, trainer, output / "evaluation-after.json", "after", say, model)
    if torch.distributed.is_initialized() and not trainer.is_world_process_zero():
        return 0
    return _finish(recipe, output, before, after, seconds, (trainer.state.global_step, step), say)


def _check_enough(recipe: Recipe, examples: int) -> None:
    """Raises RladError for fewer problems than one generation takes: TRL would make no step at all."""
    values = {name: default for name, (_, default) in grpo_fields().items()} | recipe.trainer_arguments()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = batches(values, processes).rollouts // int(values["num_generations"])
    if examples < wanted:
        raise RladError(
            f"the task has {examples} training problem{'' if examples == 1 else 's'}, and one generation takes "
            f"{wanted} (rollouts over num_generations): add problems, or lower trainer.per_device_train_batch_size or "
            "gradient_accumulation_steps"
        )


def _quiet() -> None:
    """Our own lines are the progress; the libraries' bars and notices about their next version would bury them."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _start(recipe: Recipe, output: Path, resume: bool, say: Callable[[str], None]) -> Path | None:
    """Make the output folder and write the recipe there; the checkpoint to go on from when resuming."""
    if resume:
        if (output / "summary.json").is_file():
            raise RladError(f"{output} is finished: see its summary.json; to train again leave --resume out")
        found = last_checkpoint(output / "checkpoints")
        if found is None:
            raise RladError(f"there is no whole checkpoint in {output / 'checkpoints'}: start again without --resume")
        check_same_recipe(recipe, output / "recipe.yaml")
        say(f"going on from {found}")
        return found
    set_aside(output, say)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise RladError(f"cannot write to {output}: {error}") from error
    return None


def set_aside(output: Path, say: Callable[[str], None]) -> None:
    """Rename a folder that holds a run, so that another can be made there and nothing is lost."""
    if (output / "recipe.yaml").exists():
        aside = output.with_name(f"{output.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        output.rename(aside)
        say(f"{output} held an earlier run: it is now {aside}")


def check_same_recipe(recipe: Recipe, path: Path) -> None:
    """Raises RladError that names what differs between the recipe and the one that a run was started with."""
    # Read as a recipe, so that what a newer rlad has added stands at its default.
    ours, theirs = (
        recipe.model_dump(),
        Recipe.from_mapping(yaml.safe_load(path.read_text(encoding="utf-8"))).model_dump(),
    )
    for each in (ours, theirs):  # a server may have moved
        each["teacher"] = trained_by(each.get("teacher"))
    changed = sorted(key for key in ours if ours[key] != theirs.get(key) and key != "output")
    if changed:
        raise RladError(
            f"{', '.join(changed)} differ from the run to be resumed: `rlad train {path} --resume` goes on as it was"
        )


def _load(spec: StudentSpec) -> tuple[Any, Any]:
    """The student, in float32 unless the recipe says otherwise (as TRL does), and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kwargs = spec.load_kwargs()
    dtype = kwargs.pop("dtype", "float32")
    path = resolve(spec.path)
    names = {key: kwargs[key] for key in ("revision", "trust_remote_code") if key in kwargs}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype if dtype == "auto" else getattr(torch, dtype), use_safetensors=True, **kwargs
        )
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **names)
    except (OSError, ValueError) as error:
        raise RladError(f"the model {spec.path!r} cannot be loaded: {' '.join(str(error).split())}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if spec.open_think:
        open_think(tokenizer)
    return model, tokenizer


def open_think(tokenizer: Any) -> None:
    """Let the chat template end a prompt with <think> and a line break, as Logic-RL's prompts do.

    The model that is saved keeps the template. Raises RladError where there is none, or it opens <think> already.
    """
    if not isinstance(tokenizer.chat_template, str):
        raise RladError("model.open_think needs a tokenizer with one chat template: set tokenizer.chat_template")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], add_generation_prompt=True, tokenize=False
    )
    if prompt.rstrip().endswith("<think>"):
        raise RladError("the chat template ends in <think> already: leave model.open_think out")
    tokenizer.chat_template += "{%- if add_generation_prompt %}{{ '<think>\\n' }}{%- endif %}"


def _make_trainer(
    recipe: Recipe,
    task: Task,
    examples: list[Any],
    model: Any,
    tokenizer: Any,
    teacher: Any,
    output: Path,
    say: Callable[[str], None],
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback

    from rlad.trainer.progress import MetricsFile, StepLine
    from rlad.trainer.recorder import EVERY
    from rlad.trainer.trainer import RLADConfig, RLADTrainer

    recorded = {"record_every": EVERY, "record_folder": str(output / "records")}
    arguments = {**recorded, **recipe.trainer_arguments(), "output_dir": str(output / "checkpoints")}
    trainer = RLADTrainer(
        model,
        reward_function(task),
        RLADConfig(**arguments, method=recipe.method, disable_tqdm=True),
        Dataset.from_list(examples),
        processing_class=tokenizer,
        teacher_model=teacher,
        teacher_init_kwargs=recipe.teacher.load_kwargs() if isinstance(recipe.teacher, ModelSpec) else None,
        teacher_alignment=alignment(recipe.teacher),
        callbacks=[StepLine(say), MetricsFile(output / "metrics.jsonl")],
        peft_config=recipe.model.lora and recipe.model.lora.peft_config(),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _teacher(spec: TeacherSpec) -> Any:
    """What RLADTrainer takes as teacher_model."""
    if isinstance(spec, ModelSpec):
        return resolve(spec.path)
    if isinstance(spec, SharedBaseSpec):
        from rlad.teacher.local import SharedBase

        return SharedBase(spec.adapter)
    from rlad.teacher.routing import ByTask
    from rlad.teacher.server import ServerTeacher

    if isinstance(spec, ServerSpec):
        return ServerTeacher(**spec.arguments())
    return ByTask(
        {
            task: {"path": resolve(one.path), **one.load_kwargs()} if isinstance(one, ModelSpec) else _teacher(one)
            for task, one in spec.by_task.items()
        },
        spec.column,
    )


def reward_function(task: Task) -> Callable[..., list[float]]:
    """A TRL reward function: the task's score of each completion; the share of correct ones is logged as `accuracy`."""
    from rlad.tasks.base import score_all

    def reward(completions: list[Any], log_metric: Callable[[str, float], None], **columns: Any) -> list[float]:
        texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
        lists = {name: column for name, column in columns.items() if isinstance(column, list)}
        scores = score_all(task, texts, [{name: lists[name][i] for name in lists} for i in range(len(texts))])
        reward.scores = scores  # type: ignore[attr-defined]  # for RLADTrainer, which knows more than rewards by it
        log_metric("accuracy", sum(score.correct for score in scores) / len(scores))
        return [float(score.value) for score in scores]

    reward.__name__ = task.name.rpartition(":")[2]
    return reward


def _evaluate(
    recipe: Recipe, task: Task, trainer: Any, path: Path, when: str, say: Callable[[str], None], model: Any = None
) -> Evaluation | None:
    """The evaluation that the recipe asks for, of the student as it is or of another model."""
    from rlad.evaluation.run import Evaluation
    from rlad.trainer.validate import evaluated

    spec = recipe.evaluate
    if spec is None or not trainer.is_world_process_zero():
        return None
    if path.is_file():  # made before an interruption
        return Evaluation.load(path)
    problems = list(task.evaluation(spec.split, spec.puzzles))
    say(f"evaluating {when} training on {len(problems)} held-out problems")
    result = evaluated(trainer, task, problems, spec, recipe.seed, model)
    result.save(path)
    return result


def _validation(recipe: Recipe, task: Task, trainer: Any, output: Path, say: Callable[[str], None]) -> Any:
    """The callback that validates while training, None where the recipe asks for none."""
    from rlad.tasks import load_task
    from rlad.trainer.validate import Validation

    spec = recipe.validate_spec
    if spec is None:
        return None
    made = Validation(trainer, load_task(spec.task) if spec.task else task, spec, output, recipe.seed, say)
    trainer.add_callback(made)
    return made


def _best(recipe: Recipe, validation: Any, trainer: Any, say: Callable[[str], None]) -> tuple[Any, int | None]:
    """(model, step) of the best validation, to be evaluated in the place of the last; (None, None) where it is that."""
    from transformers import AutoModelForCausalLM

    row = None if validation is None or not recipe.validate_spec.keep_best else validation.best_row()  # type: ignore[union-attr]
    if row is None or row["step"] == trainer.state.global_step:
        return None, None
    say(f"the best validation was at step {row['step']}: that model is evaluated")
    model = AutoModelForCausalLM.from_pretrained(validation.best, dtype=next(trainer.model.parameters()).dtype)
    return model.to(trainer.accelerator.device), row["step"]


def _finish(
    recipe: Recipe,
    output: Path,
    before: Evaluation | None,
    after: Evaluation | None,
    seconds: float,
    steps: tuple[int, int | None],
    say: Callable[[str], None],
) -> int:
    """steps: (all of them, the one after which the evaluated model was the best, None where that is the last)."""
    from rlad.evaluation.run import compare, write_json
    from rlad.report.curve import learning_curve, read_metrics

    done, best = steps
    summary: dict[str, Any] = {"recipe": recipe.model_dump(), "steps": done, "seconds": seconds, **environment()}
    if recipe.validate_spec is not None:
        summary["evaluated_step"] = done if best is None else best
    better = True
    if before is not None and after is not None:
        rows = compare(before, after)
        summary["gain"] = rows
        say("\n" + _gain_table(after.difficulty_name, rows))
        better = rows[-1]["low"] > 0
    metrics = read_metrics(output / "metrics.jsonl")
    metric = "accuracy" if any("accuracy" in row for row in metrics) else "reward"
    label = recipe.method["name"]
    learning_curve({label: [metrics]}, output / "learning_curve.png", metric, f"{label}: training {metric}")
    write_json(output / "summary.json", summary)
    _report(output, say)
    say(f"\n{done} steps in {seconds:.0f} s. Written:")
    for name, what in (
        ("model", "the student, for AutoModelForCausalLM.from_pretrained"),
        ("best", "the same after the best validation"),
        ("metrics.jsonl", "every step"),
        ("validation.jsonl", "every validation"),
        ("learning_curve.png", "the learning curve"),
        ("records", "groups of rollouts, token by token"),
        ("report.html", "what the teacher did, on one page: open it in a browser"),
        ("summary.json", "this table, the recipe and the environment"),
    ):
        if (output / name).exists():
            say(f"  {output / name}  ({what})")
    if recipe.evaluate is not None and recipe.evaluate.require_improvement and not better:
        say("not better: the 95 % interval of the accuracy gained is not above 0")
        return NOT_BETTER
    return 0


def _report(output: Path, say: Callable[[str], None]) -> None:
    """The run's page. What goes wrong with it is said, and costs the finished run nothing."""
    from rlad.report.page import write_report

    try:
        write_report([output], output / "report.html")
    except RladError as error:
        say(f"no report was written: {error}")


def _gain_table(difficulty: str, rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{difficulty:>10}  problems   before    after     gain   95 % interval"]
    for row in rows:
        lines.append(
            f"{row['difficulty']:>10}  {row['problems']:8}  {row['before']:7.1%}  {row['after']:7.1%}  "
            f"{row['difference']:+7.1%}   {row['low']:+.1%} to {row['high']:+.1%}"
        )
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    """Versions and machine, to be kept beside numbers."""
    import torch

    from rlad.trainer.recorder import source_commit

    packages = ("rlad", "torch", "transformers", "trl", "accelerate", "datasets")
    return {
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "commit": source_commit(),
    }
