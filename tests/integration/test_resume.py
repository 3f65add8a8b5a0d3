"""A run that was interrupted and goes on ends with the same weights, to the bit, as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

import tiny
from rlad.errors import RladError
from rlad.trainer.config import Recipe
from rlad.trainer.progress import MetricsFile, StopAtBoundary
from rlad.trainer.rules import batches
from rlad.trainer.run import train
from rlad.trainer.saving import STATE_FILE, last_checkpoint
from rlad.trainer.session import INTERRUPTED

STEPS = 4
# Several updates use one generated batch: three iterations over it, or two of two halves.
SCHEDULES: dict[str, dict[str, Any]] = {
    "one iteration": {},
    "two iterations": {"num_iterations": 2},
    "two halves": {"steps_per_generation": 2},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": tiny.GROUP},
}


def run(folder: Path, schedule: str, resume: Path | None = None, **more: Any) -> Any:
    """A trainer after its training, and the weights."""
    trainer = tiny.trainer(
        folder, "rlad", max_steps=STEPS, save_strategy="steps", save_steps=2, **SCHEDULES[schedule], **more
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def history(trainer: Any) -> list[dict[str, float]]:
    """What was logged at each step, without what depends on the clock."""
    timed = ("rlad/seconds", "step_time", "train_", "total_flos")
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [{key: value for key, value in row.items() if not key.startswith(timed)} for row in rows]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resuming_gives_the_same_bits(schedule: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", schedule)
    # The first half alone, as a run that was killed leaves it: the same, with the later checkpoint gone.
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    resumed = run(tmp_path / "cut", schedule, tmp_path / "cut" / "checkpoint-2")
    assert resumed.state.global_step == STEPS
    assert torch.equal(tiny.weights(whole.model), tiny.weights(resumed.model))
    assert history(whole) == history(resumed)
    # The second half did something, so that equality says something.
    middle = load_file(tmp_path / "whole" / "checkpoint-2" / "model.safetensors")
    end = load_file(tmp_path / "whole" / f"checkpoint-{STEPS}" / "model.safetensors")
    assert any(not torch.equal(middle[name], end[name]) for name in middle)
    assert resumed._scored_tokens == whole._scored_tokens > 0


class StepsSeen(TrainerCallback):  # type: ignore[misc]
    """Asks for a stop, as Ctrl-C does, during the update after `after` updates."""

    def __init__(self, stop: StopAtBoundary, after: int) -> None:
        self.stop, self.after, self.last = stop, after, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = state.global_step + 1
        if state.global_step == self.after:
            self.stop.asked = True


@pytest.mark.parametrize(("schedule", "after", "stopped_at"), [("one iteration", 0, 1), ("two iterations", 0, 2)])
def test_ctrl_c_stops_at_a_boundary_from_which_the_run_goes_on_to_the_same_bits(
    schedule: str, after: int, stopped_at: int, tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", schedule)
    lines: list[str] = []
    stop = StopAtBoundary(batches(vars(whole.args)).boundary, lines.append)
    cut = run(tmp_path / "cut", schedule, callbacks=[stop, StepsSeen(stop, after)])
    assert stop.stopped and cut.state.global_step == stopped_at
    checkpoint = last_checkpoint(tmp_path / "cut")
    assert checkpoint is not None and checkpoint.name == f"checkpoint-{stopped_at}"
    resumed = run(tmp_path / "cut", schedule, checkpoint)
    assert torch.equal(tiny.weights(whole.model), tiny.weights(resumed.model))


def test_a_stop_in_the_last_step_is_an_ordinary_end(tmp_path: Path) -> None:
    stop = StopAtBoundary(1)
    trainer = run(tmp_path, "one iteration", callbacks=[stop, StepsSeen(stop, STEPS - 1)])
    assert trainer.state.global_step == STEPS and not stop.stopped


def test_ctrl_c_is_heard_once_and_the_second_one_ends_the_run() -> None:
    lines: list[str] = []
    stop, before = StopAtBoundary(1, lines.append), signal.getsignal(signal.SIGINT)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked and len(lines) == 1 and "saving a checkpoint" in lines[0]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_checkpoint_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").touch()
    assert last_checkpoint(tmp_path) is None
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}" / STATE_FILE).write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"  # by number, and not the torn 12


def test_the_state_file_is_the_last_that_is_written(tmp_path: Path) -> None:
    run(tmp_path, "one iteration")
    folder = tmp_path / "checkpoint-2"
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json", STATE_FILE} <= times.keys()
    assert times[STATE_FILE] == max(times.values())


def test_metrics_of_steps_that_are_made_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step, "reward": 0.0}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "rew'
    )

    class State:
        is_world_process_zero, global_step = True, 2

    MetricsFile(path).on_train_begin(None, State(), None)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


# --- the same through a recipe


def recipe(tmp_path: Path, output: str = "run", **trainer: Any) -> Recipe:
    for name, seed in (("student", 1), ("teacher", 2)):
        if not (tmp_path / name).exists():
            tiny.save(seed, tmp_path / name)
    return Recipe.from_mapping(
        {
            "model": str(tmp_path / "student"),
            "teacher": str(tmp_path / "teacher"),
            "task": {"name": "knights_knaves", "people": [2], "size": 8},
            "method": "rlad",
            "trainer": {
                "max_steps": STEPS, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "use_cpu": True,
                "bf16": False, "gradient_checkpointing": False, "num_generations": tiny.GROUP, "num_iterations": 2,
                "per_device_train_batch_size": 2 * tiny.GROUP, "max_completion_length": tiny.RESPONSE, **trainer,
            },
            "output": str(tmp_path / output),
        }
    )  # fmt: skip


def model_weights(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = load_file(folder / "model" / "model.safetensors")
    return weights


PROGRAM = """
import os, signal, sys
from rlad.trainer import progress
from rlad.trainer.config import Recipe
from rlad.trainer.run import train

