"""`rlad train`: a recipe from its first check to its last table."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlad import layout
from rlad.errors import RladError
from rlad.models import resolve
from rlad.trainer.config import Recipe, processes
from rlad.trainer.rules import batches
from rlad.trainer.saving import last_checkpoint
from rlad.trainer.sections import ByTaskSpec, ModelSpec, ServerSpec, SharedBaseSpec, TeacherSpec, alignment
from rlad.trainer.session import (
    INTERRUPTED,
    Trained,
    begin,
    check_one_gpu,
    check_output,
    check_same_recipe,
    exit_status,
    load_student,
    speaker,
    train_and_evaluate,
    training_examples,
)

if TYPE_CHECKING:
    from rlad.tasks import Task
    from rlad.teacher.routing import ByTask

EXAMPLE = "rlad_example"  # the column of the dataset with the number of a row's example
TAKEN = ("prompt", "prompts", "completions", "image", "images", EXAMPLE)  # columns that mean something else to TRL


def train(
    recipe: Recipe, resume: bool = False, emit: Callable[[str], None] | None = None, callbacks: Sequence[Any] = ()
) -> int:
    """Train as the recipe says and write everything below recipe.output. Returns the exit status.

    0: done. 1: `evaluate.require_improvement` and the accuracy gained is not more than chance (session.better).
    130: stopped by Ctrl-C at a checkpoint; `resume` goes on from there to the same weights.
    callbacks: further transformers.TrainerCallback.
    Raises RladError for what can be known to fail before the first step, and when there is nothing to resume.
    """
    say = speaker(emit)
    if recipe.stages:
        from rlad.trainer.stages import train_stages

        return train_stages(recipe, resume, say)
    output = Path(recipe.output)
    task, examples, rows = prepared(recipe, say)
    for line in getattr(task, "report", list)():  # corrections and overlaps: what a reader of the results should know
        say(f"data: {line}")
    checkpoint = _checkpoint(recipe, output, say) if resume else None
    arguments = arguments_of(recipe, output)
    check_one_gpu(arguments)
    check_output(output)

    from rlad.trainer.progress import StopAtBoundary

    method = recipe.make_method()
    say(
        f"{method.name} on {task.name}: {recipe.model.path}"
        + (f", taught by {recipe.teacher}" if recipe.teacher and method.needs_teacher else "")
    )
    teacher = _teacher(recipe.teacher) if recipe.teacher and method.needs_teacher else None
    if isinstance(recipe.teacher, ByTaskSpec) and teacher is not None:
        rows = with_routes(rows, examples, teacher)
    model, tokenizer = load_student(recipe.model)
    if arguments.use_vllm and recipe.model.eos_token is not None:  # vLLM reads the model's own files
        arguments.generation_kwargs = {
            **(arguments.generation_kwargs or {}),
            "stop_token_ids": [tokenizer.eos_token_id],
        }
    trainer = _make_trainer(
        recipe, arguments, reward_function(task, examples), rows, model, tokenizer, teacher, output, say
    )
    if checkpoint is None:
        begin(recipe, say)  # last: what cannot be loaded must not set an earlier run aside
        if arguments.log_completions:  # TRL made it with the trainer, and an earlier run may have taken it along
            (output / layout.CHECKPOINTS / "completions").mkdir(parents=True, exist_ok=True)
    stop = StopAtBoundary(batches(vars(trainer.args), trainer.args.world_size).boundary, say)
    for callback in (stop, *callbacks):
        trainer.add_callback(callback)
    done = train_and_evaluate(recipe, task, trainer, output, checkpoint, stop, "rlad train", say)
    if done is None:
        return INTERRUPTED
    return _finish(recipe, output, done, say) if trainer.is_world_process_zero() else 0


def prepared(recipe: Recipe, say: Callable[[str], None] = lambda line: None) -> tuple[Task, list[Any], Any]:
    """The recipe's task, its training examples, and their rows (`rows_of`). Raises RladError for what its data lack, in
    evaluation too: now, and not when the models are loaded or trained."""
    from rlad.tasks import load_task

    task = load_task(recipe.task)
    examples = training_examples(recipe, task, say)
    _check_enough(recipe, len(examples))
    return task, examples, rows_of(examples)


def rows_of(examples: Sequence[Mapping[str, Any]]) -> Any:
    """A datasets.Dataset of what TRL needs of the examples: `prompt`, and in EXAMPLE the number of each.

    All else stays out of it: Arrow would fill, round or refuse columns, and TRL takes some names for itself. Raises
    RladError for prompts that it cannot hold.
    """
    from datasets import Dataset

    try:
        prompts = [example["prompt"] for example in examples]
        return Dataset.from_dict({"prompt": prompts, EXAMPLE: list(range(len(prompts)))})
    except (KeyError, TypeError, ValueError, OverflowError, NotImplementedError) as error:
        raise RladError(
            "every training example needs a `prompt`, a text or a list of chat messages, of the same kind in all: "
            f"{type(error).__name__}: {error}"
        ) from error


def with_routes(rows: Any, examples: Sequence[Mapping[str, Any]], teacher: ByTask) -> Any:
    """The rows with the column by which a teacher is chosen. Raises RladError where an example has no teacher by it."""
    name = teacher.column
    if name in TAKEN:
        raise RladError(f"teacher.column cannot be {name!r}, which the trainer takes for something else: rename it")
    lacking = next((example for example in examples if name not in example), None)
    if lacking is not None:
        raise RladError(
            f"the teacher of an example is chosen by column {name!r}, which a training example does not have: it has "
            f"{', '.join(map(str, lacking))}"
        )
    tasks = [example[name] for example in examples]
    odd = [task for task in tasks if not isinstance(task, str)]
    if odd:
        raise RladError(f"column {name!r} must name the teacher of an example by a text, not {odd[0]!r}")
    teacher.check(tasks)
    return rows.add_column(name, tasks)


def _check_enough(recipe: Recipe, examples: int) -> None:
    """Raises RladError for fewer problems than one generation takes: TRL would make no step at all."""
    values = recipe.all_arguments()
    wanted = batches(values, processes()).rollouts // int(values["num_generations"])
    if examples < wanted:
        raise RladError(
            f"the task has {examples} training problem{'' if examples == 1 else 's'}, and one generation takes "
            f"{wanted} (rollouts over num_generations): add problems, or lower trainer.per_device_train_batch_size or "
            "gradient_accumulation_steps"
        )


def _checkpoint(recipe: Recipe, output: Path, say: Callable[[str], None]) -> Path:
    """The checkpoint to go on from. Raises RladError where there is none, or the recipe is another."""
    if (output / layout.SUMMARY).is_file():
        raise RladError(f"{output} is finished: see its summary.json; to train again leave --resume out")
    found = last_checkpoint(output / layout.CHECKPOINTS)
    if found is None:
        raise RladError(f"there is no whole checkpoint in {output / 'checkpoints'}: start again without --resume")
    check_same_recipe(recipe, output / layout.RECIPE, "rlad train")
    say(f"going on from {found}")
    return found


def arguments_of(recipe: Recipe, output: Path) -> Any:
    """The trainer's configuration. Raises RladError for what transformers and TRL refuse themselves, or lack here."""
    from rlad.trainer.arguments import RLADConfig
    from rlad.trainer.recorder import EVERY

    recorded = {"record_every": EVERY, "record_folder": str(output / layout.RECORDS)}
    arguments = {**recorded, **recipe.trainer_arguments(), "output_dir": str(output / layout.CHECKPOINTS)}
    arguments["trust_remote_code"] = recipe.model.trust_remote_code  # for what TRL loads itself: vLLM's, the reference
    try:
        return RLADConfig(**arguments, method=recipe.method, disable_tqdm=True)
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        raise RladError(f"trainer: {' '.join(str(error).split())}") from error


