"""RLADTrainer with `teacher_alignment="spans"`: the identity for equal tokenizers, and a teacher with another one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import tiny
from rlad.errors import RladError
from rlad.models.tokenizer import train_other_tokenizer
from rlad.teacher.routing import ByTask
from rlad.teacher.server import ServerTeacher
from rlad.teacher.spans import SpansTeacher
from rlad.trainer import teachers
from rlad.trainer import trainer as trainer_module
from stub_teacher import StubTeacher

# Two updates of two micro-batches each, and a batch used twice: rows change places, and old is kept.
SCHEDULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "iterations": {"num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": tiny.GROUP},
}


def other() -> PreTrainedTokenizerFast:
    """With merges for many pairs of letters, which are two tokens for the student."""
    return train_other_tokenizer(
        (*tiny.TEXTS, *(a + b for a in "abcdefghijkl" for b in "abcdefghijklmnop"), *tiny.TEXTS) * 2
    )


def writer() -> Any:
    """A student that writes more letters than bytes that are no text."""
    made, words = tiny.model(1), tiny.tokenizer()
    with torch.no_grad():
        made.get_input_embeddings().weight[words.convert_tokens_to_ids(list("abcdefghijklmnop"))] *= 3
    return made


def spans_trainer(folder: Path, method: Any = "rlad", teacher: Any = None, **options: Any) -> Any:
    words = other()
    teacher = tiny.model(2, len(words)) if teacher is None else teacher
    return tiny.trainer(folder, method, teacher, teacher_processing_class=words, teacher_alignment="spans", **options)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", ["rlad", {"name": "kdrl", "coefficient": 0.1}])
def test_equal_tokenizers_give_the_same_weights_as_tokens(schedule: str, method: Any, tmp_path: Path) -> None:
    ends = []
    for alignment in ("tokens", "spans"):
        trainer = tiny.trainer(tmp_path / alignment, method, teacher_alignment=alignment, **SCHEDULES[schedule])
        assert isinstance(trainer.teacher, SpansTeacher) == (alignment == "spans")
        before = tiny.weights(trainer.model)
        trainer.train()
        ends.append(tiny.weights(trainer.model))
        assert not torch.equal(before, ends[-1])
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_objective_gets_each_spans_share(schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against plain forwards of teacher and student and a loop, with rows sorted, cut and permuted on the way."""
    seen: list[tuple[dict[str, Any], Tensor, Tensor]] = []
    signals = trainer_module.token_signals

    def spy(logps: Tensor, old: Any, teacher: Any, advantages: Any, mask: Any, **more: Any) -> Any:
        if logps.requires_grad:
            seen.append((dict(trainer._signals_batch), teacher, more["teacher_ok"]))
        return signals(logps, old, teacher, advantages, mask, **more)

    monkeypatch.setattr(trainer_module, "token_signals", spy)
    # One batch of rollouts, so that old is the student as it was made; the second iteration's S is another.
    trainer = spans_trainer(
        tmp_path, student=writer(), max_steps=1 if schedule == "plain" else 2, **SCHEDULES[schedule]
    )
    trainer.train()
    student, shared, single, alone = writer(), 0, 0, 0
    assert len(seen) == (1 if schedule == "plain" else 4)
    for batch, teacher, usable in seen:
        for i, mask in enumerate(batch["completion_mask"].bool()):
            prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
            response = batch["completion_ids"][i][mask].tolist()
            old = tiny.direct_logps(student, prompt, response)
            asked = trainer.teacher.tokenizer.encode(tiny.tokenizer().decode(prompt))
            aligned = trainer.teacher.align(response)
            values = tiny.direct_logps(trainer.teacher.teacher.model, asked, aligned.ids)
            for t, span in enumerate(aligned.spans.tolist()):
                share = old[t]
                if span >= 0:
                    mine = aligned.spans == span
                    share = share + (values[aligned.theirs == span].sum() - old[mine].sum()) / mine.sum()
                    shared, single = shared + int(mine.sum() > 1), single + int(mine.sum() == 1)
                else:
                    alone += 1
                assert teacher[i, t].item() == pytest.approx(share.item(), abs=1e-4)
                # Where the teacher says nothing the token is GRPO's, also when the student has left old.
                assert bool(usable[i, t]) == (span >= 0)
    assert shared and single and alone