class InterruptAt3(progress.StopAtBoundary):  # a person presses Ctrl-C in the first update of the second batch
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)

progress.StopAtBoundary = InterruptAt3
sys.exit(train(Recipe.resolve(sys.argv[1])))
"""


def test_a_recipe_interrupted_by_ctrl_c_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    lines: list[str] = []
    assert train(recipe(tmp_path, "whole", max_steps=6), emit=lines.append) == 0
    cut = recipe(tmp_path, "cut", max_steps=6)
    path = tmp_path / "cut.yaml"
    path.write_text(cut.to_yaml(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == INTERRUPTED, done.stdout + done.stderr
    assert "stopped after step 4; go on with: rlad train" in done.stdout
    assert not (tmp_path / "cut" / "model").exists()
    with pytest.raises(RladError, match="trainer differ from the run to be resumed"):
        train(recipe(tmp_path, "cut", max_steps=6, learning_rate=1e-3), resume=True, emit=lines.append)
    # A later checkpoint that a kill cut short, and the metrics of a step that was lost with it.
    (tmp_path / "cut" / "checkpoints" / "checkpoint-6").mkdir()
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "reward": 0.0}\n')
    assert train(cut, resume=True, emit=lines.append) == 0
    assert any("checkpoint-4" in line for line in lines)
    whole, resumed = model_weights(tmp_path / "whole"), model_weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole) and whole.keys() == resumed.keys()
    rows = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    # The second update on the same rollouts has no reward of its own, but it is where the student has left old.
    assert all("rlad/ratio" in row for row in rows) and ["reward" in row for row in rows] == [True, False] * 3
    with pytest.raises(RladError, match="is finished"):
        train(cut, resume=True, emit=lines.append)


def test_a_finished_output_is_moved_aside_and_nothing_to_resume_is_said(tmp_path: Path) -> None:
    lines: list[str] = []
    again = recipe(tmp_path, max_steps=2)
    with pytest.raises(RladError, match="there is no whole checkpoint"):
        train(again, resume=True, emit=lines.append)
    assert train(again, emit=lines.append) == 0
    first = model_weights(tmp_path / "run")
    assert train(again, emit=lines.append) == 0
    assert any("held an earlier run" in line for line in lines)
    second = model_weights(tmp_path / "run")
    assert len(list(tmp_path.glob("run.*"))) == 1
    assert all(torch.equal(first[name], second[name]) for name in first)  # and a seed is a run
