"""How a study goes on when a cell fails, what it commits, what it tells a worker; the runs themselves are made up."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlad.cli.main import main
from rlad.compare import worker
from rlad.compare.cells import Results, read_cell, write_cell
from rlad.compare.run import Options, run_study
from rlad.compare.study import Cell, Study
from rlad.compare.worker import Job, make_job
from rlad.errors import RladError

RECIPE = {
    "model": "embedded:student", "teacher": "embedded:teacher", "task": {"name": "knights_knaves", "people": [2]},
    "method": "grpo", "evaluate": {"puzzles": 20},
    "trainer": {"max_steps": 3, "per_device_train_batch_size": 16, "use_cpu": True, "bf16": False},
}  # fmt: skip


def study(folder: Path, *cells: dict[str, Any], **changes: Any) -> Study:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    data = {"recipe": str(folder / "recipe.yaml"), "seeds": [1], "cells": list(cells)} | changes
    (folder / "mine.yaml").write_text(yaml.safe_dump(data))
    return Study.load(folder / "mine.yaml")


def finished(cell: Cell) -> dict[str, Any]:
    gain = [{"difficulty": "2", "problems": 20, "before": 0.3, "after": 0.5}]
    data = {"version": 1, "cell": cell.label, "kind": cell.kind, "budget_seconds": cell.seconds}
    return {**data, "recipe": cell.recipe, "gain": gain, "curve": {}}


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that are run, in a folder of their own: "bad" cells raise what no run should, the others are done."""
    made: list[Job] = []

    def run_job(job: Job, say: Any) -> int:
        made.append(job)
        if job.cell.label == "bad":
            raise ValueError("a shape of a library")
        write_cell(Path(job.result), finished(job.cell))
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlad.compare.run.run_job", run_job)
    monkeypatch.setattr("rlad.compare.run.cell_problems", lambda cell: [])
    return made


def ran(made: Study, **options: Any) -> tuple[int, list[str]]:
    lines: list[str] = []
    return run_study(made, Options(**{"workers": 0, **options}), lines.append), lines


