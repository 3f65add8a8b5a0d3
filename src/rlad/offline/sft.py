"""`rlad sft`: traces of the teacher, a student trained on the correct ones, and what it gained by that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, disable_progress_bars
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from rlad import layout
from rlad.errors import RladError
from rlad.evaluation.problems import PromptFormat
from rlad.evaluation.run import Settings, write_json
from rlad.offline.batches import by_length
from rlad.offline.config import SftRecipe
from rlad.offline.dataset import training_rows
from rlad.offline.traces import BACKEND, WEIGHTS, Traces, load_traces, make_traces
from rlad.report.curve import learning_curve, read_metrics
from rlad.trainer.config import processes
from rlad.trainer.preflight import model_problems
from rlad.trainer.progress import MetricsFile, StepLine, StopAtBoundary
from rlad.trainer.saving import NothingLeft, last_checkpoint, mark_whole
from rlad.trainer.sections import LocalTeacherSpec, ServerSpec
from rlad.trainer.session import (
    INTERRUPTED,
    begin,
    check_data,
    check_one_gpu,
    check_output,
    check_same_recipe,
    device_of,
    exit_status,
    load_student,
    speaker,
    train_and_evaluate,
    training_examples,
)

if TYPE_CHECKING:
    from rlad.evaluation.generate import Backend
    from rlad.tasks import Task

COLUMNS = (
    ("loss", "loss", "{:7.4f}"),
    ("token accuracy", "mean_token_accuracy", "{:8.2%}"),
    ("entropy", "entropy", "{:7.4f}"),
    ("learning rate", "learning_rate", "{:8.1e}"),
)
FIRST_WAIT = 1.0  # seconds, before a served teacher is asked again


@dataclasses.dataclass
class OfflineConfig(SFTConfig):  # type: ignore[misc]
    """SFTConfig with the two things that evaluation asks a trainer for (rlad.trainer.validate.evaluated).

    max_completion_length: the longest response, where the recipe leaves that open. chat_template_kwargs: of prompts.
    """

    max_completion_length: int = 512
    chat_template_kwargs: dict[str, Any] | None = None


class OfflineTrainer(NothingLeft, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with less padding in its micro-batches."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The micro-batches of an update, and how many tokens are trained on in all of them."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        return (batches if count is None else by_length(batches)), count


class Checkpoints(TrainerCallback):
    """Marks a checkpoint as whole (rlad.trainer.saving), and leaves out of the log what a resumed run counts anew."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called when everything else of the checkpoint is there."""
        if state.is_world_process_zero and not args.save_only_model:
            mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}", {"step": state.global_step})

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """SFTTrainer's num_tokens starts at 0 again."""
        (logs or {}).pop("num_tokens", None)


def train_offline(
    recipe: SftRecipe, resume: bool = False, traces_only: bool = False, emit: Callable[[str], None] | None = None
) -> int:
    """Make the traces that are missing, and train on them as the recipe says. Returns the exit status, as `train`.

    resume: go on from the last checkpoint in the output folder; traces go on in any case. Raises RladError for what can
    be known to fail before the first step.
    """
    from rlad.tasks import load_task

    say = speaker(emit)
    disable_progress_bars()
    output = Path(recipe.output)
    if resume:
        _check_resumable(recipe, output)
    task = load_task(recipe.task)
    arguments = None if traces_only else _checked(recipe, task, output)
    traces = traces_of(recipe, task, say)
    say(f"{traces.folder}: {traces}")
    if arguments is None:
        return 0
    say(f"sft on {task.name}: {recipe.model.path}" + (f", taught by {recipe.teacher}" if recipe.teacher else ""))
    model, tokenizer = load_student(recipe.model)
    rows, left_out = training_rows(tokenizer, traces.rows, _prompt(recipe), _longest(recipe, model))
    for reason, count in left_out.items():
        say(f"{count} of {len(traces.rows)} traces {reason}, and are left out")
    trainer = make_trainer(recipe, arguments, rows, model, tokenizer, output, say)
    if not resume:
        begin(recipe, say)  # last: what cannot be loaded must not set an earlier run aside
    checkpoint = last_checkpoint(output / layout.CHECKPOINTS) if resume else None
    return _train(recipe, task, trainer, traces, output, checkpoint, say)


