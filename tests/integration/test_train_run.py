"""`rlad train` around its training: what it logs and leaves, and a start that fails."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

import letters_task
import tiny
from rlad import records
from rlad.errors import RladError
from rlad.tasks import Score, load_task
from rlad.teacher.routing import ByTask
from rlad.trainer.config import Recipe
from rlad.trainer.progress import anywhere
from rlad.trainer.run import arguments_of, reward_function, rows_of, train, with_routes
from rlad.trainer.session import device_of


@pytest.fixture
def base(tmp_path: Path) -> str:
    return tiny.save(1, tmp_path / "base")


def made(base: str, output: Path, trainer: dict[str, Any] | None = None, without: str = "", **more: Any) -> Recipe:
    found = letters_task.recipe(base, output, {"save_strategy": "no", **(trainer or {})}, **more).model_dump()
    found["trainer"].pop(without, None)
    return Recipe.from_mapping(found)


def test_every_step_is_logged_where_the_recipe_does_not_say(base: str, tmp_path: Path) -> None:
    assert train(made(base, tmp_path / "run", without="logging_steps"), emit=lambda line: None) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]


def test_a_run_that_logs_nothing_is_whole(base: str, tmp_path: Path) -> None:
    lines: list[str] = []
    assert train(made(base, tmp_path / "run", {"logging_strategy": "no"}), emit=lines.append) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["gain"][-1]["problems"] == 4
    assert not (tmp_path / "run" / "metrics.jsonl").exists() and (tmp_path / "run" / "report.html").is_file()
    assert any("2 steps in" in line for line in lines)


def test_a_start_that_fails_leaves_an_earlier_run_where_it_is(base: str, tmp_path: Path) -> None:
    earlier = made(base, tmp_path / "run", {"max_steps": 1}, evaluate=None)
    assert train(earlier, emit=lambda line: None) == 0
    for changed, words in (
        (
            {"teacher": str(tmp_path / "nowhere"), "method": "rlad"},
            "the tokenizer of the teacher '.*nowhere' cannot be",
        ),
        ({"model": str(tmp_path / "nobody")}, "the model '.*nobody' cannot be loaded"),
    ):
        with pytest.raises(RladError, match=words):
            train(made(base, tmp_path / "run", evaluate=None, **changed), emit=lambda line: None)
    assert (tmp_path / "run" / "summary.json").is_file() and list(tmp_path.glob("run.*")) == []


def test_completions_are_logged_in_the_place_of_an_earlier_run_too(base: str, tmp_path: Path) -> None:
    recipe = made(base, tmp_path / "run", {"log_completions": True}, evaluate=None)
    for _ in range(2):
        assert train(recipe, emit=lambda line: None) == 0
        assert len(list((tmp_path / "run" / "checkpoints" / "completions").iterdir())) == 2  # one a step
    assert len(list(tmp_path.glob("run.*"))) == 1


def test_the_students_code_is_trusted_where_trl_loads_it_too(base: str, tmp_path: Path) -> None:
    trusted = made(base, tmp_path / "run", model={"path": base, "trust_remote_code": True})
    assert arguments_of(trusted, tmp_path).trust_remote_code is True
    assert arguments_of(made(base, tmp_path / "run"), tmp_path).trust_remote_code is False


def test_a_checkpoint_is_whole_when_every_process_has_written_its_part(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    from rlad.trainer import trainer as module

    done: list[str] = []
    wait, mark = Accelerator.wait_for_everyone, module.mark_whole
    monkeypatch.setattr(Accelerator, "wait_for_everyone", lambda self: (done.append("wait"), wait(self))[1])
    monkeypatch.setattr(module, "mark_whole", lambda *given: (done.append("whole"), mark(*given))[1])
    train(
        made(base, tmp_path / "run", {"save_strategy": "steps", "max_steps": 1}, evaluate=None), emit=lambda line: None
    )
    assert done[: done.index("whole") + 1][-2:] == ["wait", "whole"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_what_this_machine_lacks_is_one_error(base: str, tmp_path: Path) -> None:
    with pytest.raises(RladError, match=r"^trainer: Your setup doesn't support bf16/gpu"):
        train(made(base, tmp_path / "run", {"use_cpu": False, "bf16": True}), emit=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_written_is_said_before_anything_is_loaded(base: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RladError, match="cannot write"):
        train(made(str(tmp_path / "nobody"), tmp_path / "file" / "run"), emit=lambda line: None)


def test_what_a_later_stage_lacks_is_said_before_the_first_trains(base: str, tmp_path: Path) -> None:
    many = {"per_device_train_batch_size": 40 * tiny.GROUP}
    staged = made(base, tmp_path / "run").model_dump() | {"stages": [{}, {"trainer": many}]}
    with pytest.raises(RladError, match=r"^stages\.2: the task has 16 training problems, and one generation takes 40"):
        train(Recipe.from_mapping(staged), emit=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_a_model_that_no_trainer_places_goes_to_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of({}) == "cuda" and device_of({"use_cpu": True}) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of({}) == "cpu"


def asked_of(rank: int, folder: str, asks: int) -> None:
    """One of two processes, of which only `asks` was told to stop (-1: none)."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/{asks}", rank=rank, world_size=2)
    Path(folder, f"{asks}-{rank}.txt").write_text(str(anywhere(rank == asks, "cpu")))
    distributed.destroy_process_group()


