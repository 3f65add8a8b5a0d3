"""The methods that ask which rollouts are right, and the schedules, through the whole trainer with tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from letters_task import Letters
from rlad.errors import RladError
from rlad.objectives import HDPO, KDRL, RLAD, RLSD, SRPO, KDRLAnnealed, KDRLMask, Method, OPDThenGRPO, RLADSchedule
from rlad.trainer.run import reward_function

METHODS: list[Method] = [
    KDRLMask(coefficient=0.3), SRPO(), HDPO(coefficient=0.3), RLSD(), RLADSchedule(start=0.1), KDRLAnnealed(),
]  # fmt: skip


class Scored(Letters):
    """Right: a response with more letters than `share`."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def score(self, response: str, example: Any) -> Any:
        score = super().score(response, example)
        return type(score)(score.value, score.value > self.share, None, "")


def trained(folder: Path, method: Any, share: float = 0.5, **options: Any) -> tuple[Any, Tensor]:
    trainer = tiny.trainer(folder, method, reward_funcs=reward_function(Scored(share)), **options)
    trainer.train()
    return trainer, tiny.weights(trainer.model)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_two_steps_change_the_student(method: Method, tmp_path: Path) -> None:
    # Two micro-batches an update, so that rows are shuffled away from their groups.
    trainer, after = trained(tmp_path, method, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert torch.isfinite(after).all() and not torch.equal(after, tiny.weights(tiny.model(1)))
    rows = [row for row in trainer.state.log_history if "reward" in row]
    assert len(rows) == 2 and all(row["rlad/broken_teacher"] == 0 for row in rows)


def test_all_right_is_grpo_and_all_wrong_is_kdrl(tmp_path: Path) -> None:
    """Through the trainer, to the bit: the batch says what is right."""
    grpo = trained(tmp_path / "grpo", "grpo")[1]
    kdrl = trained(tmp_path / "kdrl", KDRL(coefficient=0.3, form="reward"))[1]
    assert not torch.equal(grpo, kdrl)
    for i, method in enumerate((KDRLMask(coefficient=0.3), HDPO(coefficient=0.3))):
        assert torch.equal(trained(tmp_path / f"right-{i}", method, share=-1.0)[1], grpo)
        assert torch.equal(trained(tmp_path / f"wrong-{i}", method, share=2.0)[1], kdrl)
    some = [trained(tmp_path / f"some-{i}", m(coefficient=0.3))[1] for i, m in enumerate((KDRLMask, HDPO))]
    assert not torch.equal(some[0], grpo) and not torch.equal(some[0], kdrl) and not torch.equal(some[0], some[1])


@pytest.mark.parametrize("groups", ["keep", "refill"])
def test_the_batch_says_what_is_right_row_by_row(groups: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row in a micro-batch is scored again, and the group of its prompt with it."""
    share, micro = 0.45, []
    trainer = tiny.trainer(
        tmp_path, SRPO(), reward_funcs=reward_function(Scored(share)), groups=groups, max_steps=1,
        per_device_train_batch_size=4, gradient_accumulation_steps=4, shuffle_dataset=False,  # four different prompts
    )  # fmt: skip
    put = type(trainer)._put_objective

    def spy(self: Any, batch: dict[str, Any], logps: Tensor) -> Tensor:
        micro.append(dict(batch))
        return put(self, batch, logps)

    monkeypatch.setattr(type(trainer), "_put_objective", spy)
    trainer.train()
    found: dict[tuple[int, ...], list[tuple[bool, bool]]] = {}
    for batch in micro:
        for i in range(4):
            ids = batch["completion_ids"][i][batch["completion_mask"][i].bool()]
            text = tiny.tokenizer().decode(ids, skip_special_tokens=True)
            right = Scored(share).score(text, {}).correct
            assert batch["correct"][i] == right
            prompt = tuple(batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist())
            found.setdefault(prompt, []).append((right, bool(batch["group_wrong"][i])))
    assert sum(map(len, found.values())) == 16
    assert len({right for rows in found.values() for right, _ in rows}) == 2
    whole = [rows for rows in found.values() if len(rows) == tiny.GROUP]  # a refilled prompt may be there twice
    for rows in whole:
        assert {wrong for _, wrong in rows} == {not any(right for right, _ in rows)}
    if groups == "keep":
        assert len(whole) == 4 and any(len({right for right, _ in rows}) == 2 for rows in whole)


def test_a_reward_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RladError, match="srpo needs to know which rollouts are right"):
        tiny.trainer(tmp_path, SRPO()).train()


def test_a_schedule_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps: progress is 0, 1/4, 1/2, 3/4."""
    seen: list[float] = []
    ratio = RLAD.log_ratio

    def spy(self: RLAD, signals: Any) -> Tensor:
        seen.append(self.alpha)
        return ratio(self, signals)

    monkeypatch.setattr(RLAD, "log_ratio", spy)
    trained(tmp_path, RLADSchedule(start=0.2, end=1.0), max_steps=4)
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8])


class Counting:
    """A teacher that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def score(self, prompts: Any, responses: Any) -> list[Tensor]:
        self.asked += 1
        return [torch.full((len(response),), -1.0) for response in responses]


@pytest.mark.parametrize(
    ("method", "options", "times"),
    [
        (OPDThenGRPO(switch=0.5), {}, 2),  # progress 0 and 1/4
        (OPDThenGRPO(switch=0.6), {}, 3),
        (OPDThenGRPO(switch=0.5), {"num_iterations": 2}, 1),  # rollouts at steps 0 and 2
        (OPDThenGRPO(switch=0.6), {"num_iterations": 2}, 2),  # step 2 of 4 is still OPD's, and so are its rollouts
        (RLADSchedule(end=1.0), {}, 4),  # alpha is below 1 until the end
    ],
)
def test_a_schedule_that_is_done_with_its_teacher_asks_no_more(
    method: Method, options: dict[str, Any], times: int, tmp_path: Path
) -> None:
    teacher = Counting()
    trainer = trained(tmp_path, method, teacher=teacher, max_steps=4, **options)[0]
    assert teacher.asked == times
    assert ["rlad/student_minus_teacher" in row for row in trainer.state.log_history if "rlad/ratio" in row] == [
        step < times * options.get("num_iterations", 1) for step in range(4)
    ]