def _make_trainer(
    recipe: Recipe,
    arguments: Any,
    reward: Callable[..., list[float]],
    rows: Any,
    model: Any,
    tokenizer: Any,
    teacher: Any,
    output: Path,
    say: Callable[[str], None],
) -> Any:
    from transformers import PrinterCallback, ProgressCallback

    from rlad.trainer.progress import MetricsFile, StepLine
    from rlad.trainer.trainer import RLADTrainer

    trainer = RLADTrainer(
        model,
        reward,
        arguments,
        rows,
        processing_class=tokenizer,
        teacher_model=teacher,
        teacher_init_kwargs=recipe.teacher.load_kwargs() if isinstance(recipe.teacher, ModelSpec) else None,
        teacher_alignment=alignment(recipe.teacher),
        callbacks=[StepLine(say), MetricsFile(output / layout.METRICS)],
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


def reward_function(task: Task, examples: Sequence[Any] | None = None) -> Callable[..., list[float]]:
    """A TRL reward function: the task's score of each completion; the share of correct ones is logged as `accuracy`.

    examples: those whose numbers the dataset has (`rows_of`); the scorer is given each as evaluation gives it. None:
    the dataset has all columns itself, and an example is made of them.
    """
    from rlad.tasks.base import score_all

    def reward(
        prompts: list[Any], completions: list[Any], log_metric: Callable[[str, float], None], **columns: Any
    ) -> list[float]:
        texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
        if examples is None:
            given = _from_columns(prompts, columns)
        else:
            found = [examples[number] for number in columns[EXAMPLE]]
            reward.scored_examples = found  # type: ignore[attr-defined]
            given = [copy.deepcopy(example) for example in found]  # a scorer that changes one changes no later reward
        scores = score_all(task, texts, given)
        reward.scores = scores  # type: ignore[attr-defined]  # for RLADTrainer, which knows more than rewards by it
        log_metric("accuracy", sum(score.correct for score in scores) / len(scores))
        return [float(score.value) for score in scores]

    reward.__name__ = task.name.rpartition(":")[2]
    return reward


def _from_columns(prompts: Sequence[Any], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The examples of a batch by what TRL hands to a reward function: it takes `prompt` out and puts lists of its own
    in."""
    lists = {name: each for name, each in columns.items() if isinstance(each, list) and name != "completion_ids"}
    return [
        {"prompt": prompt, **{name: values[i] for name, values in lists.items()}} for i, prompt in enumerate(prompts)
    ]


def _finish(recipe: Recipe, output: Path, done: Trained, say: Callable[[str], None]) -> int:
    from rlad.evaluation.run import write_json
    from rlad.report.curve import learning_curve, read_metrics

    summary = done.summary(recipe)
    better = done.tell_gain(summary, say)
    write_json(output / layout.SUMMARY, summary)  # first: a picture that fails must not cost the run
    if metrics := read_metrics(output / layout.METRICS):
        metric = "accuracy" if any("accuracy" in row for row in metrics) else "reward"
        label = recipe.method["name"]
        learning_curve({label: [metrics]}, output / layout.CURVE, metric, f"{label}: training {metric}")
    _report(output, say)
    say(f"\n{done.steps} steps in {done.seconds:.0f} s. Written:")
    for name, what in (
        (layout.MODEL, "the student, for AutoModelForCausalLM.from_pretrained"),
        (layout.BEST, "the same after the best validation"),
        (layout.METRICS, "every logged step"),
        (layout.VALIDATION, "every validation"),
        (layout.CURVE, "the learning curve"),
        (layout.RECORDS, "groups of rollouts, token by token"),
        (layout.REPORT, "what the teacher did, on one page: open it in a browser"),
        (layout.SUMMARY, "this table, the recipe and the environment"),
    ):
        if (output / name).exists():
            say(f"  {output / name}  ({what})")
    return exit_status(recipe, better, say)


def _report(output: Path, say: Callable[[str], None]) -> None:
    """The run's page. What goes wrong with it is said, and costs the finished run nothing."""
    from rlad.report.page import write_report

    try:
        write_report([output], output / layout.REPORT)
    except RladError as error:
        say(f"no report was written: {error}")
