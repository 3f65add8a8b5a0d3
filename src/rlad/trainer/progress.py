"""What a running training shows and writes: a line a step, metrics.jsonl, and an orderly end on Ctrl-C."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

COLUMNS = (  # heading, metric, format
    ("reward", "reward", "{:7.3f}"),
    ("accuracy", "accuracy", "{:8.1%}"),
    ("ratio", "rlad/ratio", "{:6.3f}"),
    ("clip high", "rlad/clip_high", "{:9.1%}"),
    ("clip low", "rlad/clip_low", "{:8.1%}"),
    ("clamped", "rlad/clamped", "{:7.1%}"),
    ("tokens", "completions/mean_length", "{:6.0f}"),
)


class StepLine(TrainerCallback):
    """Prints a line for each logged step: the columns (as COLUMNS above) and the seconds left."""

    def __init__(self, emit: Callable[[str], None] = print, columns: Sequence[tuple[str, str, str]] = COLUMNS) -> None:
        self.emit, self.columns, self.started, self.first = emit, columns, 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started, self.first = time.monotonic(), state.global_step
        heads = (heading.rjust(max(len(heading), len(form.format(0)))) for heading, _, form in self.columns)
        self.emit("  ".join(["     step", *heads, "left"]))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return  # "loss", not "reward": a second update on the same rollouts has no new reward
        done = max(1, state.global_step - self.first)
        left = (time.monotonic() - self.started) / done * (state.max_steps - state.global_step)
        cells = [f"{state.global_step:4}/{state.max_steps:<4}"]
        for heading, metric, form in self.columns:
            value = logs.get(metric)
            width = max(len(heading), len(form.format(0)))
            cells.append(("-" if value is None else form.format(value)).rjust(width))
        self.emit("  ".join([*cells, f"{left:3.0f} s"]))


class MetricsFile(TrainerCallback):
    """Appends every logged step to a JSON Lines file. The names are TRL's, and rlad/* (docs/trainer.md)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed run goes on from its checkpoint: what was logged after that is made again."""
        if not state.is_world_process_zero or not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= state.global_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            row = {"step": state.global_step, "time": round(time.time(), 3), **logs}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def anywhere(asked: bool, device: Any) -> bool:
    """Whether any process was asked. All must call it: one that left alone would leave the others waiting."""
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return asked
    flag = torch.tensor(int(asked), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag)


class StopAtBoundary(TrainerCallback):
    """On Ctrl-C: finish the step, go on to where a run can be resumed exactly, save a checkpoint there, and stop.

    boundary: after every so many updates no generated batch is half used (rlad.trainer.rules.batches).
    """

    def __init__(self, boundary: int, emit: Callable[[str], None] = print) -> None:
        self.boundary, self.emit, self.asked, self.stopped = boundary, emit, False, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.boundary == 0 and anywhere(self.asked, args.device):
            self.stopped = state.global_step < state.max_steps
            control.should_save = control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C (SIGINT) and SIGTERM while the body runs; a second one ends the run at once."""

        def on_signal(number: int, frame: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            self.emit("\nstopping: finishing this step and saving a checkpoint (again to stop at once)")

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
