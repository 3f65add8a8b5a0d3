"""`groups: refill` in a real training: the batch is full of signal, what was dropped is counted, resuming is exact."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from rlad.errors import RladError
from rlad.objectives import group_advantages
from rlad.tasks import Score
from rlad.trainer.groups import Counts
from rlad.trainer.saving import STATE_FILE

EASY, HARD = tiny.PROMPTS[0], tiny.PROMPTS[1]  # always right, always wrong; the others depend on the response


class Reward:
    """Two of the four prompts never have signal. Keeps the scores, as rlad's own reward function does."""

    __name__ = "mixed"

    def __init__(self, signal: bool = True) -> None:
        self.signal, self.scores, self.calls = signal, list[Score](), 0

    def __call__(self, prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        self.calls += 1
        letters = tiny.reward(completions)
        values = [
            1.0 if prompt[-1]["content"] == EASY else value if self.signal and prompt[-1]["content"] != HARD else 0.0
            for prompt, value in zip(prompts, letters, strict=True)
        ]
        self.scores = [Score(value, value > 0.5, None, "") for value in values]
        return values


def run(folder: Path, reward: Reward | None = None, resume: Path | None = None, **options: Any) -> Any:
    options = {"groups": "refill", "refill_rounds": 8, "save_strategy": "steps", "save_steps": 2} | options
    trainer = tiny.trainer(folder, "rlad", reward_funcs=reward or Reward(), max_steps=4, **options)
    seen: list[dict[str, Any]] = []
    generate = trainer._generate_and_score_completions

    def spy(inputs: list[Any]) -> Any:
        seen.append(generate(inputs))
        return seen[-1]

    trainer._generate_and_score_completions = spy  # its rows are in groups; TRL shuffles them afterwards
    trainer.seen = seen
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def without_signal(batch: dict[str, Any]) -> int:
    return int((batch["advantages"].view(-1, tiny.GROUP) == 0).all(1).sum())


def off(trainer: Any, batch: dict[str, Any]) -> float:
    """How far a batch's advantages are from those of its own responses' rewards."""
    texts = trainer.processing_class.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    prompts = trainer.processing_class.batch_decode(batch["prompt_ids"], skip_special_tokens=True)
    asked = [next(text for text in tiny.PROMPTS if text in prompt) for prompt in prompts]
    rewards = Reward()([[{"content": text}] for text in asked], texts)
    expected = group_advantages(torch.tensor(rewards), tiny.GROUP)
    return float((expected - batch["advantages"].cpu()).abs().max())


def test_every_group_of_the_batch_has_signal_and_the_dropped_are_counted(tmp_path: Path) -> None:
    kept, refilled = run(tmp_path / "kept", groups="keep"), run(tmp_path / "refilled")
    assert sum(without_signal(batch) for batch in kept.seen) > 0
    assert [without_signal(batch) for batch in refilled.seen] == [0] * 4
    counts = refilled.refilled
    assert counts.all_right > 0 and counts.all_wrong > 0 and counts.unfilled == 0 and counts.rounds > 0
    assert counts.cursor > counts.dropped - 8  # every dropped group but those of the sampler came from the stream
    assert counts.dropped == sum(row["rlad/refill_dropped"] for row in refilled.state.log_history if "loss" in row)
    assert kept.refilled == Counts()


def test_the_rows_are_whole_groups_of_one_prompt_and_the_teacher_scores_them(tmp_path: Path) -> None:
    """The teacher's log-probs are those of the rows that train, not of those that were dropped."""
    trainer = run(tmp_path / "run", loss_type="dapo", trim_padding=False)
    for batch in trainer.seen:
        mask, prompts = batch["completion_mask"].bool(), batch["prompt_ids"] * batch["prompt_mask"]
        for group in prompts.view(2, tiny.GROUP, -1):
            assert (group == group[0]).all()
        assert int(batch["num_items_in_batch"]) == int(mask.sum())
        ids = [row[keep].tolist() for row, keep in zip(batch["prompt_ids"], batch["prompt_mask"].bool(), strict=True)]
        responses = [row[keep].tolist() for row, keep in zip(batch["completion_ids"], mask, strict=True)]
        for i, row in enumerate(trainer.teacher.score(ids, responses)):
            assert torch.allclose(batch["teacher_logps"][i][mask[i]], row, atol=1e-4)


def test_without_a_group_to_drop_nothing_changes(tmp_path: Path) -> None:
    found = []
    for groups in ("keep", "refill"):
        trainer = tiny.trainer(tmp_path / groups, groups=groups)
        trainer.train()
        assert trainer._zero_variance == 0
        found.append(tiny.weights(trainer.model))
    assert torch.equal(*found)


def test_what_never_has_signal_stays_and_is_counted(tmp_path: Path) -> None:
    reward = Reward(signal=False)
    trainer = run(tmp_path / "run", reward, refill_rounds=2)
    assert trainer.refilled.unfilled == 4 * 2 and trainer.refilled.rounds == 4 * 2
    assert trainer.refilled.dropped == trainer.refilled.cursor == 4 * 2 * 2 and reward.calls == 4 * 3
    assert [row["rlad/refill_unfilled"] for row in trainer.state.log_history if "loss" in row] == [2] * 4


def test_what_is_logged_is_of_prompts_as_they_come(tmp_path: Path) -> None:
    """The reward of the first step is that of the same prompts without refilling; tokens are all that were made."""
    first = [
        next(row for row in run(tmp_path / groups, groups=groups).state.log_history if "loss" in row)
        for groups in ("keep", "refill")
    ]
    assert first[1]["rlad/refill_rounds"] > 0
    assert first[0]["reward"] == first[1]["reward"]
    assert first[0]["num_tokens"] < first[1]["num_tokens"]


@pytest.mark.parametrize("iterations", [1, 2])
def test_resuming_gives_the_same_bits(iterations: int, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", num_iterations=iterations)
    state = json.loads((tmp_path / "whole" / "checkpoint-2" / STATE_FILE).read_text())
    assert state["refilled"]["cursor"] > 0
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    resumed = run(tmp_path / "cut", resume=tmp_path / "cut" / "checkpoint-2", num_iterations=iterations)
    assert torch.equal(tiny.weights(whole.model), tiny.weights(resumed.model))
    assert whole.refilled == resumed.refilled
    # The cursor matters: from the next place of the stream on the run is another.
    state["refilled"]["cursor"] += 1
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "other" / "checkpoint-2")
    (tmp_path / "other" / "checkpoint-2" / STATE_FILE).write_text(json.dumps(state))
    other = run(tmp_path / "other", resume=tmp_path / "other" / "checkpoint-2", num_iterations=iterations)
    assert not torch.equal(tiny.weights(whole.model), tiny.weights(other.model))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": "drop"}, "groups: must be one of 'keep', 'refill'"),
        ({"refill_rounds": 0}, "refill_rounds: must be at least 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RladError, match=words):
        tiny.arguments(tmp_path, **options)


def test_groups_that_are_split_over_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of six rollouts are whole groups of four together, and not each by itself."""
    monkeypatch.setattr("rlad.trainer.arguments.RLADConfig.world_size", 2)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "num_generations": 4}
    tiny.arguments(tmp_path, **options)
    with pytest.raises(RladError, match="needs whole groups in each process, and 6 rollouts"):
        tiny.arguments(tmp_path, groups="refill", **options)


SCRIPT = """
import sys, json, torch
sys.path[:0] = [{tests!r}, {here!r}]
import test_refill
from pathlib import Path
trainer = test_refill.run(Path(sys.argv[1]), save_strategy="no", per_device_train_batch_size=4,
                          gradient_accumulation_steps=2, ddp_find_unused_parameters=False)
rank = trainer.accelerator.process_index
found = dict(flat=[test_refill.without_signal(b) for b in trainer.seen],
             prompts=[b["prompt_ids"].tolist() for b in trainer.seen],
             off=max(test_refill.off(trainer, b) for b in trainer.seen),
             weights=float(test_refill.tiny.weights(trainer.accelerator.unwrap_model(trainer.model)).double().sum()),
             counts=trainer.refilled.__dict__)
Path(sys.argv[1], f"rank{{rank}}.json").write_text(json.dumps(found))
torch.distributed.barrier()  # gloo aborts a process whose peer has gone
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_fill_their_batches_from_one_stream(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    here = Path(__file__).parent
    script.write_text(SCRIPT.format(tests=str(here.parent), here=str(here)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    one, two = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert set(one["flat"]) == set(two["flat"]) == {0}
    assert one["prompts"] != two["prompts"]
    assert one["off"] < 1e-6 and two["off"] < 1e-6  # each has the advantages of its own rollouts
    assert one["weights"] == two["weights"] and one["counts"] == two["counts"]
    assert one["counts"]["all_right"] > 0 and one["counts"]["unfilled"] == 0
