"""Validation while training: it changes nothing in training, the best model is kept, and resuming goes on with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

import letters_task
import tiny
from letters_task import same_weights
from rlad.errors import RladError
from rlad.evaluation.run import Evaluation, evaluate
from rlad.trainer.config import Recipe, RecipeError
from rlad.trainer.run import train
from rlad.trainer.sections import GenerationSpec
from rlad.trainer.validate import evaluated, read_history

VALIDATE = {"every": 2, "puzzles": 4, "samples": 2, "batch_size": 8, "metric": "reward"}


@pytest.fixture
def base(tmp_path: Path) -> str:
    return tiny.save(1, tmp_path / "base")


def recipe(base: str, output: Path, validate: dict[str, Any] | None, **trainer: Any) -> Recipe:
    validated = {} if validate is None else {"validate": validate}
    return letters_task.recipe(base, output, {"learning_rate": 3e-2, "max_steps": 5} | trainer | validated)


def quietly(recipe: Recipe, **options: Any) -> list[str]:
    lines: list[str] = []
    assert train(recipe, emit=lines.append, **options) == 0
    return lines


def test_it_is_made_in_time_and_changes_nothing_in_training(base: str, tmp_path: Path) -> None:
    quietly(recipe(base, tmp_path / "without", None))
    quietly(recipe(base, tmp_path / "with", VALIDATE))
    assert same_weights(tmp_path / "without" / "model", tmp_path / "with" / "model")
    rows = read_history(tmp_path / "with" / "validation.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    logged = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"]: row.get("validation/reward") for row in logged} == {
        # What is validated before the first update and after the last has no line of its own.
        1: rows[0]["value"], 2: rows[1]["value"], 3: None, 4: rows[2]["value"], 5: None,
    }  # fmt: skip


def test_what_is_logged_is_the_last_validation_not_a_mean_of_several(base: str, tmp_path: Path) -> None:
    """Before and after the first update both come before its line."""
    quietly(recipe(base, tmp_path / "run", VALIDATE | {"every": 1}, max_steps=2))
    rows = read_history(tmp_path / "run" / "validation.jsonl")
    assert rows[0]["value"] != rows[1]["value"]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["validation/reward"] for row in logged] == [row["value"] for row in rows[1:]]


def test_the_best_is_kept_named_and_evaluated(base: str, tmp_path: Path) -> None:
    """A learning rate that ruins the model: the best is an early one, and what is evaluated after training is that."""
    lines = quietly(recipe(base, tmp_path / "run", VALIDATE, learning_rate=1.0, max_grad_norm=100.0))
    run = tmp_path / "run"
    rows = read_history(run / "validation.jsonl")
    best = max(rows, key=lambda row: row["value"])
    assert best["step"] < 5
    assert json.loads((run / "best" / "validation.json").read_text()) == best
    kept = run / "checkpoints" / f"checkpoint-{best['step']}" if best["step"] else Path(base)
    assert same_weights(run / "best", kept) and not same_weights(run / "best", run / "model")
    assert json.loads((run / "summary.json").read_text())["evaluated_step"] == best["step"]
    assert any(f"the best validation was at step {best['step']}" in line for line in lines)
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    # The evaluation is of that model: of the one that is kept, and not of the last.
    after = Evaluation.load(run / "evaluation-after.json")
    task = letters_task.Letters()

    def answered(folder: Path) -> list[list[str]]:
        model = AutoModelForCausalLM.from_pretrained(folder)
        asked = task.evaluation(count=4)
        found = evaluate(model, tiny.tokenizer(), asked, task, max_new_tokens=tiny.RESPONSE, batch_size=4)
        return [problem.responses for problem in found.problems]

    assert [problem.responses for problem in after.problems] == answered(run / "best") != answered(run / "model")


def test_a_run_that_ends_before_its_last_step_validates_its_last_model(base: str, tmp_path: Path) -> None:
    """As one whose seconds are over does (rlad compare)."""

    class Enough(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    quietly(recipe(base, tmp_path / "run", VALIDATE), callbacks=[Enough()])
    assert [row["step"] for row in read_history(tmp_path / "run" / "validation.jsonl")] == [0, 2, 3]


def test_without_keep_best_the_last_is_evaluated(base: str, tmp_path: Path) -> None:
    quietly(recipe(base, tmp_path / "run", VALIDATE | {"keep_best": False}, learning_rate=1.0))
    assert not (tmp_path / "run" / "best").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["evaluated_step"] == 5


def test_a_resumed_run_has_the_same_history_and_the_same_best(base: str, tmp_path: Path) -> None:
    made = recipe(base, tmp_path / "run", VALIDATE)
    quietly(made)
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "run", whole)
    # As a kill after step 3 leaves it, with a half-written line at the end.
    for name in ("summary.json", "evaluation-after.json"):
        (tmp_path / "run" / name).unlink()
    for step in (4, 5):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"checkpoint-{step}")
    with (tmp_path / "run" / "validation.jsonl").open("a") as file:
        file.write('{"step": 6, "val')
    quietly(made, resume=True)
    assert read_history(tmp_path / "run" / "validation.jsonl") == read_history(whole / "validation.jsonl")
    assert same_weights(tmp_path / "run" / "best", whole / "best") and same_weights(
        tmp_path / "run" / "model", whole / "model"
    )


@pytest.mark.parametrize("last_validation", [True, False])
def test_a_run_killed_after_its_last_update_trains_no_further(base: str, tmp_path: Path, last_validation: bool) -> None:
    """While it was evaluated, say. 5 updates are no whole epoch of 8, where transformers would make a sixth."""
    made = recipe(base, tmp_path / "run", VALIDATE)
    quietly(made)
    run, whole = tmp_path / "run", tmp_path / "whole"
    shutil.copytree(run, whole)
    for name in ("summary.json", "evaluation-after.json"):
        (run / name).unlink()
    shutil.rmtree(run / "model")
    if not last_validation:
        lines = (run / "validation.jsonl").read_text().splitlines(keepends=True)
        (run / "validation.jsonl").write_text("".join(lines[:-1]))
    lines = quietly(made, resume=True)
    assert same_weights(run / "model", whole / "model") and same_weights(run / "best", whole / "best")
    for name in ("validation.jsonl", "metrics.jsonl"):
        assert (run / name).read_text() == (whole / name).read_text()
    assert json.loads((run / "summary.json").read_text())["steps"] == 5
    assert sum("validation at step" in line for line in lines) == (0 if last_validation else 1)


def test_another_task_may_validate(base: str, tmp_path: Path) -> None:
    task = {"name": "letters_task:Letters", "first": 2}
    quietly(recipe(base, tmp_path / "run", VALIDATE | {"task": task, "metric": "pass", "puzzles": 2}))
    rows = read_history(tmp_path / "run" / "validation.jsonl")
    assert all(row["value"] == row["pass"] >= row["accuracy"] for row in rows)


@pytest.mark.parametrize(
    ("validate", "words"),
    [
        ({"puzzles": 4}, "trainer.validate.every"),
        ({"every": 0}, "trainer.validate.every: should be greater than or equal to 1"),
        ({"every": 2, "metric": "aime"}, "trainer.validate.metric"),
        ({"every": 2, "best": True}, "trainer.validate.best: unknown key"),
        (20, "trainer.validate: must be a mapping, not 20"),
    ],
)
def test_mistakes_are_named(validate: Any, words: str, base: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(base, tmp_path, validate)
    assert words in error.value.problems[0]


def test_a_note_that_is_not_ours_is_named(base: str, tmp_path: Path) -> None:
    made = recipe(base, tmp_path / "run", VALIDATE)
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "best" / "validation.json").write_text("{}")
    with pytest.raises(RladError, match="is not what rlad wrote"):
        train(made, emit=lambda line: None)


def test_what_the_data_has_to_say_is_said(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letters_task.Letters.report", lambda self: ["a row was left out"], raising=False)
    lines = quietly(recipe(base, tmp_path / "run", None))
    assert "data: a row was left out" in lines


def test_before_is_evaluated_in_the_precision_of_training(tmp_path: Path) -> None:
    """Before training and after it, with a learning rate of 0: accelerate's autocast begins with training alone."""
    made = tiny.trainer(tmp_path, "grpo", learning_rate=0.0, max_steps=1, bf16=True)
    task, precisions = letters_task.Letters(), []
    made.model.lm_head.register_forward_hook(lambda *args: precisions.append(args[2].dtype))
    spec = GenerationSpec(puzzles=4, batch_size=4)

    def answers() -> Any:
        return [each.responses for each in evaluated(made, task, task.evaluation(count=4), spec, 0).problems]

    before, dtypes = answers(), set(precisions)
    made.train()
    assert answers() == before and dtypes == {torch.bfloat16}
