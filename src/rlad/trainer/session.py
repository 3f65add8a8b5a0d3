"""What `rlad train` and `rlad sft` share: the student, the evaluation around its training, what is kept and said."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlad import layout
from rlad.errors import RladError
from rlad.evaluation.problems import problem_id
from rlad.files import check_writable
from rlad.models import resolve
from rlad.trainer.environment import environment
from rlad.trainer.saving import save_model
from rlad.trainer.sections import StudentSpec, trained_by

if TYPE_CHECKING:
    from rlad.evaluation.run import Evaluation
    from rlad.tasks import Task
    from rlad.trainer.progress import StopAtBoundary

INTERRUPTED, NOT_BETTER = 130, 1


@dataclass(frozen=True)
class Trained:
    """A training that came to its end.

    before, after: None where the recipe asks for no evaluation. steps: updates. evaluated_step: after which the model
    that was evaluated was the student's; None where nothing was validated.
    """

    before: Evaluation | None
    after: Evaluation | None
    seconds: float
    steps: int
    evaluated_step: int | None

    def summary(self, recipe: Any) -> dict[str, Any]:
        """What summary.json begins with."""
        found = {"recipe": recipe.model_dump(), "steps": self.steps, "seconds": self.seconds, **environment()}
        return found if self.evaluated_step is None else {**found, "evaluated_step": self.evaluated_step}

    def tell_gain(self, summary: dict[str, Any], say: Callable[[str], None]) -> bool:
        """Put the gain into the summary and print it. Returns whether its interval is above 0, or there is none."""
        from rlad.evaluation.run import compare

        if self.before is None or self.after is None:
            return True
        summary["gain"] = compare(self.before, self.after)
        say("\n" + gain_table(self.after.difficulty_name, summary["gain"]))
        return better(summary)


def better(summary: Mapping[str, Any]) -> bool:
    """Whether the accuracy gained in a run's summary is more than chance: its interval is above 0, and p below 0.05
    where it is known (of a few problems the interval alone promises too much). True where nothing was evaluated."""
    gain = summary.get("gain")
    if not gain:
        return True
    p_value = gain[-1].get("p_value")
    return bool(gain[-1]["low"] > 0 and (p_value is None or p_value < 0.05))


def exit_status(recipe: Any, better: bool, say: Callable[[str], None]) -> int:
    """The exit status of a finished run."""
    if recipe.evaluate is None or not recipe.evaluate.require_improvement or better:
        return 0
    say("not better: the 95 % interval of the accuracy gained is not above 0, or p is not below 0.05")
    return NOT_BETTER


def train_and_evaluate(
    recipe: Any,
    task: Task,
    trainer: Any,
    output: Path,
    checkpoint: Path | None,
    stop: StopAtBoundary,
    command: str,
    say: Callable[[str], None],
) -> Trained | None:
    """Evaluate, train (validating, where the recipe says so), save, and evaluate the last model or the best.

    recipe: of either command. command: which goes on after an interruption. None: interrupted at a checkpoint.
    """
    validation = _validation(recipe, task, trainer, output, stop, say)
    before = _evaluate(recipe, task, trainer, output / layout.BEFORE, "before", say)
    started = time.monotonic()
    with stop.listening():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    steps: int = trainer.state.global_step
    if stop.stopped:
        say(f"stopped after step {steps}; go on with: {command} {output / 'recipe.yaml'} --resume")
        return None
    seconds = time.monotonic() - started
    save_model(trainer, output / layout.MODEL)
    model, best = _best(recipe, validation, trainer, say)
    after = _evaluate(recipe, task, trainer, output / layout.AFTER, "after", say, model)
    evaluated_step = None if validation is None else steps if best is None else best
    return Trained(before, after, seconds, steps, evaluated_step)


def _quiet() -> None:
    """Our own lines are the progress; the libraries' bars and notices about their next version would bury them."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def first_process() -> bool:
    """Whether this is the only process, or the first of those that torchrun or accelerate launch started."""
    return os.environ.get("RANK", "0") == "0"


def speaker(emit: Callable[[str], None] | None) -> Callable[[str], None]:
    """What says a line: `emit`, or else print. Of several processes the first alone speaks; the libraries do not."""
    _quiet()
    if not first_process():
        return lambda line: None
    return emit or (lambda line: print(line, flush=True))


def check_output(output: Path) -> None:
    """Raises RladError where the run's folder could not be written. Asked by the first process alone."""
    if first_process():
        check_writable(output)


def check_one_gpu(arguments: Any) -> None:
    """Raises RladError where one process has several GPUs: TRL would refuse them once the models are loaded."""
    if arguments.n_gpu > 1:
        raise RladError(
            f"{arguments.n_gpu} GPUs are visible to one process: choose one with CUDA_VISIBLE_DEVICES=0, train on all "
            "of them with accelerate launch -m rlad ..., or, where a teacher's device_map is to have the others, start "
            "with torchrun --nproc_per_node 1 -m rlad ..."
        )


def begin(recipe: Any, say: Callable[[str], None]) -> None:
    """Make the folder of a new run and write the recipe there. In the first process alone, or each would set aside what
    another has begun. Raises RladError where nothing can be written."""
    if not first_process():
        return
    output = Path(recipe.output)
    set_aside(output, say)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / layout.RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise RladError(f"cannot write to {output}: {error}") from error


def check_same_recipe(recipe: Any, path: Path, command: str) -> None:
    """Raises RladError that names what differs between the recipe and the one that a run was started with.

    path: of the latter. command: which goes on with it.
    """
    # Read as a recipe, so that what a newer rlad has added stands at its default.
    ours, theirs = recipe.model_dump(), type(recipe).resolve(str(path)).model_dump()
    for each in (ours, theirs):  # a server may have moved
        each["teacher"] = trained_by(each["teacher"])
    changed = sorted(key for key in ours if ours[key] != theirs[key] and key != "output")
    if changed:
        raise RladError(
            f"{', '.join(changed)} differ from the run to be resumed: `{command} {path} --resume` goes on as it was"
        )