def _checked(recipe: SftRecipe, task: Task, output: Path) -> OfflineConfig:
    """The trainer's configuration. Raises RladError for what would stop the training after hours of making traces."""
    check_data(recipe, task)
    if problems := model_problems("model", recipe.model):
        raise RladError(problems[0])
    arguments = arguments_of(recipe, output)
    check_one_gpu(arguments)
    check_output(output)
    return arguments


def _check_resumable(recipe: SftRecipe, output: Path) -> None:
    if (output / layout.SUMMARY).is_file():
        raise RladError(f"{output} is finished: see its summary.json; to train again leave --resume out")
    if not (output / layout.RECIPE).is_file():
        raise RladError(f"there is no training to resume in {output}: leave --resume out (traces go on in any case)")
    check_same_recipe(recipe, output / layout.RECIPE, "rlad sft")


def traces_of(recipe: SftRecipe, task: Task, say: Callable[[str], None]) -> Traces:
    """The traces that the recipe speaks of, made where they are missing."""
    spec, teacher = recipe.sft, recipe.teacher
    if teacher is None:
        return load_traces(recipe.traces)
    examples = trace_examples(recipe, task, say)
    from rlad.evaluation.generate import Sampling

    settings = Settings(
        spec.samples,
        Sampling(spec.temperature, spec.top_p, spec.max_new_tokens),
        recipe.seed if spec.seed is None else spec.seed,
        spec.batch_size,
        _prompt(recipe),
    )
    named = ("revision", "dtype", "adapter", "quantization", "model", "tokenizer")
    about = {name: value for name in named if (value := getattr(teacher, name, None)) is not None}
    about |= {"teacher": str(teacher), "task": recipe.task}
    if isinstance(teacher, LocalTeacherSpec):
        about[BACKEND] = spec.backend
        if weights := _weights(teacher):
            about[WEIGHTS] = weights
    made = (task, examples, recipe.traces, settings, spec.per_problem, about, say)
    return make_traces(lambda: _backend(recipe), *made)


def trace_examples(recipe: SftRecipe, task: Task, say: Callable[[str], None] = lambda line: None) -> list[Any]:
    """The problems that traces are made for. Raises RladError where the task has too few."""
    examples, wanted = training_examples(recipe, task, say), recipe.sft.problems
    if not examples:
        raise RladError("the task has no training examples")
    if wanted is not None and wanted > len(examples):
        raise RladError(f"sft.problems: the task has {len(examples)} training problems, not {wanted}")
    return examples[:wanted]


def _weights(teacher: LocalTeacherSpec) -> str | None:
    """What tells a teacher's weights from others at the same paths; None for a hub id, which its revision names."""
    from rlad.evaluation.models import ModelName
    from rlad.models import resolve

    names = [name for name in (teacher.path, teacher.adapter) if name and Path(resolve(name)).expanduser().is_dir()]
    return " and ".join(str(ModelName(name).which_weights()) for name in names) or None


def _backend(recipe: SftRecipe) -> Backend:
    """What generates the traces. Raises RladError where it cannot."""
    from rlad.evaluation.models import ModelName

    if processes() > 1:
        raise RladError("traces are made by one process: run `rlad sft RECIPE --traces-only` first, without a launcher")
    teacher, spec = recipe.teacher, recipe.sft
    if isinstance(teacher, ServerSpec):
        from rlad.evaluation.backends import ServerBackend

        return ServerBackend(
            teacher.addresses[0],
            ModelName(str(teacher.tokenizer)).tokenizer(),
            teacher.model,
            api_key_env=teacher.api_key_env,
            concurrency=teacher.concurrency,
            patience=(teacher.timeout, teacher.retries, FIRST_WAIT),
        )
    assert isinstance(teacher, LocalTeacherSpec)  # checked when the recipe was made
    if spec.backend == "vllm":
        from rlad.evaluation.backends import VLLMBackend

        base = None if teacher.adapter is None else teacher.path
        return VLLMBackend(ModelName(teacher.adapter or teacher.path, teacher.revision, teacher.dtype, base))
    return _transformers_backend(teacher, device_of(recipe.trainer))


