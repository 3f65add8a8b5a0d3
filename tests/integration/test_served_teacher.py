"""Training with a served teacher: the same scores in the loss, several teachers, and one that dies in the middle."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

import stub_teacher
import tiny
from rlad.cli.main import main
from rlad.errors import RladError
from rlad.teacher.routing import ByTask
from rlad.teacher.server import ServerTeacher
from rlad.trainer.config import Recipe
from rlad.trainer.run import train
from rlad.trainer.saving import last_checkpoint
from stub_teacher import StubTeacher, edited, status

STEPS = 4


def split(text: str) -> list[int]:
    ids: list[int] = tiny.tokenizer()(text, add_special_tokens=False).input_ids
    return ids


@pytest.fixture
def stub() -> Iterator[StubTeacher]:
    with StubTeacher(splits=split) as running:
        yield running


def served(stub: StubTeacher, **options: Any) -> ServerTeacher:
    return ServerTeacher(stub.url, backoff=0.01, **options)


def rows(trainer: Any) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "loss" in row]


def test_a_model_trains_as_with_the_same_teacher_in_this_process(tmp_path: Path) -> None:
    """The stub scores with the teacher's own forward: the weights after two updates are those with LocalTeacher."""
    model = tiny.model(2)

    def logprob(ids: Any, place: int) -> float:
        with torch.no_grad():
            return tiny.direct_logps(model, ids[:place], [ids[place]]).item()

    with StubTeacher(score=logprob, splits=split) as stub:
        remote = tiny.trainer(tmp_path / "remote", teacher=served(stub), temperature=1.0)
        remote.train()
    local = tiny.trainer(tmp_path / "local", teacher=model)
    local.train()
    assert torch.allclose(tiny.weights(remote.model), tiny.weights(local.model), atol=1e-4)
    assert not torch.allclose(tiny.weights(remote.model), tiny.weights(tiny.model(1)), atol=1e-3)
    for a, b in zip(rows(remote), rows(local), strict=True):
        assert a["rlad/student_minus_teacher"] == pytest.approx(b["rlad/student_minus_teacher"], abs=1e-4)


def test_a_url_is_a_teacher(stub: StubTeacher, tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, teacher=stub.url)
    assert isinstance(made.teacher, ServerTeacher) and made.teacher.model == "stub"
    assert len(stub.bodies) == 1  # the self-test


def test_what_does_not_fit_is_refused_before_the_first_step(stub: StubTeacher, tmp_path: Path) -> None:
    with pytest.raises(RladError, match=r"does not fit temperature 0\.7"):
        tiny.trainer(tmp_path, teacher=served(stub), temperature=0.7)
    with pytest.raises(RladError, match="does not serve 'other': it serves stub"):
        tiny.trainer(tmp_path, teacher=served(stub, model="other"))
    assert stub.bodies == []


def test_broken_values_are_counted_and_end_the_run(stub: StubTeacher, tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path / "lenient", teacher=served(stub), max_broken_teacher=0.5)
    strict = tiny.trainer(tmp_path / "strict", teacher=served(stub), max_broken_teacher=0.01)

    def one_broken(choice: dict[str, Any]) -> None:
        ((_, entry),) = choice["prompt_logprobs"][-1].items()
        entry["logprob"] = math.nan

    stub.always = edited(one_broken)
    made.train()
    shares = [row["rlad/broken_teacher"] for row in rows(made)]
    lengths = [row["completions/mean_length"] for row in rows(made)]
    assert shares == [pytest.approx(1 / length, rel=1e-3) for length in lengths]
    assert all(math.isfinite(row["loss"]) for row in rows(made))
    with pytest.raises(RladError, match="teacher log-probs so far are NaN, infinite or positive"):
        strict.train()


def several(folder: Path, teachers: dict[str, Any], tasks: list[str], **options: Any) -> Any:
    """tiny.trainer with a column that names each prompt's task."""
    from rlad.trainer.trainer import RLADTrainer

    messages = [[{"role": "user", "content": text}] for text in tiny.PROMPTS * 4]
    return RLADTrainer(
        tiny.model(1),
        tiny.reward,
        tiny.arguments(folder),
        Dataset.from_dict({"prompt": messages, "task": tasks * 4}),
        processing_class=tiny.tokenizer(),
        teacher_model=ByTask(teachers, **options),
    )


