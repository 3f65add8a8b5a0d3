"""rlad sft: what TRL is given and makes of it, learning, resuming, and a run from its recipe to its table."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from rlad.errors import RladError
from rlad.offline.config import SftRecipe
from rlad.offline.sft import arguments_of, make_trainer, traces_of, train_offline
from rlad.records import Writer, parts, read_rows
from rlad.tasks import load_task
from rlad.trainer.saving import STATE_FILE, last_checkpoint

RESPONSES = ("Bob is a knight", "a knave", "Alice and Carol", "if Bob then a knave or a knight", "Who", "that says")
TRAINER = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "logging_steps": 1, "learning_rate": 1e-2,
    "per_device_train_batch_size": 4, "max_steps": 4, "save_strategy": "steps", "save_steps": 2,
}  # fmt: skip


def record(number: int, response: str, kept: bool = True) -> dict[str, Any]:
    prompt = json.dumps([{"role": "user", "content": tiny.PROMPTS[number % len(tiny.PROMPTS)]}])
    return {
        "problem": str(number), "prompt": prompt, "response": response, "teacher": "hand", "settings": "{}",
        "sample": 0, "value": 1.0, "correct": kept, "kept": kept, "reason": None if kept else "wrong", "length": 5,
        "difficulty": "all",
    }  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> str:
    return tiny.save(1, tmp_path / "base")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six traces to train on, and one that is not."""
    rows = [record(i, text) for i, text in enumerate(RESPONSES)]
    Writer(tmp_path / "traces", "trace").append([*rows, record(9, "NOT THIS", kept=False)])
    return tmp_path / "traces"


def mapping(base: str, folder: Path | None, output: Path, **changed: Any) -> dict[str, Any]:
    data = {
        "model": base,
        "teacher": None,
        "task": "letters_task:Letters",
        "sft": {} if folder is None else {"traces": str(folder)},
        "trainer": dict(TRAINER),
        "output": str(output),
        "seed": 5,
    }
    for key, value in changed.items():
        data[key] = data[key] | value if key in ("sft", "trainer") else value
    return data


def run(*arguments: Any, resume: bool = False, **changed: Any) -> list[str]:
    lines: list[str] = []
    assert train_offline(SftRecipe.from_mapping(mapping(*arguments, **changed)), resume, emit=lines.append) == 0
    return lines


def metrics(output: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("time", "train_runtime")} for row in rows]


def test_the_loss_is_the_mean_over_the_updates_response_tokens_of_their_negative_log_likelihood(
    base: str, tmp_path: Path
) -> None:
    """Two micro-batches of two traces of unlike lengths: one denominator for the update, and no prompt or padding."""
    from rlad.evaluation.problems import PromptFormat
    from rlad.offline.dataset import training_rows

    rows, _ = training_rows(tiny.tokenizer(), [record(i, RESPONSES[i]) for i in range(4)], PromptFormat())
    recipe = SftRecipe.from_mapping(
        mapping(base, tmp_path, tmp_path / "run")
        | {"trainer": TRAINER | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1}}
    )
    (tmp_path / "run").mkdir()
    student = tiny.model(1)
    nats, count = 0.0, 0
    for row in rows:
        first = row["completion_mask"].index(1)
        logps = tiny.direct_logps(student, row["input_ids"][:first], row["input_ids"][first:])
        nats, count = nats - float(logps.sum().detach()), count + len(logps)
    output = tmp_path / "run"
    arguments = arguments_of(recipe, output)
    trainer = make_trainer(recipe, arguments, rows, student, tiny.tokenizer(), output, lambda line: None)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    for i, row in enumerate(rows):  # what TRL made of the masks, token by token
        expected = [t if bit else -100 for t, bit in zip(row["input_ids"], row["completion_mask"], strict=True)]
        padding = batch["labels"].shape[1] - len(expected)
        assert batch["labels"][i].tolist() == expected + [-100] * padding
        assert batch["input_ids"][i, : len(expected)].tolist() == row["input_ids"]
        assert batch["attention_mask"][i].tolist() == [1] * len(expected) + [0] * padding
    updates: list[list[int]] = []
    sizes = trainer.get_batch_samples

    def seen(*arguments: Any) -> Any:
        batches, count = sizes(*arguments)
        updates.append([int(batch["attention_mask"].sum()) for batch in batches])
        assert int(count) == tokens and all(batch["attention_mask"].any(0).all() for batch in batches)
        return batches, count

    tokens = sum(sum(row["completion_mask"]) for row in rows)
    trainer.get_batch_samples = seen
    trainer.train()
    lengths = sorted((len(row["input_ids"]) for row in rows), reverse=True)
    assert updates == [[sum(lengths[:2]), sum(lengths[2:])]]  # the two longest together
    assert metrics(tmp_path / "run")[0]["loss"] == pytest.approx(nats / count, rel=1e-5)