def test_a_run_is_logged_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **SCHEDULES["iterations"]}
    whole = spans_trainer(tmp_path / "whole", **options)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    resumed = spans_trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert torch.equal(tiny.weights(whole.model), tiny.weights(resumed.model))
    logged = [row["rlad/unaligned"] for row in whole.state.log_history if "rlad/unaligned" in row]
    assert logged and all(0 < share < 1 for share in logged)  # a random student writes bytes that are no text
    assert all(row["rlad/broken_teacher"] == 0 for row in whole.state.log_history if "rlad/broken_teacher" in row)


class Broken:
    """A teacher whose every value is NaN."""

    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Tensor]:
        return [torch.full((len(response),), torch.nan) for response in responses]


def test_broken_values_are_counted_through_spans(tmp_path: Path) -> None:
    with pytest.raises(RladError, match="teacher log-probs so far are NaN"):
        spans_trainer(tmp_path, teacher=Broken()).train()
    trainer = spans_trainer(tmp_path, teacher=Broken(), max_broken_teacher=1.0, max_steps=1)
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "rlad/broken_teacher" in row]
    assert row["rlad/broken_teacher"] + row["rlad/unaligned"] == pytest.approx(1.0)


def test_tokenizers_that_differ_are_refused_with_the_way_out(tmp_path: Path) -> None:
    words = other()
    with pytest.raises(RladError, match=r"do not share a tokenizer: .*alignment: spans"):
        tiny.trainer(tmp_path, "rlad", tiny.model(2, len(words)), teacher_processing_class=words)


def test_the_teacher_is_tested_in_its_own_tokens_and_endings_are_those_of_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested: list[Any] = []
    monkeypatch.setattr(teachers, "self_test", lambda teacher, tokenizer, model: tested.append(tokenizer))
    student = tiny.model(1)
    student.generation_config.eos_token_id = [tiny.tokenizer().eos_token_id, 5]
    trainer = spans_trainer(tmp_path, student=student)
    assert [len(each) for each in tested] == [len(other())]
    assert trainer.teacher.endings == set(trainer.eos_token_ids) >= {tiny.tokenizer().eos_token_id, 5}


def test_tools_are_refused(tmp_path: Path) -> None:
    trainer = spans_trainer(tmp_path)
    trainer.tools = [print]
    with pytest.raises(RladError, match="does not fit tools"):
        teachers.on_spans(trainer, Broken(), other())


def test_what_spans_do_not_fit_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(RladError, match="tokens or spans, not 'words'"):
        tiny.trainer(tmp_path, teacher_alignment="words")
    with pytest.raises(RladError, match="for one teacher, not for one by task"):
        spans_trainer(tmp_path, teacher=ByTask({"a": Broken()}))
    with pytest.raises(RladError, match="tokenizer is unknown"):
        tiny.trainer(tmp_path, "rlad", Broken(), teacher_processing_class=None, teacher_alignment="spans")
    words = other()
    words.chat_template = None
    with pytest.raises(RladError, match="no chat template"):
        tiny.trainer(tmp_path, "rlad", Broken(), teacher_processing_class=words, teacher_alignment="spans")


def test_a_served_teacher_scores_spans_by_the_tokenizer_that_is_named(tmp_path: Path) -> None:
    other().save_pretrained(tmp_path / "words")
    with StubTeacher() as server:
        teacher = ServerTeacher(server.url, tokenizer=str(tmp_path / "words"))
        trainer = tiny.trainer(
            tmp_path, "rlad", teacher, teacher_processing_class=None, teacher_alignment="spans", max_steps=1
        )
        trainer.train()
    (row,) = [row for row in trainer.state.log_history if "rlad/broken_teacher" in row]
    assert row["rlad/broken_teacher"] == 0 and row["rlad/unaligned"] < 1
    with StubTeacher() as server, pytest.raises(RladError, match="name a served teacher's in"):
        tiny.trainer(
            tmp_path, "rlad", ServerTeacher(server.url), teacher_processing_class=None, teacher_alignment="spans"
        )
