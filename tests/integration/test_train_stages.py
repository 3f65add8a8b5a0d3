"""A run in stages: each starts from the last one's weights, an interrupted one goes on, nothing is trained twice."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

import letters_task
import tiny
from letters_task import same_weights
from rlad.errors import RladError
from rlad.trainer.config import Recipe
from rlad.trainer.run import train
from rlad.trainer.session import NOT_BETTER, load_student


@pytest.fixture
def made(tmp_path: Path) -> Recipe:
    stages = [{}, {"seed": 7}, {"trainer": {"max_completion_length": 2 * tiny.RESPONSE}}]
    return letters_task.recipe(tiny.save(1, tmp_path / "base"), tmp_path / "run", {}, stages=stages)


def test_each_stage_goes_on_from_the_last(made: Recipe, tmp_path: Path) -> None:
    lines: list[str] = []
    assert train(made, emit=lines.append) == 0
    run = tmp_path / "run"
    for index, before in ((1, made.model.path), (2, run / "stage-1" / "model"), (3, run / "stage-2" / "model")):
        assert Recipe.resolve(str(run / f"stage-{index}" / "recipe.yaml")).model.path == str(before)
        assert not same_weights(run / f"stage-{index}" / "model", Path(before))
    metrics = [json.loads(line) for line in (run / "stage-3" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["completions/max_length"] for row in metrics) == 2 * tiny.RESPONSE
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stages"] == 3 and summary["model"] == str(run / "stage-3" / "model")
    # What is the same is not evaluated twice: after the first stage is before the second. The third answers at greater
    # length, which alone would count as a gain.
    files = [
        (run / f"stage-{i}" / f"evaluation-{when}.json").read_text() for i in (1, 2, 3) for when in ("before", "after")
    ]
    assert files[1] == files[2] and files[3] != files[4]
    assert sum("evaluating before" in line for line in lines) == 2
    # To start again sets the whole run aside.
    train(made, emit=lines.append)
    assert len(list(tmp_path.glob("run.*"))) == 1


def test_a_stages_student_is_gone_before_the_next_is_loaded(made: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU there is no room for both. They refer to each other: only a collection frees them."""
    alive: list[int] = []
    students: list[weakref.ref[Any]] = []

    def load(spec: Any) -> Any:
        alive.append(sum(each() is not None for each in students))
        model, tokenizer = load_student(spec)
        students.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr("rlad.trainer.run.load_student", load)
    gc.disable()  # or it might be freed by chance
    try:
        train(made, emit=lambda line: None)
    finally:
        gc.enable()
    assert alive == [0, 0, 0]


def test_an_interrupted_run_goes_on_where_it_was(made: Recipe, tmp_path: Path) -> None:
    train(made, emit=lambda line: None)
    run, whole = tmp_path / "run", tmp_path / "whole"
    shutil.copytree(run, whole)
    # As a kill in the second stage leaves it: one checkpoint, nothing after.
    shutil.rmtree(run / "stage-3")
    (run / "summary.json").unlink()
    for path in (run / "stage-2").iterdir():
        if path.name not in ("recipe.yaml", "evaluation-before.json", "metrics.jsonl", "checkpoints"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(run / "stage-2" / "checkpoints" / "checkpoint-2")
    untouched = (run / "stage-1" / "summary.json").stat().st_mtime_ns
    lines: list[str] = []
    assert train(made, resume=True, emit=lines.append) == 0
    assert (run / "stage-1" / "summary.json").stat().st_mtime_ns == untouched
    assert any("going on from" in line and "stage-2" in line for line in lines)
    for index in (2, 3):
        assert same_weights(run / f"stage-{index}" / "model", whole / f"stage-{index}" / "model")
    # A stage that had no checkpoint yet starts again.
    shutil.rmtree(run / "stage-3" / "checkpoints")
    (run / "stage-3" / "summary.json").unlink()
    assert train(made, resume=True, emit=lines.append) == 0
    assert same_weights(run / "stage-3" / "model", whole / "stage-3" / "model")
    # When all is done, going on says again how it ended.
    path = run / "stage-3" / "summary.json"
    summary = json.loads(path.read_text())
    for low, status in ((0.1, 0), (0.0, NOT_BETTER)):
        summary["gain"][-1] |= {"low": low, "p_value": 0.01}
        path.write_text(json.dumps(summary))
        asked = made.model_copy(update={"evaluate": made.evaluate.model_copy(update={"require_improvement": True})})
        (run / "recipe.yaml").write_text(asked.to_yaml())
        assert train(asked, resume=True, emit=lines.append) == status


@pytest.mark.slow
def test_two_processes_make_one_run(made: Recipe, tmp_path: Path) -> None:
    """Only the first makes folders and speaks; the other loads what a stage left when it is there."""
    trainer = made.trainer | {"per_device_train_batch_size": tiny.GROUP, "validate": {"every": 2, "puzzles": 4}}
    made = Recipe.from_mapping(made.model_dump() | {"trainer": trainer, "stages": made.stages[:2]})
    (tmp_path / "mine.yaml").write_text(made.to_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "rlad"]
    environment = os.environ | {"PYTHONPATH": str(Path(tiny.__file__).parent)}
    for asides in (0, 1):
        done = subprocess.run(
            [*command, "train", str(tmp_path / "mine.yaml")],
            capture_output=True, text=True, timeout=300, check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(list(tmp_path.glob("run.*"))) == asides and not list((tmp_path / "run").glob("stage-1.*"))
        assert done.stdout.count("stage 2 of 2") == 1
    assert (tmp_path / "run" / "summary.json").is_file()


def test_what_cannot_go_on_is_refused(made: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RladError, match="there is no run in"):
        train(made, resume=True, emit=lambda line: None)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(made.model_copy(update={"seed": 3}).to_yaml())
    with pytest.raises(RladError, match="seed differ from the run to be resumed"):
        train(made, resume=True, emit=lambda line: None)


def test_fewer_problems_than_a_generation_takes_are_refused_before_anything_loads(made: Recipe, tmp_path: Path) -> None:
    """16 texts; 8 rollouts an update in groups of 4 are 2 prompts, 17 x 4 are 17."""
    trainer = made.trainer | {"per_device_train_batch_size": 17 * tiny.GROUP}
    with pytest.raises(RladError, match="16 training problems, and one generation takes 17"):
        train(made.model_copy(update={"trainer": trainer, "stages": []}), emit=lambda line: None)
    assert not (tmp_path / "run").exists()