def test_a_run_from_its_recipe_to_its_table(base: str, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    lines = run(
        base, folder, output, trainer={"max_steps": 30}, evaluate={"puzzles": 4, "max_new_tokens": 8, "batch_size": 4}
    )
    losses = [row["loss"] for row in metrics(output)]
    assert len(losses) == 30 and losses[-1] < 0.5 * losses[0]  # it learns the traces
    summary = json.loads((output / "summary.json").read_text())
    assert summary["steps"] == 30 and {"gain", "versions", "recipe"} <= summary.keys()
    assert summary["traces"]["counts"] == {"kept": 6, "wrong": 1}
    assert summary["traces"]["trained_on"] == 6 and summary["traces"]["teacher_tokens"] == 7 * 5
    assert {path.name for path in (output / "model").iterdir()} >= {"model.safetensors", "tokenizer.json"}
    assert not [path for path in (output / "model").rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    assert any("7 traces of 7 problems, 6 kept (1 wrong); 35 teacher tokens" in line for line in lines)
    assert (output / "evaluation-before.json").is_file() and (output / "learning_curve.png").is_file()
    recipe = SftRecipe.resolve(str(output / "recipe.yaml"))
    assert recipe == SftRecipe.from_mapping(recipe.model_dump(exclude_unset=True)) and recipe.seed == 5
    # Trained again, the earlier run is set aside, and its traces are not.
    again = run(base, folder, output, trainer={"max_steps": 1})
    assert any("held an earlier run" in line for line in again) and (folder / "part-000000.parquet").is_file()


def test_resuming_gives_the_same_bits(base: str, folder: Path, tmp_path: Path) -> None:
    run(base, folder, tmp_path / "whole", trainer={"max_steps": 5})
    run(base, folder, tmp_path / "cut", trainer={"max_steps": 5})
    for name in ("summary.json", "model", "checkpoints/checkpoint-4", "checkpoints/checkpoint-5"):
        there = tmp_path / "cut" / name
        shutil.rmtree(there) if there.is_dir() else there.unlink(missing_ok=True)
    lines = run(base, folder, tmp_path / "cut", trainer={"max_steps": 5}, resume=True)
    assert any(line.endswith("checkpoint-2") for line in lines)  # in the middle of the second pass over six traces
    ends = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    middle = load_file(tmp_path / "whole" / "checkpoints" / "checkpoint-2" / "model.safetensors")
    assert any(not torch.equal(middle[name], ends[0][name]) for name in middle)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_a_checkpoint_that_a_kill_cut_short_is_not_gone_on_from(base: str, folder: Path, tmp_path: Path) -> None:
    run(base, folder, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-4"
    (checkpoints / "checkpoint-4" / STATE_FILE).unlink()
    assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-2"


def test_what_cannot_be_resumed_is_said(base: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RladError, match="there is no training to resume"):
        run(base, folder, tmp_path / "run", resume=True)
    run(base, folder, tmp_path / "run", trainer={"max_steps": 1})
    with pytest.raises(RladError, match="is finished"):
        run(base, folder, tmp_path / "run", resume=True)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(RladError, match=r"^trainer differ"):
        run(base, folder, tmp_path / "run", trainer={"max_steps": 2}, resume=True)


def test_a_lora_student_trains_an_adapter_alone(base: str, folder: Path, tmp_path: Path) -> None:
    run(base, folder, tmp_path / "run", model={"path": base, "lora": {"r": 2}})
    saved = load_file(tmp_path / "run" / "model" / "adapter_model.safetensors")
    assert saved and all("lora" in name for name in saved)
    losses = [row["loss"] for row in metrics(tmp_path / "run")]
    assert losses[-1] < losses[0]


MAKE = """
import sys
from rlad.offline import traces
traces.PART = 4
from rlad.offline.config import SftRecipe
from rlad.offline.sft import train_offline
recipe = SftRecipe.from_mapping({
    "model": "embedded:student", "teacher": "embedded:teacher", "task": {"name": "knights_knaves", "people": [2]},
    "sft": {"traces": sys.argv[1], "problems": 16, "samples": 2, "max_new_tokens": 150, "batch_size": 4},
    "trainer": {"use_cpu": True, "bf16": False}, "output": sys.argv[1] + "-run"})
train_offline(recipe, traces_only=True)
"""


def make(folder: Path, until: Callable[[], bool]) -> int:
    """Make traces in a process of their own, which is killed as soon as `until`; its exit status."""
    process = subprocess.Popen([sys.executable, "-c", MAKE, str(folder)], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if until():
            process.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    return process.returncode


@pytest.mark.slow
def test_traces_whose_maker_is_killed_go_on_to_the_same_records(tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    assert make(cut, lambda: len(parts(cut)) >= 1) == -signal.SIGKILL
    there = len(parts(cut))
    assert 1 <= there < 4
    dates = {number: path.stat().st_mtime_ns for number, path in parts(cut).items()}
    assert make(cut, lambda: False) == make(tmp_path / "whole", lambda: False) == 0
    assert {number: path.stat().st_mtime_ns for number, path in parts(cut).items() if number in dates} == dates
    assert list(read_rows(cut, "trace")) == list(read_rows(tmp_path / "whole", "trace"))
    found = list(read_rows(cut, "trace"))
    assert len(found) == 32 and not (tmp_path / "cut-run").exists()
    # Two people are no difficulty for this teacher, and it hardly ever says the same thing in another way.
    assert sum(row["correct"] for row in found) >= 30 and any(row["reason"] == "duplicate" for row in found)


def test_several_processes_do_not_make_traces(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    monkeypatch.setattr("rlad.offline.sft.arguments_of", lambda *_: SimpleNamespace(n_gpu=1))  # it would wait
    with pytest.raises(RladError, match="--traces-only"):
        run(base, None, tmp_path / "run", teacher=base)


def test_a_teacher_that_is_never_right_is_an_error_before_training(base: str, tmp_path: Path) -> None:
    with pytest.raises(RladError, match=r"fit to be trained on \(8 cut off\)"):
        run(base, None, tmp_path / "run", teacher=base, sft={"samples": 2, "max_new_tokens": 1})
    assert not (tmp_path / "run").exists()
    with pytest.raises(RladError, match=r"sft\.problems: the task has 16 training problems, not 17"):
        run(base, None, tmp_path / "run", teacher=base, sft={"problems": 17})


def test_what_would_stop_the_training_is_said_before_traces_are_made(base: str, tmp_path: Path) -> None:
    teacher = tiny.save(2, tmp_path / "teacher")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("Who", "Carol")))
    task = {"prompts": str(prompts), "reward": "builtins:len", "evaluation_prompts": str(prompts)}
    for changed, words in (
        ({"evaluate": {"puzzles": 3}}, "^evaluate: .* has 2 prompts, fewer than the 3 asked for"),
        ({"trainer": {"validate": {"every": 1, "puzzles": 1}}}, r"^trainer\.validate: .*task\.validation_prompts"),
        ({"model": "./nowhere"}, r"^model\.path: there is no folder"),
        ({"trainer": {"accelerator_config": "nowhere.json"}}, r"^trainer: .*nowhere\.json"),
    ):
        data = mapping(base, None, tmp_path / "run", teacher=teacher, task=task, **changed)
        with pytest.raises(RladError, match=words):
            train_offline(SftRecipe.from_mapping(data), emit=lambda line: None)
        assert not (tmp_path / "run-traces").exists()


@pytest.mark.parametrize(
    ("teacher", "sft", "said"),
    [
        (None, {}, {"backend": "transformers"}),
        (None, {"backend": "vllm"}, {"backend": "vllm"}),
        ({"url": "http://127.0.0.1:1", "tokenizer": "one"}, {}, {"tokenizer": "one"}),
        ({"url": "http://127.0.0.1:1", "tokenizer": "other"}, {}, {"tokenizer": "other"}),
    ],
)
def test_traces_depend_on_the_backend_and_on_a_served_teachers_tokenizer(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: Any, sft: Any, said: dict[str, str]
) -> None:
    found: list[Any] = []
    monkeypatch.setattr("rlad.offline.sft.make_traces", lambda *given: found.append(given[6]))
    recipe = SftRecipe.from_mapping(mapping(base, None, tmp_path / "run", teacher=teacher or base, sft=sft))
    traces_of(recipe, load_task(recipe.task), print)
    assert {name: found[0][name] for name in ("backend", "tokenizer") if name in found[0]} == said


def test_traces_that_never_close_the_think_of_the_students_prompt_are_left_out_and_counted(
    base: str, tmp_path: Path
) -> None:
    closed = [record(i, f"{text}</think>Bob") for i, text in enumerate(RESPONSES)]
    Writer(tmp_path / "traces", "trace").append([*closed, record(9, "Bob is")])
    student = {"path": base, "open_think": True}
    lines = run(base, tmp_path / "traces", tmp_path / "run", model=student, trainer={"max_steps": 1})
    assert "1 of 7 traces never close the <think> of the student's prompt, and are left out" in lines
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["traces"]["trained_on"] == 6


def test_traces_depend_on_the_teachers_weights(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr("rlad.offline.sft.make_traces", lambda *given: found.append(given[6]["weights"]))
    for seed in (2, 2, 3):
        teacher = tiny.save(seed, tmp_path / "teacher")
        recipe = SftRecipe.from_mapping(mapping(base, None, tmp_path / "run", teacher=teacher))
        traces_of(recipe, load_task(recipe.task), print)
    assert found[0] == found[1] != found[2] and found[0].startswith("sha256:")
