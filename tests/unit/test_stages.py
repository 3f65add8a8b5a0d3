"""Stages of a recipe: what each one says, and what is refused. No model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlad.cli.main import main
from rlad.errors import RladError
from rlad.tasks import load_task
from rlad.trainer.config import Recipe, RecipeError
from rlad.trainer.run import train
from rlad.trainer.session import training_examples, validation_task
from rlad.trainer.stages import _answering, describe, stage_recipe

BASE: dict[str, Any] = {
    "model": {"path": "org/student", "revision": "abc", "dtype": "bfloat16"},
    "teacher": {"path": "org/teacher", "dtype": "bfloat16"},
    "task": {"name": "knights_knaves", "people": [2, 3], "depth": 3},
    "method": {"name": "rlad", "alpha": 0.3},
    "trainer": {"max_steps": 10, "learning_rate": 1e-5, "use_cpu": True, "bf16": False},
    "evaluate": {"puzzles": 20},
    "output": "runs/mine",
    "seed": 5,
}


def stages(*each: dict[str, Any], **more: Any) -> Recipe:
    return Recipe.from_mapping(BASE | {"stages": list(each)} | more)


def test_a_stage_says_what_differs() -> None:
    made = stages({"task": {"people": [4]}, "trainer": {"max_completion_length": 99}}, {"method": {"alpha": 0.7}})
    first, second = stage_recipe(made, 0), stage_recipe(made, 1, "runs/mine/stage-1/model")
    assert first.task == {"name": "knights_knaves", "people": [4], "depth": 3}
    assert first.trainer == BASE["trainer"] | {"max_completion_length": 99}
    assert first.method == {"name": "rlad", "alpha": 0.3} and first.model.path == "org/student"
    assert (first.output, second.output) == ("runs/mine/stage-1", "runs/mine/stage-2")
    assert (first.seed, second.seed) == (5, 6)
    assert second.method == {"name": "rlad", "alpha": 0.7} and second.task == BASE["task"]
    assert second.model.model_dump(exclude={"path"}) == first.model.model_dump(exclude={"path"}) | {"revision": None}
    assert second.model.path == "runs/mine/stage-1/model"
    assert not first.stages


def test_another_name_takes_the_whole_section() -> None:
    """An alpha is no option of grpo, and people none of another task."""
    made = stages(
        {"method": "grpo", "teacher": None},
        {"method": {"name": "kdrl", "coefficient": 0.1}},
        {"task": "mine:Task", "evaluate": None, "seed": 9},
        {"teacher": "http://host:8000"},
    )
    one, two, three, four = (stage_recipe(made, i) for i in range(4))
    assert one.method == {"name": "grpo"} and one.teacher is None
    assert two.method == {"name": "kdrl", "coefficient": 0.1}
    assert three.task == {"name": "mine:Task"} and three.evaluate is None and three.seed == 9
    assert str(four.teacher) == "http://host:8000"


def test_a_recipe_with_stages_reads_back_the_same(tmp_path: Path) -> None:
    made = stages({"task": {"people": [4]}}, {"method": "grpo"})
    path = tmp_path / "mine.yaml"
    path.write_text(made.to_yaml(), encoding="utf-8")
    assert Recipe.resolve(str(path)) == made


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"trainer": {"max_stps": 3}}, "stages.1: trainer.max_stps: unknown key"),
        ({"method": {"alpha": 2.0}}, "stages.1: method rlad: "),
        ({"model": "x"}, "stages.1.model: unknown key"),
        ({"stages": []}, "stages.1.stages: unknown key"),
        ({"method": "rlad", "teacher": None}, "stages.1: teacher: method rlad needs one"),
    ],
)
def test_mistakes_are_named_with_their_stage(stage: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as error:
        stages(stage)
    assert words in error.value.problems[0]


def test_an_evaluation_is_taken_over_where_it_is_answered_alike() -> None:
    longer = {"trainer": {"max_completion_length": 99}}
    scorer = {"task": {"scorer": "logic-rl"}}
    asked = ({"evaluate": {"puzzles": 7}}, {"evaluate": {"samples": 2}})
    made = stages({}, {"seed": 9, "method": "grpo"}, longer, scorer, *asked)
    first, *others = (_answering(stage_recipe(made, i)) for i in range(6))
    assert [each == first for each in others] == [True, False, False, False, False]


def test_later_stages_leave_open_think_to_the_template_that_was_saved() -> None:
    made = stages({}, {}, model={"path": "org/student", "open_think": True})
    first, second = stage_recipe(made, 0), stage_recipe(made, 1, "runs/mine/stage-1/model")
    assert first.model.open_think and not second.model.open_think


def test_a_task_that_cannot_be_is_named_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = {"task": {"peple": [4]}}
    for more, where in (
        ({"stages": [{}, wrong]}, "stages.2: task knights_knaves: "),
        ({"trainer": BASE["trainer"] | {"validate": {"every": 2, "task": "sudoku"}}}, "trainer.validate.task: "),
        (
            {
                "trainer": BASE["trainer"]
                | {"validate": {"every": 2, "task": {"name": "math", "evaluation_data": "aime24"}}}
            },
            "trainer.validate.task: evaluation_data is what split test is of: set trainer.validate.split=test",
        ),
    ):
        made = Recipe.from_mapping(BASE | {"model": "embedded:student", "teacher": "embedded:teacher"} | more)
        with pytest.raises(RladError, match=f"^{where}"):
            train(made, emit=lambda line: None)
        assert not Path("runs").exists()
        Path("mine.yaml").write_text(made.to_yaml())
        assert main(["check", "mine.yaml"]) == 2
        assert f"error: {where}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "split"),
    [
        ({"name": "math", "evaluation_data": "aime24"}, "test"),
        ({"name": "math", "data": "gsm8k"}, "validation"),
        ("math", "validation"),
    ],
)
def test_a_task_to_validate_on_is_of_the_split_that_it_names(task: Any, split: str) -> None:
    validate = {"every": 2, "task": task, "split": split}
    made = Recipe.from_mapping(BASE | {"trainer": BASE["trainer"] | {"validate": validate}})
    assert validation_task(made, load_task(made.task)).name == "math"


def test_an_adapter_is_not_trained_in_stages() -> None:
    with pytest.raises(RecipeError, match=r"do not fit model\.lora"):
        stages({}, model={"path": "x", "lora": {}})


def test_check_lists_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = stages({"task": {"people": [4]}}, {"method": "grpo"}, model="embedded:student", teacher="embedded:teacher")
    Path("mine.yaml").write_text(made.to_yaml())
    assert main(["check", "mine.yaml"]) == 0
    out = capsys.readouterr().out
    assert "1: task people [4]" in out and "2: method grpo" in out


def test_a_stage_is_described_by_what_it_changes() -> None:
    assert describe({"trainer": {"max_steps": 3}, "method": "grpo", "seed": 1}) == (
        "method grpo; trainer max_steps 3; seed 1"
    )
    assert describe({}) == "as the recipe"


def written(path: Path, *problems: str) -> str:
    path.write_text("".join(json.dumps({"problem": each, "answer": "1"}) + "\n" for each in problems))
    return str(path)


@pytest.mark.parametrize(("held_out", "left"), [("drop", 1), ("refuse", 0)])
def test_what_another_task_validates_on_is_not_trained_on(held_out: str, left: int, tmp_path: Path) -> None:
    """The task itself knows only its own evaluation_data. Layout tells no two problems apart."""
    ours = written(tmp_path / "ours.jsonl", "Find the sum of $Q$.", "Another one.")
    task = {"name": "math", "data": ours, "evaluation_data": written(tmp_path / "test.jsonl", "A third.")}
    task |= {"validation": 0.0, "held_out": held_out}
    other = {"name": "math", "evaluation_data": written(tmp_path / "other.jsonl", "find the sum  of $Q$")}
    validate = {"every": 2, "puzzles": 1, "split": "test", "task": other | {"data": ours, "validation": 0.0}}
    changed = {"task": task, "trainer": BASE["trainer"] | {"validate": validate}, "evaluate": {"puzzles": 1}}
    made = Recipe.from_mapping(BASE | changed)
    lines: list[str] = []
    if held_out == "refuse":
        with pytest.raises(RladError, match=r"1 training examples are problems of trainer\.validate\.task: leave"):
            training_examples(made, load_task(made.task), lines.append)
        return
    found = training_examples(made, load_task(made.task), lines.append)
    assert [each["problem"] for each in found] == ["Another one."] and len(found) == left
    assert lines == ["data: 1 training examples are problems of trainer.validate.task; left out"]


def test_a_task_without_a_rule_is_told_that_it_validates_on_what_it_trains_on() -> None:
    validate = {"every": 2, "puzzles": 4, "task": {"name": "letters_task:Letters", "first": 1}}
    trainer = BASE["trainer"] | {"validate": validate}
    made = Recipe.from_mapping(BASE | {"task": {"name": "letters_task:Letters"}, "trainer": trainer})
    lines: list[str] = []
    assert len(training_examples(made, load_task(made.task), lines.append)) == 16
    assert lines == [
        "data: 16 training examples are problems of trainer.validate.task: the best model would be chosen on them"
    ]
