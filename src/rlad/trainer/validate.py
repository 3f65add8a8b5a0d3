"""Validation while training: a number on held-out problems every so many updates, and the best model by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from rlad import layout
from rlad.errors import RladError
from rlad.files import whole_file
from rlad.trainer.saving import save_model

if TYPE_CHECKING:
    from rlad.evaluation.run import Evaluation
    from rlad.tasks import Task
    from rlad.trainer.sections import ValidateSpec

NOTE = "validation.json"


class Validation(TrainerCallback):
    """Evaluates before the first update, after every `spec.every`, and after the last.

    trainer: the RLADTrainer that it belongs to. task: whose problems. output: the run's folder; every result is a line
    of validation.jsonl there, and the model with the best metric so far is in `best` (the first of equals).
    interrupted: whether training ended only to go on later.

    Training does not change by it: evaluation draws from generators of its own. Only the first process evaluates, the
    others wait for it.
    """

    def __init__(
        self,
        trainer: Any,
        task: Task,
        spec: ValidateSpec,
        output: Path,
        seed: int = 0,
        emit: Callable[[str], None] = print,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.trainer, self.task, self.spec, self.seed, self.emit = trainer, task, spec, seed, emit
        self.interrupted = interrupted
        self.history, self.best = output / layout.VALIDATION, output / layout.BEST
        self.examples = list(task.evaluation(spec.split, spec.puzzles))
        self.last = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed run goes on from its checkpoint: what came after that is made again, and is the same."""
        rows: list[dict[str, Any]] = []
        if state.is_world_process_zero and self.history.is_file():
            rows = [row for row in read_history(self.history) if row["step"] <= state.global_step]
            with whole_file(self.history) as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        if state.global_step == 0:
            self._validate(0)
        else:
            self.last = broadcast_object_list([rows[-1]["step"] if rows else -1], from_process=0)[0]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.spec.every == 0:
            self._validate(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Not by max_steps: a run whose seconds are over ends before it, and its last model may be the best.
        if state.global_step != self.last and not self.interrupted():
            self._validate(state.global_step)

    def _validate(self, step: int) -> None:
        self.last = step
        trainer = self.trainer
        found: list[Any] = [({}, False)]
        if trainer.is_world_process_zero():
            row, kept = self._row(step), self.best_row()
            found = [(row, self.spec.keep_best and (kept is None or row["value"] > kept["value"]))]
        # Every process must know, because all of them save a sharded model; and from the first, before `best` changes.
        row, better = broadcast_object_list(found, from_process=0)[0]
        trainer._metrics["train"][f"validation/{self.spec.metric}"] = [row["value"]]
        if better:
            save_model(trainer, self.best, {NOTE: row})
        if trainer.is_world_process_zero():
            with self.history.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        trainer.accelerator.wait_for_everyone()

    def _row(self, step: int) -> dict[str, Any]:
        result = evaluated(self.trainer, self.task, self.examples, self.spec, self.seed)
        total = result.rows()[-1]
        values = {
            "accuracy": total["accuracy"],
            "reward": total["reward"],
            "pass": total["pass_at"][str(self.spec.samples)],
        }
        value = values[self.spec.metric]
        self.emit(f"validation at step {step}: {self.spec.metric} {value:.3f} on {len(self.examples)} problems")
        return {
            "step": step,
            "metric": self.spec.metric,
            "value": value,
            **values,
            "low": total["low"],
            "high": total["high"],
            "tokens": total["tokens"],
            "truncated": total["truncated"],
        }

    def best_row(self) -> dict[str, Any] | None:
        """The validation of the model that is kept as the best; None before there is one."""
        path = self.best / NOTE
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found["value"], (int, float)):
                raise TypeError("its value is no number")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RladError(f"{path} is not what rlad wrote ({error}): remove the folder {self.best}") from None
        return dict(found)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a validation.jsonl; a line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(dict(json.loads(line)))
        except ValueError:
            continue
    return rows


def evaluated(trainer: Any, task: Task, examples: list[Any], spec: Any, seed: int, model: Any = None) -> Evaluation:
    """The trainer's student, or another `model`, on examples, as a GenerationSpec says, in the trainer's template.

    The student answers through the engine that makes the trainer's rollouts, where there is one that this process has
    to itself (rlad.trainer.engine); else, and any other model, through transformers, in the precision of training.
    """
    from rlad.evaluation.run import evaluate
    from rlad.trainer.engine import engine_backend

    student = trainer.accelerator.unwrap_model(trainer.model) if model is None else model
    backend = engine_backend(trainer) if model is None else None
    with nullcontext() if backend is not None else _as_in_training(student, trainer.accelerator):
        return evaluate(
            student,
            trainer.processing_class,
            examples,
            task,
            samples=spec.samples,
            temperature=spec.temperature,
            top_p=spec.top_p,
            max_new_tokens=spec.max_new_tokens or trainer.args.max_completion_length,
            seed=seed,
            batch_size=spec.batch_size,
            chat_template_kwargs=trainer.args.chat_template_kwargs,
            backend=backend,
        )


@contextmanager
def _as_in_training(model: Any, accelerator: Any) -> Iterator[None]:
    """While it lasts the model computes in the precision of training, where training does.

    accelerate wraps a student's forward in autocast when training begins: without it "before" would be more exact than
    "after". Under DeepSpeed and FSDP transformers leaves a student on the CPU until it trains; it goes back there,
    because they place it themselves.
    """
    before = model.device
    moved = before.type == "cpu" and accelerator.device.type != "cpu"
    if moved:
        model.to(accelerator.device)
    try:
        with accelerator.autocast():
            yield
    finally:
        if moved:
            model.to(before)
