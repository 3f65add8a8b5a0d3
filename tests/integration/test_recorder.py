"""What a real training records: the signals that trained, row by row, and what they did to the update."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from rlad import records
from rlad.cli.main import main
from rlad.errors import RladError
from rlad.report.contributions import group_contributions, method_of
from rlad.report.words import NO_RECORDS
from rlad.tasks import Score
from rlad.trainer.recorder import ROW, TOKENIZER


def scored(completions: list[Any], **_: Any) -> list[float]:
    """Right where the response has an even number of characters; the scores stay with the function, as a task's do."""
    texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
    scores = [Score(float(len(t) % 2 == 0), len(t) % 2 == 0, t[:3], f"{len(t)} characters") for t in texts]
    scored.scores = scores  # type: ignore[attr-defined]
    return [score.value for score in scores]


class Spied:
    """A trainer whose every row is watched: what went into the objective, and the gradient that came back."""

    def __init__(self, folder: Path, method: Any, **options: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        defaults = {
            "record_every": 1,
            "record_groups": 2,
            "record_folder": str(folder / "records"),
            "per_device_train_batch_size": tiny.GROUP,
            "gradient_accumulation_steps": 2,
        }
        self.trainer = tiny.trainer(folder / "checkpoints", method, **(defaults | options))
        self.inner = self.trainer._put_objective
        self.trainer._put_objective = self.put

    def put(self, batch: dict[str, Any], logps: Tensor) -> Tensor:
        rows, step = batch[ROW].tolist(), self.trainer.state.global_step + 1
        known = [
            {"step": step, "row": row, "ids": batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist(),
             "logps": logps[i].detach().clone(), "advantage": float(batch["advantages"][i]),
             "teacher": batch["teacher_logps"][i].clone() if "teacher_logps" in batch else None}
            for i, row in enumerate(rows)
        ]  # fmt: skip

        def keep(gradient: Tensor) -> None:
            for i, each in enumerate(known):
                each["gradient"] = -gradient[i].clone()

        logps.register_hook(keep)
        self.seen += known
        result: Tensor = self.inner(batch, logps)
        return result


def recorded(folder: Path) -> list[dict[str, Any]]:
    return list(records.read_rows(folder / "records", "rollout"))


METHODS = [
    "grpo",
    {"name": "rlad", "alpha": 0.3},
    {"name": "rlad", "alpha": 0.5, "teacher_clip": None},
    {"name": "rlad", "teacher_clip_gradient": "anchor"},
    {"name": "kdrl", "coefficient": 0.1},
    {"name": "kdrl", "form": "reward", "coefficient": 0.1},
    "opd",
    "srpo",
    {"name": "hdpo", "coefficient": 0.5},
    "rlsd",
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_contribution_of_a_recorded_token_is_the_gradient_that_the_update_had(method: Any, tmp_path: Path) -> None:
    """By autograd in the training itself, through TRL's loss, its denominator and its shuffling: weight x contribution
    is the gradient of minus the loss in that token's log pi."""
    spied = Spied(tmp_path, method, reward_funcs=scored, max_steps=2)
    spied.trainer.train()
    rows = recorded(tmp_path)
    assert len(rows) == 2 * 2 * tiny.GROUP
    by_place = {(each["step"], each["row"]): each for each in spied.seen}
    moved = 0
    for step in (1, 2):
        about = records.read_about(records.part(tmp_path / "records", step))
        in_force = method_of(about["in_force"])
        assert in_force is not None
        for group in (0, 1):
            of_group = [row for row in rows if (row["step"], row["group"]) == (step, group)]
            assert [row["index"] for row in of_group] == list(range(tiny.GROUP))
            for row, found in zip(of_group, group_contributions(of_group, in_force), strict=True):
                seen = by_place[step, group * tiny.GROUP + row["index"]]
                assert row["tokens"] == seen["ids"] and row["advantage"] == pytest.approx(seen["advantage"])
                length = len(row["tokens"])
                assert row["logps"] == seen["logps"][:length].tolist()
                if seen["teacher"] is not None:
                    assert row["teacher_logps"] == seen["teacher"][:length].tolist()
                expected = seen["gradient"][:length].numpy()
                assert found["contribution"] * row["weight"] == pytest.approx(expected, rel=1e-4, abs=1e-8)
                assert found["log_ratio"] == pytest.approx(np.array(row["log_ratio"]), abs=1e-5)
                moved += int((np.abs(expected) > 1e-4).sum())
    assert moved > 20  # the comparison is not of zeros


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_the_weight_is_the_denominator_of_the_update(loss_type: str, tmp_path: Path) -> None:
    spied = Spied(tmp_path, "rlad", loss_type=loss_type, max_steps=1)
    spied.trainer.train()
    seen, largest = {each["row"]: each for each in spied.seen}, 0.0
    for group in (0, 1):
        rows = [row for row in recorded(tmp_path) if row["group"] == group]
        for row, found in zip(rows, group_contributions(rows, method_of({"name": "rlad"})), strict=True):  # type: ignore[arg-type]
            expected = seen[group * tiny.GROUP + row["index"]]["gradient"][: len(row["tokens"])].numpy()
            assert found["contribution"] * row["weight"] == pytest.approx(expected, rel=1e-4, abs=1e-8)
            largest = max(largest, float(np.abs(expected).max()))
    assert largest > 1e-3


def test_several_updates_of_a_generation_are_recorded_as_each_row_is_first_trained_on(tmp_path: Path) -> None:
    """Two updates share a generation, twice over: rows of the second have left old, and what counts is their first."""
    spied = Spied(tmp_path, "rlad", steps_per_generation=4, num_iterations=2, max_steps=4)
    spied.trainer.train()
    assert list(records.parts(tmp_path / "records")) == [1]
    first: dict[int, dict[str, Any]] = {}
    for each in spied.seen:
        first.setdefault(each["row"], each)
    late = 0
    for row in recorded(tmp_path):
        seen = first[row["group"] * tiny.GROUP + row["index"]]
        assert row["logps"] == seen["logps"][: len(row["tokens"])].tolist()
        late += row["logps"] != row["old_logps"]
    assert late > 0


def test_what_is_recorded_of_a_rollout(tmp_path: Path) -> None:
    student = tiny.save(1, tmp_path / "student")
    method = {"name": "rlad", "alpha": 0.25}
    spied = Spied(tmp_path, method, reward_funcs=scored, max_steps=1, beta=0.01, student=student)
    words = tiny.tokenizer()
    spied.trainer.train()
    for row in recorded(tmp_path):
        assert row["prompt"] == words.decode(row["prompt_tokens"]) and row["response"] == words.decode(row["tokens"])
        assert any(text in row["prompt"] for text in tiny.PROMPTS) and row["prompt"].startswith("<|im_start|>")
        assert row["stop"] == ("stop" if row["tokens"][-1] == words.eos_token_id else "length")
        plain = words.decode(row["tokens"], skip_special_tokens=True)
        assert row["correct"] == (len(plain) % 2 == 0) and row["extracted"] == plain[:3]
        assert row["reward"] == float(row["correct"]) and row["reward_parts"] == {"scored": row["reward"]}
        assert row["entropy"] is not None and all(value > 0 for value in row["entropy"])
        assert row["ref_logps"] is not None and len(row["ref_logps"]) == len(row["tokens"])
        for old, teacher, anchor in zip(row["old_logps"], row["teacher_logps"], row["anchor"], strict=True):
            assert anchor == pytest.approx(0.25 * old + 0.75 * teacher, abs=1e-5)
        clipped = [low or high for low, high in zip(row["clipped_low"], row["clipped_high"], strict=True)]
        assert [bool(branch) for branch in row["branch"]] == clipped
        for token, ratio in enumerate(row["log_ratio"]):
            high = row["advantage"] > 0 and ratio > np.log(1.28)
            low = row["advantage"] < 0 and ratio < np.log(0.8)
            assert (row["clipped_high"][token], row["clipped_low"][token]) == (high, low)
            gap = row["logps"][token] - row["teacher_logps"][token]
            assert row["clamped"][token] == (abs(gap) > 1.0)
    about = records.read_about(tmp_path / "records")
    assert about["method"]["alpha"] == 0.25 and about["groups"] == 2 and "at random" in about["kept"]
    assert (tmp_path / "records" / TOKENIZER).is_file()


def test_a_broken_teacher_value_is_recorded_as_none_and_counts_as_grpo(tmp_path: Path) -> None:
    class Broken:
        def score(self, prompts: Any, responses: Any) -> list[Tensor]:
            found = [torch.full((len(response),), -1.0) for response in responses]
            for row in found:
                row[0] = float("nan")
            return found

    spied = Spied(tmp_path, {"name": "rlad", "alpha": 0.0}, teacher=Broken(), max_broken_teacher=1.0, max_steps=1)
    spied.trainer.train()
    rows = [row for row in recorded(tmp_path) if row["group"] == 0]
    for row, found in zip(rows, group_contributions(rows, method_of({"name": "rlad", "alpha": 0.0})), strict=True):  # type: ignore[arg-type]
        assert np.isnan(row["teacher_logps"][0]) and row["teacher_logps"][1:] == [-1.0] * (len(row["tokens"]) - 1)
        assert row["log_ratio"][0] == 0 and found["changed"][0] == 0
        assert row["anchor"][0] == pytest.approx(row["old_logps"][0])


def test_dropped_groups_are_recorded_with_the_reason(tmp_path: Path) -> None:
    calls: list[int] = []

    def reward(completions: list[Any], **_: Any) -> list[float]:
        """The first generation has a group that is all right and one that is all wrong; later ones are mixed."""
        calls.append(len(completions))
        first = len(calls) == 1
        right = [(i < tiny.GROUP) if first else bool(i % 2) for i in range(len(completions))]
        reward.scores = [Score(float(each), each, None, "") for each in right]  # type: ignore[attr-defined]
        return [float(each) for each in right]

    spied = Spied(tmp_path, "rlad", reward_funcs=reward, groups="refill", max_steps=1)
    spied.trainer.train()
    rows = recorded(tmp_path)
    dropped = [row for row in rows if row["dropped"]]
    assert {row["reason"] for row in dropped} == {"all_right", "all_wrong"} and len(dropped) == 2 * tiny.GROUP
    assert all(row["logps"] is None and row["weight"] is None and row["mask"] for row in dropped)
    assert len({row["group"] for row in rows}) == 4 and not any(row["dropped"] for row in rows if row["group"] < 2)
    assert {row["advantage"] for row in dropped} == {0.0}
    assert records.read_about(tmp_path / "records")["dropped"] == {"all_right": 1, "all_wrong": 1}
    # The recorded rewards of what trained are those of the second generation: half of each group is right.
    for group in (0, 1):
        assert sorted(row["reward"] for row in rows if row["group"] == group) == [0.0, 0.0, 1.0, 1.0]


def test_responses_that_were_cut_off_and_masked_are_recorded_as_masked(tmp_path: Path) -> None:
    spied = Spied(tmp_path, "rlad", mask_truncated_completions=True, max_steps=1)
    spied.trainer.train()
    cut = [row for row in recorded(tmp_path) if row["stop"] == "length"]
    assert cut
    for row in cut:
        assert len(row["tokens"]) == tiny.RESPONSE and not any(row["mask"]) and np.isnan(row["logps"]).all()


def test_a_run_that_is_killed_leaves_every_finished_file_and_one_that_goes_on_makes_the_rest_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    whole, folder = Spied(tmp_path / "whole", "rlad", **options), tmp_path / "cut"
    whole.trainer.train()
    cut, real = Spied(folder, "rlad", **options), os.replace

    def killed(source: Any, target: Any) -> None:
        if "part-000003" in str(target):
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cut.trainer.train()
    assert list(records.parts(folder / "records")) == [1, 2] and len(recorded(folder)) == 2 * 2 * tiny.GROUP
    again = Spied(folder, "rlad", **options)
    again.trainer.train(resume_from_checkpoint=str(folder / "checkpoints" / "checkpoint-1"))
    ours, theirs = recorded(folder), recorded(tmp_path / "whole")
    assert [row["logps"] for row in ours] == [row["logps"] for row in theirs] and len(ours) == 3 * 2 * tiny.GROUP


def test_recording_changes_nothing_in_the_training_and_is_off_by_default(tmp_path: Path) -> None:
    ends = []
    for every in (0, 1):
        trainer = tiny.trainer(tmp_path / str(every) / "checkpoints", "rlad", record_every=every)
        trainer.train()
        ends.append(tiny.weights(trainer.model))
    assert torch.equal(*ends)
    assert not (tmp_path / "0" / "checkpoints" / "records").exists()
    assert len(records.parts(tmp_path / "1" / "checkpoints" / "records")) == 2
    assert tiny.arguments(tmp_path).record_every == 0


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RladError, match="record_every must be at least 0"):
        tiny.arguments(tmp_path, record_every=-1)
    with pytest.raises(RladError, match="record_groups at least 1"):
        tiny.arguments(tmp_path, record_groups=0)


@pytest.mark.parametrize("every", [None, 0])
def test_rlad_train_records_unless_told_not_to_and_writes_the_page(
    every: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    overrides = ["max_steps=1", "per_device_train_batch_size=16", "gradient_accumulation_steps=1",
                 "max_completion_length=8", "save_strategy='no'"]  # fmt: skip
    overrides += [] if every is None else [f"record_every={every}"]
    words = [f"trainer.{each}" for each in overrides]
    assert main(["train", "quickstart", *words, "evaluate=null", "task.size=16", "--output", str(output)]) == 0
    assert f"{output / 'report.html'}  (what the teacher did" in capsys.readouterr().out
    assert (output / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (output / "records").exists() == (every is None)
    assert main(["report", str(output)]) == 0 and main(["show", str(output)]) == 0
    said = capsys.readouterr().out
    if every is None:
        assert (
            "report.html: 0." in said and ", 16 rollouts" in said and "0.0% (0 of 16) recorded rollouts: wrong" in said
        )
        (group, *_) = {row["group"] for row in recorded(output)}
        assert main(["show", str(output), f"1/{group}/0/0"]) == 0
        assert "bounds of the clip" in capsys.readouterr().out
    else:
        assert "no records: curves alone" in said and NO_RECORDS in said


def test_a_page_that_cannot_be_written_costs_the_finished_run_nothing(tmp_path: Path) -> None:
    from rlad.trainer.run import _report

    lines: list[str] = []
    _report(tmp_path, lines.append)  # no run is there
    assert lines[0].startswith("no report was written: ") and not (tmp_path / "report.html").exists()