@pytest.mark.parametrize(("asks", "found"), [(0, "True"), (1, "True"), (-1, "False")])
def test_processes_agree_to_stop_when_one_of_them_is_told_to(asks: int, found: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(asked_of, (str(tmp_path), asks), nprocs=2)
    assert [(tmp_path / f"{asks}-{rank}.txt").read_text() for rank in (0, 1)] == [found, found]


def test_alone_a_process_asks_itself() -> None:
    assert anywhere(True, "cpu") and not anywhere(False, "cpu")


# What Arrow fills, rounds or refuses, and names that TRL takes for itself.
ODD_COLUMNS: list[dict[str, Any]] = [
    {"answer": 5, "tests": {"f(1)": "2"}, "n": 1, "big": 1, "x": [1, [2]], "y": None},
    {"answer": "five", "tests": {"g(3)": 4}, "n": 2.5, "big": 10**30, "x": "\ud800", "y": {}},
    {"answer": ["5", 5], "tests": {}, "n": True, "big": 0, "x": {"b": 1, "a": 2}, "y": [{"a": 1}, {"b": 1}]},
    {"answer": None, "tests": {"f(1)": None}, "n": 3, "big": -1, "x": "2024-01-01", "y": 1e300},
]
NAMES_OF_TRL = (
    "prompts", "completion", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric",
    "environment", "environments", "image", "images", "rlad_example",
)  # fmt: skip
SEES = """
import copy
SEEN = []

def score(response, example):
    SEEN.append(copy.deepcopy(example))
    example.pop("answer")  # the next response is given it nonetheless
    example["prompt"][0]["content"] = ""
    return sum(each.isascii() and each.isalpha() for each in response) / max(len(response), 1)
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[dict[str, Any], Any]:
    """A task of prompts with odd columns, and the module whose SEEN has each example that its reward function saw."""
    name = f"sees_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(SEES)
    monkeypatch.syspath_prepend(tmp_path)
    rows = [
        {"task": "ab"[i % 2], **ODD_COLUMNS[i % 4], "prompt": text, **dict.fromkeys(NAMES_OF_TRL, "mine")}
        for i, text in enumerate(letters_task.TEXTS)
    ]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(tmp_path / "odd.jsonl")
    task = {"prompts": data, "evaluation_prompts": data, "reward": f"{name}:score"}
    return task, importlib.import_module(name)


@pytest.mark.parametrize("groups", ["keep", "refill"])
def test_a_reward_function_is_given_the_line_of_the_file(
    groups: str, base: str, tmp_path: Path, odd: tuple[dict[str, Any], Any]
) -> None:
    task, module = odd
    recipe = made(base, tmp_path / "run", {"groups": groups, "record_every": 1}, task=task, evaluate=None)
    assert train(recipe, emit=lambda line: None) == 0
    lines = {repr(example): example for example in load_task(task).train()}  # with the types and order of its columns
    assert len(module.SEEN) >= 16 and {repr(example) for example in module.SEEN} == set(lines)
    texts = {example["prompt"][0]["content"]: example for example in lines.values()}
    rows = list(records.read_rows(tmp_path / "run" / "records", "rollout"))
    assert len(rows) >= 16
    for row in rows:
        (example,) = [each for text, each in texts.items() if text in row["prompt"]]
        assert json.loads(row["columns"]) == {key: each for key, each in example.items() if key != "prompt"}
        assert row["task"] == example["task"]
        assert row["gold"] == {"5": "5", "five": "five", "['5', 5]": "5 or 5", "None": None}[str(example["answer"])]


def test_teachers_by_task_are_chosen_beside_odd_columns(
    base: str, tmp_path: Path, odd: tuple[dict[str, Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    score = ByTask.score

    def spied(self: ByTask, prompts: Any, responses: Any, tasks: Any = None) -> Any:
        asked.extend(zip(map(tuple, prompts), tasks, strict=True))
        return score(self, prompts, responses, tasks)

    monkeypatch.setattr(ByTask, "score", spied)
    teacher = {"by_task": {"a": base, "b": tiny.save(2, tmp_path / "other")}}
    recipe = made(base, tmp_path / "run", task=odd[0], teacher=teacher, method="rlad", evaluate=None)
    assert train(recipe, emit=lambda line: None) == 0
    words = tiny.tokenizer()
    expected = {text: "ab"[i % 2] for i, text in enumerate(letters_task.TEXTS)}
    for prompt, task in asked:
        found = words.decode(prompt)
        assert [each for text, each in expected.items() if text in found] == [task]
    assert {task for _, task in asked} == {"a", "b"}


def test_examples_without_a_teacher_are_refused_before_a_model_is_loaded(
    tmp_path: Path, odd: tuple[dict[str, Any], Any]
) -> None:
    for column, says in [
        ("task", "there is no teacher for 'b' in column 'task'"),
        ("kind", "column 'kind', which a training example does not have: it has task, answer, tests"),
        ("n", "column 'n' must name the teacher of an example by a text, not 1"),
        ("image", "teacher.column cannot be 'image'"),
        ("prompt", "teacher.column cannot be 'prompt'"),
    ]:
        teacher = {"by_task": {"a": "embedded:teacher", "mine": "embedded:teacher"}, "column": column}
        recipe = made(str(tmp_path / "nobody"), tmp_path / "run", task=odd[0], teacher=teacher, method="rlad")
        with pytest.raises(RladError, match=says):
            train(recipe, emit=lambda line: None)
    rows = rows_of([{"prompt": "a", "completion_ids": "x"}])  # what TRL leaves out is no matter
    found = with_routes(rows, [{"completion_ids": "x"}], ByTask({"x": None}, "completion_ids"))
    assert found[0] == {"prompt": "a", "rlad_example": 0, "completion_ids": "x"}


def test_a_dataset_of_ones_own_gives_the_scorer_its_columns_and_the_prompt(tmp_path: Path) -> None:
    seen: list[Mapping[str, Any]] = []

    class Sees(letters_task.Letters):
        def score(self, response: str, example: Mapping[str, Any]) -> Score:
            seen.append(example)
            return super().score(response, example)

    tiny.trainer(tmp_path, "grpo", reward_funcs=reward_function(Sees())).train()
    prompts = [{"prompt": [{"role": "user", "content": text}]} for text in tiny.PROMPTS]
    assert len(seen) == 16 and all(example in prompts for example in seen)


def test_prompts_of_two_kinds_are_one_clear_error() -> None:
    with pytest.raises(RladError, match="every training example needs a `prompt`"):
        rows_of([{"prompt": "text"}, {"prompt": [{"role": "user", "content": "text"}]}])
    with pytest.raises(RladError, match=r"needs a `prompt`.*KeyError"):
        rows_of([{"question": "text"}])