def test_any_exception_of_a_cell_is_its_own(jobs: list[Job], tmp_path: Path) -> None:
    status, lines = ran(study(tmp_path, {"name": "bad"}, {"name": "good"}))
    assert status == 1 and len(jobs) == 2
    assert lines[1].startswith("failed: bad, seed 1: ValueError: a shape of a library (see runs/mine/bad-seed1.log)")
    assert "Traceback" in (tmp_path / "runs" / "mine" / "bad-seed1.log").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_log_that_cannot_be_written_is_a_failure(jobs: list[Job], workers: int, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").touch()
    status, lines = ran(study(tmp_path, {"name": "one"}, {"name": "two"}), workers=workers)
    assert status == 1 and [line[:11] for line in lines[1:]] == ["failed: one", "failed: two"]


def test_the_command_of_a_trial_selects_its_row(jobs: list[Job], tmp_path: Path) -> None:
    made = study(tmp_path, {"name": "rlad", "set": {"method": "rlad"}, "sweep": {"method.alpha": [0.2, 0.8]}})
    assert ran(made)[0] == 0
    command = f"rlad compare {tmp_path / 'mine.yaml'} --only rlad"
    assert [job.command for job in jobs] == [command, command, f"{command} --seed 1"]


def test_what_waits_for_a_sweep_is_counted(jobs: list[Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swept = {"name": "rlad", "set": {"method": "rlad"}, "sweep": {"method.alpha": [0.2, 0.8]}}
    study(tmp_path, {"name": "grpo"}, swept, seeds=[1, 2])
    assert main(["compare", "mine.yaml", "--list"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-2:] == ["grpo, seed 1", "grpo, seed 2"] and len(said.out.splitlines()) == 4
    assert said.err == "and 2 cells of rows whose sweep is not finished\n"


def test_a_cell_that_was_finished_and_not_committed_is(jobs: list[Job], tmp_path: Path) -> None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    for words in (["init", "-q"], ["config", "user.email", "a@b.c"], ["config", "user.name", "a"]):
        git(*words)
    made = study(tmp_path, {"name": "one"}, {"name": "two", "set": {"method": "rlad"}})
    assert ran(made)[0] == 0  # without --commit
    (tmp_path / "results" / "mine" / "notes.json").write_text("{}")
    assert ran(made, commit=True)[0] == 0 and len(jobs) == 2
    assert sorted(git("log", "--format=%s").split("\n"))[1:] == ["mine: one-seed1", "mine: two-seed1"]
    path = tmp_path / "results" / "mine" / "one-seed1.json"
    write_cell(path, {**read_cell(path).data, "finished": "later"})
    assert ran(made, commit=True)[0] == 0
    assert git("log", "--format=%s").count("mine: one-seed1") == 2
    status = git("status", "--short", "--untracked-files=all", "results")
    assert status == "?? results/mine/notes.json\n"  # not ours


def test_a_job_reaches_a_worker_whole(tmp_path: Path) -> None:
    cell = Cell("a", "train", 1, {"method": "grpo"}, {"seed": 1}, seconds=2.0)
    job = make_job(cell, Results(tmp_path, "mine"), "runs", "command")
    assert Job.from_json(job.to_json()) == job
    earlier = json.loads(job.to_json())
    del earlier["cell"]["row"]  # as the version before wrote it
    assert Job.from_json(json.dumps(earlier)) == job


@pytest.mark.parametrize("gone_first", [False, True])
def test_a_worker_ends_with_its_study(gone_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the study was killed before its worker had come so far, and another process is its parent."""
    parent, ended = [1 if gone_first else 7], threading.Event()
    monkeypatch.setattr(worker.os, "getppid", lambda: parent[0])
    monkeypatch.setattr(worker.os, "_exit", lambda status: ended.set())
    worker._end_with_parent(7)
    if not gone_first:
        assert not ended.wait(0.2)
        parent[0] = 1
    assert ended.wait(10)


def test_a_run_keeps_the_commit_that_it_began_at() -> None:
    assert worker._with_commits({"steps": 1, "commit": "b"}, "a") == {"steps": 1, "commit": "a", "commit_at_end": "b"}
    for start, end in (("a", "a"), (None, "a"), (None, None)):
        assert worker._with_commits({"commit": end}, start) == {"commit": end}


def sft_job(folder: Path, **sft: Any) -> Job:
    recipe = {"model": "embedded:student", "teacher": "embedded:teacher", "task": {"name": "knights_knaves"},
              "evaluate": None, "sft": sft, "seed": 1, "trainer": {"per_device_train_batch_size": 4}}  # fmt: skip
    return make_job(Cell("sft", "sft", 1, {}, recipe), Results(folder / "results", "mine"), folder / "runs", "")


@pytest.mark.parametrize("killed", [False, True])
def test_a_changed_cell_of_sft_makes_its_own_traces(
    killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first was killed while it made its traces, and had no folder yet."""
    lines: list[str] = []

    def train_offline(recipe: Any, resume: bool, emit: Any) -> int:
        traces, output = Path(recipe.traces), Path(recipe.output)
        if traces.exists():
            raise RladError("traces that were made in another way")
        traces.mkdir(parents=True)
        if killed and recipe.sft.samples == 1:
            raise KeyboardInterrupt
        output.mkdir()
        (output / "recipe.yaml").write_text(recipe.to_yaml())
        (output / "metrics.jsonl").write_text("")
        (output / "summary.json").write_text('{"steps": 2}')
        return 0

    monkeypatch.setattr("rlad.offline.sft.train_offline", train_offline)
    first = sft_job(tmp_path, samples=1)
    if killed:
        with pytest.raises(KeyboardInterrupt):
            worker.run_job(first, lines.append)
    else:
        assert worker.run_job(first, lines.append) == 0
        Path(first.result).unlink()
    assert worker.run_job(sft_job(tmp_path, samples=2), lines.append) == 0
    assert len(list((tmp_path / "runs" / "mine").glob("sft-seed1-traces.*"))) == 1
    assert any("were made for another recipe" in line for line in lines)