def _transformers_backend(teacher: LocalTeacherSpec, device: str) -> Backend:
    from rlad.evaluation.generate import TransformersBackend
    from rlad.models import load_tokenizer
    from rlad.teacher.local import LocalTeacher

    names = {"revision": teacher.revision, "trust_remote_code": teacher.trust_remote_code}
    model = LocalTeacher.load(teacher.path, device=device, **teacher.load_kwargs()).model
    return TransformersBackend(model, load_tokenizer(teacher.path, "the teacher", **names))


def _prompt(recipe: SftRecipe) -> PromptFormat:
    return PromptFormat(chat_template_kwargs=recipe.sft.chat_template_kwargs)


def _longest(recipe: SftRecipe, model: Any) -> int | None:
    limits = (
        recipe.trainer.get("max_length"),
        getattr(model.config.get_text_config(), "max_position_embeddings", None),
    )
    return min((limit for limit in limits if limit is not None), default=None)


def arguments_of(recipe: SftRecipe, output: Path) -> OfflineConfig:
    """The trainer's configuration. Raises RladError for what transformers and TRL refuse themselves, or lack here."""
    arguments = {**recipe.trainer_arguments(), "output_dir": str(output / layout.CHECKPOINTS), "disable_tqdm": True}
    ours: dict[str, Any] = {
        "max_completion_length": recipe.sft.max_new_tokens,
        "chat_template_kwargs": dict(recipe.sft.chat_template_kwargs),
    }
    try:
        return OfflineConfig(**arguments, **ours)
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        raise RladError(f"trainer: {' '.join(str(error).split())}") from error


def make_trainer(
    recipe: SftRecipe,
    arguments: OfflineConfig,
    rows: list[Any],
    model: Any,
    tokenizer: Any,
    output: Path,
    say: Callable[[str], None],
) -> Any:
    """TRL's SFTTrainer on rows of token ids. Raises RladError for arguments that it does not take."""
    try:
        trainer = OfflineTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=recipe.model.lora and recipe.model.lora.peft_config(),
            callbacks=[Checkpoints(), StepLine(say, COLUMNS), MetricsFile(output / layout.METRICS)],
        )
    except (ValueError, ImportError) as error:  # of combinations, which TRL and transformers check themselves
        raise RladError(f"trainer: {' '.join(str(error).split())}") from error
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _train(
    recipe: SftRecipe,
    task: Task,
    trainer: Any,
    traces: Traces,
    output: Path,
    checkpoint: Path | None,
    say: Callable[[str], None],
) -> int:
    stop = StopAtBoundary(1, say)
    trainer.add_callback(stop)
    if checkpoint is not None:
        say(f"going on from {checkpoint}")
    done = train_and_evaluate(recipe, task, trainer, output, checkpoint, stop, "rlad sft", say)
    if done is None:
        return INTERRUPTED
    if not trainer.is_world_process_zero():
        return 0
    summary = done.summary(recipe)
    summary["traces"] = {
        "folder": str(traces.folder),
        "problems": traces.problems,
        "counts": traces.counts,
        "teacher_tokens": traces.teacher_tokens,
        "trained_on": len(trainer.train_dataset),
    }
    better = done.tell_gain(summary, say)
    write_json(output / layout.SUMMARY, summary)  # first: a picture that fails must not cost the run
    if metrics := read_metrics(output / layout.METRICS):
        learning_curve({"sft": [metrics]}, output / layout.CURVE, "loss", "sft: training loss")
    say(f"\n{done.steps} steps in {done.seconds:.0f} s. Written to {output}: the student in model, and summary.json")
    return exit_status(recipe, better, say)
