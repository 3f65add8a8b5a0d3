"""`rlad train` around its training: what it logs and leaves, and a start that fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

import letters_task
import tiny
from rlad.errors import RladError
from rlad.records import read_rows
from rlad.trainer.config import Recipe
from rlad.trainer.progress import anywhere
from rlad.trainer.run import arguments_of, rows_of, train
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


SEEN = """
seen = []

def reward(response, example):
    seen.append(dict(example))
    example["answer"] = "spoilt"  # what a scorer does to its example is its own affair
    return len(response) % 3
"""


def test_a_reward_function_is_given_the_lines_of_the_file_in_training_too(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arrow would fill the dicts up, make a float of each number and refuse the text among them; TRL takes `prompt` out,
    # and `completion` and `prompts` for itself.
    lines = [
        {"prompt": "Who is a knight?", "answer": 1, "tests": {"f(1)": "2"}, "prompts": "x", "completion": "x"},
        {"prompt": "Is Bob a knave", "answer": 2.5, "tests": {"g(3)": "4"}, "prompts": 3, "completion": "y"},
        {"prompt": "Carol", "answer": "x=8", "tests": 2**70, "prompts": [], "completion": "z"},
        {"prompt": "Alice says that Bob is a knight.", "answer": None, "tests": {}, "prompts": 1, "completion": ""},
    ]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "rewarding.py").write_text(SEEN)
    monkeypatch.syspath_prepend(tmp_path)
    task = {"prompts": str(tmp_path / "lines.jsonl"), "reward": "rewarding:reward"}
    recipe = made(base, tmp_path / "run", {"record_every": 1}, task=task, evaluate=None)
    try:
        assert train(recipe, emit=lambda line: None) == 0
        import rewarding  # type: ignore[import-not-found]

        known = {line["prompt"]: line for line in lines}
        for example in rewarding.seen:
            (message,) = example.pop("prompt")
            line = {key: value for key, value in known[message["content"]].items() if key != "prompt"}
            assert example == line and list(example) == list(line)
            assert [type(value) for value in example.values()] == [type(value) for value in line.values()]
            assert len(rewarding.seen) == 16  # two updates of two groups
    finally:
        sys.modules.pop("rewarding", None)
    kept = [json.loads(row["columns"]) for row in read_rows(tmp_path / "run" / "records", "rollout", ["columns"])]
    assert {json.dumps(each.get("tests")) for each in kept} <= {json.dumps(line.get("tests")) for line in lines}
    assert kept and all("rlad_example" not in each for each in kept)


def test_prompts_of_two_kinds_are_one_clear_error() -> None:
    with pytest.raises(RladError, match="every training example needs a `prompt`"):
        rows_of([{"prompt": "text"}, {"prompt": [{"role": "user", "content": "text"}]}])
    with pytest.raises(RladError, match=r"needs a `prompt`.*KeyError"):
        rows_of([{"question": "text"}])
