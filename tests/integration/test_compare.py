"""Whole studies over models of a few thousand weights: what is finished stays, what was killed goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from rlad.cli.main import main
from rlad.compare.cells import Results, read_cell
from rlad.compare.run import Options, missing, run_study
from rlad.compare.study import Study
from rlad.compare.worker import make_job, run_job
from rlad.errors import RladError

TRAINER = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "logging_steps": 1, "learning_rate": 3e-2,
    "num_generations": tiny.GROUP, "per_device_train_batch_size": 2 * tiny.GROUP, "max_steps": 2,
    "max_completion_length": tiny.RESPONSE, "save_strategy": "steps", "save_steps": 1,
}  # fmt: skip
CELLS: list[dict[str, Any]] = [
    {"name": "grpo", "set": {"method": "grpo"}},
    {"name": "rlad", "sweep": {"method.alpha": [0.2, 0.8]}},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    recipe = {
        "model": tiny.save(1, tmp_path / "student"), "teacher": tiny.save(2, tmp_path / "teacher"),
        "task": "letters_task:Letters", "method": "rlad", "trainer": TRAINER,
        "evaluate": {"puzzles": 4, "samples": 2, "batch_size": 8},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def study(folder: Path, name: str = "mine", **changes: Any) -> Study:
    data = {"recipe": str(folder / "recipe.yaml"), "seeds": [1, 2], "cells": CELLS} | changes
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(data))
    return Study.load(folder / f"{name}.yaml")


def ran(made: Study, **options: Any) -> tuple[int, list[str]]:
    lines: list[str] = []
    status = run_study(made, Options(**{"workers": 0, **options}), lines.append)
    return status, lines


def test_a_study_from_its_sweep_to_its_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = {"name": "teacher", "kind": "evaluate", "once": True, "set": {"model": str(folder / "teacher")}}
    made = study(folder, cells=[*CELLS, teacher])
    assert ran(made)[0] == 0
    cells = sorted((folder / "results" / "mine").glob("*.json"))
    assert [path.stem for path in cells] == ["grpo-seed1", "grpo-seed2", "rlad-seed1", "rlad-seed2", "teacher-seed1"]
    trials = [read_cell(path) for path in (folder / "results" / "sweeps").glob("*.json")]
    assert [trial.data["recipe"]["evaluate"]["split"] for trial in trials] == ["validation"] * 2
    best = max(trials, key=lambda trial: (trial.accuracy("after"), -trial.data["recipe"]["method"]["alpha"]))
    found = read_cell(cells[2])
    assert found.data["recipe"]["method"]["alpha"] == best.data["recipe"]["method"]["alpha"]
    # A cell has its recipe, command, environment, commit, budget, both evaluations and every step.
    assert found.data["versions"]["trl"] and "commit" in found.data and found.data["threads"] >= 1
    assert found.data["steps"] == 2 and found.data["rollouts"] == 16 and found.data["seconds"] > 0
    assert found.data["command"] == f"rlad compare {folder / 'mine.yaml'} --only rlad --seed 1"
    assert [row["step"] for row in found.curve] == [1, 2] and found.curve[1]["seconds"] > found.curve[0]["seconds"] > 0
    assert found.problems is not None and found.problems["samples"] == 2 and len(found.problems["after"]) == 4
    assert (folder / "runs" / "mine" / "rlad-seed1" / "recipe.yaml").is_file()
    # The student before training is evaluated once a seed, and every cell of a seed begins with the same one.
    befores = [read_cell(path).problems["before"] for path in (cells[0], cells[2])]  # type: ignore[index]
    assert befores[0] == befores[1]
    assert len(list((folder / "runs" / "before").glob("*.json"))) == 3  # of seeds 1 and 2, and of the sweep's 0

    written = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.json")}
    assert main(["compare", "mine.yaml", "--workers", "0"]) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())  # a finished cell is not run twice
    out = capsys.readouterr().out
    assert "| grpo | 2 |" in out and "| teacher | 1 |" in out and "pass@2" in out
    page = (folder / "results" / "mine" / "README.md").read_text()
    assert "5 of 5 cells are finished, in 0.0 hours of training, at commits " in page
    assert "![Pass@k](charts/pass-at-k.svg)" in page
    report = json.loads((folder / "results" / "mine" / "report.json").read_text())
    assert [row["label"] for row in report["accuracy"]][:2] == ["before training", "grpo"]
    assert report["paired"][0]["seeds"] == 2 and report["paired"][0]["problems"] == 4


def test_one_seed_of_a_study(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(folder, cells=CELLS[:1])
    assert main(["compare", "mine.yaml", "--workers", "0", "--seed", "7"]) == 2
    assert "mine.yaml has no seed 7: its seeds are 1, 2" in capsys.readouterr().err
    assert main(["compare", "mine.yaml", "--workers", "0", "--seed", "2"]) == 0
    assert [path.stem for path in (folder / "results" / "mine").glob("*.json") if "seed" in path.stem] == ["grpo-seed2"]
    assert "1 of 2 cells are finished" in (folder / "results" / "mine" / "README.md").read_text()
    capsys.readouterr()
    assert main(["compare", "mine.yaml", "--list"]) == 0
    assert tuple(capsys.readouterr()) == ("grpo, seed 1\n", "")
    assert main(["compare", "mine.yaml", "--list", "--seed", "2"]) == 0
    assert tuple(capsys.readouterr()) == ("", "nothing is missing\n")


def test_what_a_later_cell_lacks_is_said_before_the_first_runs(folder: Path) -> None:
    gone = str(folder / "nothing")
    for cell, words in (
        ({"name": "gone", "set": {"model": gone}}, "gone: model.path: there is no folder"),
        ({"name": "gone", "kind": "evaluate", "once": True, "set": {"model": gone}}, "gone: model.path: there is no"),
        (
            {"name": "asks", "set": {"task": {"name": "knights_knaves", "peple": 3}}},
            "asks: task knights_knaves: .*peple",
        ),
        ({"name": "trl", "set": {"trainer.log_completions_hub_repo": "a/b"}}, "trl: trainer: .*log_completions"),
    ):
        made = study(folder, cells=[CELLS[0], cell])
        with pytest.raises(RladError, match=words):
            ran(made)
        assert list((folder / "results").rglob("*.json")) == []
    sft = {"model": str(folder / "student"), "task": "letters_task:Letters", "sft": {"traces": gone}}
    (folder / "sft.yaml").write_text(yaml.safe_dump({**sft, "trainer": {"use_cpu": True, "bf16": False}}))
    made = study(folder, cells=[CELLS[0], {"name": "sft", "kind": "sft", "recipe": str(folder / "sft.yaml")}])
    with pytest.raises(RladError, match=r"sft: sft\.traces: there is no folder"):
        ran(made)
    assert ran(made, only="grpo", seeds=(1,))[0] == 0  # what is not asked for is not asked about


def test_a_run_that_was_killed_goes_on_from_its_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after a step: the same cell as an undisturbed one, and the first step is not made again."""
    made = study(folder, cells=CELLS[:1], seeds=[1], budget={"steps": 3})
    results = Results("results", "mine")
    (cell,) = missing(made, results)[1]
    whole = make_job(cell, Results("undisturbed", "mine"), "runs-undisturbed", "")
    assert run_job(whole, lambda line: None) == 0
    job = make_job(cell, results, "runs", "")

    class Killed(BaseException):
        pass

    def say(line: str) -> None:
        if line.strip().startswith("2/3"):
            raise Killed

    with pytest.raises(Killed):
        run_job(job, say)
    assert results.find(cell) is None
    lines: list[str] = []
    assert run_job(job, lines.append) == 0
    assert any("going on from" in line for line in lines)
    assert not any(line.strip().startswith("1/3") for line in lines)
    again, first = read_cell(Path(job.result)), read_cell(Path(whole.result))
    assert [row["reward"] for row in again.curve] == [row["reward"] for row in first.curve]
    assert again.problems == first.problems