def set_aside(output: Path, say: Callable[[str], None]) -> None:
    """Rename a folder that holds a run, so that another can be made there and nothing is lost."""
    if (output / layout.RECIPE).exists():
        aside = output.with_name(f"{output.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        output.rename(aside)
        say(f"{output} held an earlier run: it is now {aside}")


def load_student(spec: StudentSpec) -> tuple[Any, Any]:
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
    if spec.eos_token is not None:
        end_with(tokenizer, spec.eos_token)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if spec.open_think:
        open_think(tokenizer)
    return model, tokenizer


def end_with(tokenizer: Any, token: str) -> None:
    """Let `token` end a response. Raises RladError where the tokenizer does not have it."""
    if token not in tokenizer.get_vocab():
        raise RladError(f"model.eos_token: the tokenizer has no token {token!r} (it ends in {tokenizer.eos_token!r})")
    tokenizer.eos_token = token


def device_of(trainer: Mapping[str, Any]) -> str:
    """Where a model goes that no trainer places, by the recipe's `trainer`: the GPU, where there is one to be used."""
    import torch

    return "cuda" if torch.cuda.is_available() and not trainer.get("use_cpu", False) else "cpu"


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


def _evaluate(
    recipe: Any, task: Task, trainer: Any, path: Path, when: str, say: Callable[[str], None], model: Any = None
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


def validation_task(recipe: Any, task: Task) -> Task:
    """Whose problems the recipe validates on: those of `task`, its own, or of another. Raises RladError."""
    from rlad.tasks import load_task

    spec = recipe.validate_spec
    if spec is None or not spec.task:
        return task
    # Validation would be on other problems than the ones named here, and nothing would say so.
    if spec.split == "validation" and isinstance(spec.task, Mapping) and "evaluation_data" in spec.task:
        raise RladError(
            "trainer.validate.task: evaluation_data is what split test is of: set trainer.validate.split=test"
        )
    try:
        return load_task(spec.task)
    except RladError as error:
        raise RladError(f"trainer.validate.task: {error}") from None


def training_examples(recipe: Any, task: Task, say: Callable[[str], None]) -> list[Any]:
    """What the recipe trains on, without the problems of another task that it validates on (`check_data`).

    A task leaves out by itself what it evaluates on, and knows nothing of that other. Raises RladError for such
    problems where the task's `held_out` is "refuse"; a task without it keeps them, which is said.
    """
    check_data(recipe, task)
    examples, spec = list(task.train()), recipe.validate_spec
    if spec is None or not spec.task:
        return examples
    validated = validation_task(recipe, task)
    key = getattr(task, "problem_key", problem_id) if validated.name == task.name else problem_id
    held = {key(each) for each in validated.evaluation(spec.split, spec.puzzles)}
    kept = [each for each in examples if key(each) not in held]
    if len(kept) == len(examples):
        return examples
    policy = getattr(task, "held_out", None)
    found = f"{len(examples) - len(kept)} training examples are problems of trainer.validate.task"
    if policy == "refuse":
        raise RladError(f"{found}: leave them out with task.held_out=drop, or validate on others")
    say(f"data: {found}{'; left out' if policy == 'drop' else ': the best model would be chosen on them'}")
    return kept if policy == "drop" else examples


def check_data(recipe: Any, task: Task) -> None:
    """Raises RladError where the problems that the recipe evaluates or validates on cannot be had."""
    validated = validation_task(recipe, task)
    for key, spec, whose in (
        ("evaluate", recipe.evaluate, task),
        ("trainer.validate", recipe.validate_spec, validated),
    ):
        if spec is not None:
            try:
                whose.evaluation(spec.split, spec.puzzles)
            except RladError as error:
                raise RladError(f"{key}: {error}") from None


def _validation(
    recipe: Any, task: Task, trainer: Any, output: Path, stop: StopAtBoundary, say: Callable[[str], None]
) -> Any:
    """The callback that validates while training, None where the recipe asks for none."""
    from rlad.trainer.validate import Validation

    spec = recipe.validate_spec
    if spec is None:
        return None
    validated = validation_task(recipe, task)
    made = Validation(trainer, validated, spec, output, recipe.seed, say, lambda: stop.stopped)
    trainer.add_callback(made)
    return made


def _best(recipe: Any, validation: Any, trainer: Any, say: Callable[[str], None]) -> tuple[Any, int | None]:
    """(model, step) of the best validation, to be evaluated in the place of the last; (None, None) where it is that."""
    row = None if validation is None or not recipe.validate_spec.keep_best else validation.best_row()
    if row is None or row["step"] == trainer.state.global_step:
        return None, None
    say(f"the best validation was at step {row['step']}: that model is evaluated")
    kept = {"path": str(validation.best), "revision": None, "open_think": False}  # its template opens it already
    model, _ = load_student(recipe.model.model_copy(update=kept))
    return model.to(trainer.accelerator.device), row["step"]


def gain_table(difficulty: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy before and after training, one line for each difficulty."""
    lines = [f"{difficulty:>10}  problems   before    after     gain   95 % interval"]
    for row in rows:
        lines.append(
            f"{row['difficulty']:>10}  {row['problems']:8}  {row['before']:7.1%}  {row['after']:7.1%}  "
            f"{row['difference']:+7.1%}   {row['low']:+.1%} to {row['high']:+.1%}"
        )
    return "\n".join(lines)