def test_each_row_goes_to_the_teacher_of_its_task(
    stub: StubTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: list[Any] = []
    monkeypatch.setattr("rlad.trainer.teachers.self_test", lambda teacher, *_: tested.append(teacher))
    tiny.save(2, tmp_path / "teacher")
    local = {"path": str(tmp_path / "teacher"), "dtype": "float32"}
    made = several(tmp_path, {"who": stub.url, "is": local}, ["who", "is", "is", "who"])
    assert tested == [made.teacher.teachers["is"]]  # as one alone is; the served one scored its own text
    assert len(stub.bodies) == 1
    stub.bodies.clear()
    made.train()
    # Prompts end in the text of the user's message: those for the stub, and no others, were asked of it.
    asked = {tiny.tokenizer().decode(body["prompt"]) for body in stub.bodies}
    texts = [text for text in tiny.PROMPTS if any(text in each for each in asked)]
    assert asked and set(texts) <= {tiny.PROMPTS[0], tiny.PROMPTS[3]} and texts
    assert len(stub.bodies) % tiny.GROUP == 0 and all(math.isfinite(row["loss"]) for row in rows(made))


def test_a_task_without_a_teacher_is_found_before_the_first_step(stub: StubTeacher, tmp_path: Path) -> None:
    with pytest.raises(RladError, match="there is no teacher for 'is' in column 'task': teachers are for 'who'"):
        several(tmp_path, {"who": stub.url}, ["who", "is", "is", "who"])
    with pytest.raises(RladError, match="column 'kind', which the dataset does not have: it has prompt, task"):
        several(tmp_path, {"who": stub.url}, ["who"] * 4, column="kind")


# --- a teacher that dies in the middle of a run


def recipe(folder: Path, stub: StubTeacher, output: str, **teacher: Any) -> Path:
    if not (folder / "student").exists():
        tiny.save(1, folder / "student")
    made = Recipe.from_mapping(
        {
            "model": str(folder / "student"),
            "teacher": {"url": stub.url, "retries": 0, **teacher},
            "task": {"name": "knights_knaves", "people": [2], "size": 8},
            "method": "rlad",
            "trainer": {
                "max_steps": STEPS, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "use_cpu": True,
                "bf16": False, "gradient_checkpointing": False, "num_generations": tiny.GROUP,
                "per_device_train_batch_size": 2 * tiny.GROUP, "max_completion_length": tiny.RESPONSE,
            },
            "output": str(folder / output),
        }
    )  # fmt: skip
    path = folder / f"{output}.yaml"
    path.write_text(made.to_yaml(), encoding="utf-8")
    return path


def steps(output: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_a_teacher_that_dies_ends_the_run_in_one_line_and_resume_goes_on_to_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with StubTeacher(splits=split) as first:
        whole = recipe(tmp_path, first, "whole")
        assert main(["train", str(whole)]) == 0
        a_batch = 2 * tiny.GROUP
        assert len(first.bodies) == 1 + STEPS * a_batch
    capsys.readouterr()

    with StubTeacher(splits=split, faults=[None] * (1 + 2 * a_batch + 3), always=status(500, "it died")) as second:
        cut = recipe(tmp_path, second, "cut")
        assert main(["train", str(cut)]) == 2  # in the third update, after three of its sequences
        err = capsys.readouterr().err
        assert err.startswith("error: sequence ") and err.count("\n") == 1, err
        assert f"the teacher at {second.url} failed: HTTP 500: it died (1 try)" in err and "with --resume" in err
        checkpoint = last_checkpoint(tmp_path / "cut" / "checkpoints")
        assert checkpoint is not None and checkpoint.name == "checkpoint-2"
        assert steps(tmp_path / "cut") == [1, 2]
        assert not (tmp_path / "cut" / "model").exists() and not (tmp_path / "cut" / "summary.json").exists()

    # Gone altogether: going on is refused before a step, and nothing is lost.
    saved = str(tmp_path / "cut" / "recipe.yaml")
    assert main(["train", saved, "--resume"]) == 2
    assert "cannot connect" in capsys.readouterr().err and steps(tmp_path / "cut") == [1, 2]
    with StubTeacher(splits=split) as third:  # back, at another address
        assert main(["train", saved, "--resume", f"teacher.url={third.url}"]) == 0
        assert len(third.bodies) == 1 + 2 * a_batch
    assert steps(tmp_path / "cut") == [1, 2, 3, 4]
    ends = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut")]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_key_is_in_no_file_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    key = "sk-very-secret-9f3a"
    monkeypatch.setenv("TEACHER_KEY", key)
    with StubTeacher(splits=split, key=key) as stub:
        path = recipe(tmp_path, stub, "run", api_key_env="TEACHER_KEY")
        lines: list[str] = []
        assert train(Recipe.resolve(str(path), ["trainer.max_steps=2"]), emit=lines.append) == 0
        assert len(stub.bodies) == 1 + 2 * 2 * tiny.GROUP
    files = [each for each in (tmp_path / "run").rglob("*") if each.is_file()]
    assert any(each.name == "recipe.yaml" for each in files)
    assert not [each for each in files if key.encode() in each.read_bytes()]
    assert key not in "".join([*lines, *capfd.readouterr()])
    assert any(f"taught by {stub.url}" in line for line in lines)


def test_the_stubs_own_scores_depend_on_the_place() -> None:
    assert len(set(stub_teacher.expected([1], [2] * 5))) == 5