def test_without_a_checkpoint_it_begins_again_and_keeps_the_evaluation(folder: Path) -> None:
    made = study(folder, cells=CELLS[:1], seeds=[1], set={"trainer.save_strategy": "no", "trainer.save_steps": 500})
    results = Results("results", "mine")
    (cell,) = missing(made, results)[1]
    job = make_job(cell, results, "runs", "")
    run = Path(job.folder)

    def say(line: str) -> None:
        if line.strip().startswith("1/2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, say)
    evaluated = (run / "evaluation-before.json").read_bytes()
    lines: list[str] = []
    assert run_job(job, lines.append) == 0
    assert (run / "evaluation-before.json").read_bytes() == evaluated
    assert not any("evaluating before" in line for line in lines)
    assert [row["step"] for row in read_cell(Path(job.result)).curve] == [1, 2]
    assert [path.name for path in run.parent.iterdir() if path.is_dir()] == [run.name]  # nothing is left aside


def test_a_budget_in_seconds_ends_by_the_clock(folder: Path) -> None:
    made = study(folder, cells=CELLS[:1], seeds=[1], budget={"seconds": 0.001}, set={"trainer.max_steps": 50})
    assert ran(made)[0] == 0
    found = read_cell(folder / "results" / "mine" / "grpo-seed1.json")
    assert found.data["steps"] == 1 and found.data["budget_seconds"] == 0.001 and found.accuracy("after") is not None


def test_the_clock_counts_steps_alone(folder: Path) -> None:
    """What lies between two steps (a validation) is none of training; what was trained before counts."""
    from types import SimpleNamespace

    from rlad.compare.clock import StopAfter

    def seconds(clock: StopAfter, steps: int) -> list[bool]:
        stopped = []
        for _ in range(steps):
            control = SimpleNamespace(should_training_stop=False)
            clock.on_step_begin(None, None, control)
            time.sleep(0.1)
            clock.on_step_end(None, None, control)
            time.sleep(0.3)
            stopped.append(control.should_training_stop)
        return stopped

    control = SimpleNamespace(should_training_stop=False)
    clock = StopAfter(0.25, folder / "metrics.jsonl")
    clock.on_train_begin(None, SimpleNamespace(global_step=0), control)
    assert not control.should_training_stop and seconds(clock, 3) == [False, False, True]
    # Rows of five steps with 2 s each: 20 s at step 10, and the row of step 15 is of a part that is trained again.
    rows = [{"step": step, "step_time": 2.0, "time": 1.0} for step in (5, 10, 15)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for budget, over in ((20.0, True), (20.5, False)):
        clock = StopAfter(budget, folder / "metrics.jsonl")
        clock.on_train_begin(None, SimpleNamespace(global_step=10), control)
        assert control.should_training_stop is over


def test_a_budget_that_is_spent_trains_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the second of three steps, then given less than that took."""
    monkeypatch.setattr("rlad.compare.cells.seconds_of_steps", lambda rows: [9.0 for _ in rows])
    monkeypatch.setattr("rlad.compare.clock.seconds_of_steps", lambda rows: [9.0 for _ in rows])
    made = study(folder, cells=CELLS[:1], seeds=[1], budget={"seconds": 5.0}, set={"trainer.max_steps": 3})
    (cell,) = missing(made, Results("results", "mine"))[1]
    job = make_job(cell, Results("results", "mine"), "runs", "")

    def say(line: str) -> None:
        if line.strip().startswith("2/3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, say)
    assert run_job(job, lambda line: None) == 0
    found = read_cell(Path(job.result))
    assert found.data["steps"] == 1 and [row["step"] for row in found.curve] == [1]


def test_a_finished_run_whose_result_is_missing_is_not_run_again(folder: Path) -> None:
    made = study(folder, cells=CELLS[:1], seeds=[1], set={"trainer.save_strategy": "no", "trainer.save_steps": 500})
    (cell,) = missing(made, Results("results", "mine"))[1]
    job = make_job(cell, Results("results", "mine"), "runs", "")
    assert run_job(job, lambda line: None) == 0
    first = read_cell(Path(job.result))
    Path(job.result).unlink()
    lines: list[str] = []
    assert run_job(job, lines.append) == 0
    assert lines == [f"{job.folder} is finished: only its result was missing"]
    again = read_cell(Path(job.result))
    assert {**again.data, "finished": ""} == {**first.data, "finished": ""}
    # A run of another recipe in its place is kept beside it.
    Path(job.result).unlink()
    other = study(folder, cells=CELLS[:1], seeds=[1], set={"trainer.save_strategy": "no", "trainer.save_steps": 400})
    (cell,) = missing(other, Results("results", "mine"))[1]
    assert run_job(make_job(cell, Results("results", "mine"), "runs", ""), lines.append) == 0
    aside = [path for path in (folder / "runs" / "mine").glob("grpo-seed1.*") if path.is_dir()]
    assert "held an earlier run" in lines[1] and len(aside) == 1


def test_a_cell_whose_study_was_edited_does_not_take_the_folder_of_the_one_that_runs(folder: Path) -> None:
    first = study(folder, cells=CELLS[:1], seeds=[1])
    (cell,) = missing(first, Results("results", "mine"))[1]
    job = make_job(cell, Results("results", "mine"), "runs", "")
    edited = study(folder, cells=CELLS[:1], seeds=[1], set={"trainer.learning_rate": 1e-2})
    (other,) = missing(edited, Results("results", "mine"))[1]
    errors: list[str] = []

    def say(line: str) -> None:
        if line.strip().startswith("1/2"):
            with pytest.raises(RladError) as error:
                run_job(make_job(other, Results("results", "mine"), "runs", ""), lambda line: None)
            errors.append(str(error.value))

    assert run_job(job, say) == 0
    assert len(errors) == 1 and errors[0].startswith(f"{job.folder}: a cell of this name and another recipe is running")
    assert [path.name for path in Path(job.folder).parent.iterdir() if path.is_dir()] == ["grpo-seed1"]
    assert read_cell(Path(job.result)).data["recipe"] == cell.recipe
    assert json.loads(Path(f"{job.folder}.job.json").read_text())["cell"]["recipe"] == cell.recipe


@pytest.mark.parametrize("killed", [False, True])
def test_an_evaluation_of_problems_that_have_changed_is_made_again(
    killed: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task's data is edited where it lies: between two cells of a seed, or while a run waits at its checkpoint."""
    made = study(folder, cells=[CELLS[0], {"name": "rlad"}], seeds=[1])
    first, second = (
        make_job(c, Results("results", "mine"), "runs", "") for c in missing(made, Results("results", "mine"))[1]
    )

    def say(line: str) -> None:
        if killed and line.strip().startswith("2/2"):
            raise KeyboardInterrupt

    if killed:
        second = first
        with pytest.raises(KeyboardInterrupt):
            run_job(first, say)
    else:
        assert run_job(first, say) == 0
    monkeypatch.setattr("letters_task.TEXTS", ("Dave", "Is Eve a knave", "Who?", "Eve says that Dave is a knight."))
    lines: list[str] = []
    assert run_job(second, lines.append) == 0
    assert any("not of the problems that the task has now" in line for line in lines)
    found = read_cell(Path(second.result))
    assert found.accuracy("before") is not None and [row["step"] for row in found.curve] == [1, 2]
    assert any("going on from" in line for line in lines) is killed


def test_the_commit_is_that_of_the_beginning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = iter(["a" * 40, "b" * 40])
    monkeypatch.setattr("rlad.trainer.environment.source_commit", lambda: next(commits))
    made = study(folder, cells=[{"name": "teacher", "kind": "evaluate", "set": {"model": str(folder / "teacher")}}])
    job = make_job(missing(made, Results("results", "mine"))[1][0], Results("results", "mine"), "runs", "")
    assert run_job(job, lambda line: None) == 0
    found = read_cell(Path(job.result)).data
    assert (found["commit"], found["commit_at_end"]) == ("a" * 40, "b" * 40)


def test_two_studies_run_a_cell_of_both_once(folder: Path) -> None:
    """The second had begun before the first was done, and found it finished when it could go on."""
    made = study(folder, cells=CELLS[:1], seeds=[1])
    (cell,) = missing(made, Results("results", "mine"))[1]
    second = make_job(cell, Results("results", "other"), "runs", "")
    assert run_job(make_job(cell, Results("results", "mine"), "runs", ""), lambda line: None) == 0
    assert run_job(second, lambda line: None) == 0
    assert not Path(second.folder).exists() and read_cell(Path(second.result)).data["from"] == "mine/grpo-seed1.json"


def test_half_an_evaluation_is_made_again(folder: Path) -> None:
    made = study(folder, cells=CELLS[:1], seeds=[1])
    assert ran(made)[0] == 0
    (known,) = (folder / "runs" / "before").glob("*.json")
    whole = json.loads(known.read_text())
    known.write_text(known.read_text()[:100])
    lines: list[str] = []
    other = study(folder, cells=[{"name": "rlad"}], seeds=[1])
    (cell,) = missing(other, Results("results", "mine"))[1]
    assert run_job(make_job(cell, Results("results", "mine"), "runs", ""), lines.append) == 0
    assert any("evaluating before" in line for line in lines)
    assert json.loads(known.read_text())["problems"] == whole["problems"]


def test_what_cannot_be_run_or_written_is_said_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(folder, cells=CELLS[:1], seeds=[1])
    assert main(["compare", "mine.yaml", "--only", "grop"]) == 2
    assert "has no cell with 'grop' in its name: grpo" in capsys.readouterr().err
    for option in ("--results", "--runs"):
        assert main(["compare", "mine.yaml", option, "mine.yaml"]) == 2
        assert "cannot write mine.yaml" in capsys.readouterr().err
    assert not list(folder.glob("r*/*/*.log"))


def without_weights(folder: Path) -> str:
    """A model that looks whole until it is loaded."""
    broken = shutil.copytree(folder / "student", folder / "broken")
    (broken / "model.safetensors").unlink()
    return str(broken)


def test_a_study_of_which_all_fails_says_so_by_its_status(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(folder, cells=[{"name": "bad", "set": {"model": without_weights(folder)}}], seeds=[1])
    assert main(["compare", "mine.yaml", "--workers", "0"]) == 1
    assert "failed: bad, seed 1: error: the model" in capsys.readouterr().out


def test_a_cell_that_fails_is_named_and_the_others_are_run(folder: Path) -> None:
    bad = {"name": "bad", "set": {"method": "grpo", "model": without_weights(folder)}}
    made = study(folder, cells=[bad, CELLS[0]], seeds=[1])
    status, lines = ran(made)
    assert status == 1
    assert any(line.startswith("failed: bad, seed 1: error: the model") for line in lines)
    assert (folder / "results" / "mine" / "grpo-seed1.json").is_file()


def test_a_changed_recipe_is_refused_before_anything_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(study(folder, cells=CELLS[:1], seeds=[1]))[0] == 0
    study(folder, cells=CELLS[:1], seeds=[1], set={"trainer.learning_rate": 0.5})
    assert main(["compare", "mine.yaml"]) == 2
    assert "trainer.learning_rate is 0.5 here and 0.03 there" in capsys.readouterr().err


def test_another_study_takes_a_finished_cell_over(folder: Path) -> None:
    assert ran(study(folder, cells=CELLS[:1], seeds=[1]))[0] == 0
    other = study(folder, "other", cells=[{"name": "plain", "set": {"method": {"name": "grpo"}}}], seeds=[1])
    status, lines = ran(other)
    assert status == 0 and lines == ["plain, seed 1: taken from mine/grpo-seed1.json"]
    assert not (folder / "runs" / "other").exists()


def test_finished_cells_are_committed_alone(folder: Path) -> None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    git("config", "user.email", "a@b.c")
    git("config", "user.name", "a")
    (folder / "staged").write_text("somebody else's")
    git("add", "staged")
    assert ran(study(folder, cells=CELLS[:1], seeds=[1]), commit=True)[0] == 0
    assert git("log", "--format=%s", "--name-only").split("\n")[:3] == [
        "mine: grpo-seed1",
        "",
        "results/mine/grpo-seed1.json",
    ]
    assert "A  staged" in git("status", "--short")


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_where_it_was(folder: Path) -> None:
    """Two workers, SIGKILL to the study as soon as a cell is there: the workers end too, and the rest is run."""
    study(folder, cells=[CELLS[0], {"name": "rlad"}], seeds=[1, 2])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlad", "compare", "mine.yaml", "--workers", "2"]
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    done = folder / "results" / "mine"
    deadline = time.monotonic() + 300
    while not list(done.glob("*.json")):
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0]
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    finished = {path: path.stat().st_mtime_ns for path in done.glob("*.json")}
    assert 1 <= len(finished) < 4
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    cells = sorted(path.stem for path in done.glob("*-seed*.json"))
    assert cells == ["grpo-seed1", "grpo-seed2", "rlad-seed1", "rlad-seed2"]
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    assert {read_cell(path).data["threads"] for path in done.glob("*-seed*.json")} == {1}


def test_a_study_without_a_finished_cell_has_no_tables(folder: Path) -> None:
    from rlad.compare.report import report

    made = study(folder)
    with pytest.raises(RladError, match="no cell of"):
        report(made, Results("results", "mine"))
