"""TRL's adaptive entropy (Skywork-OR1) beside our objective: it steers towards the target, and resumes as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny

STEPS = 60


def nothing_to_learn(completions: list[Any], **_: Any) -> list[float]:
    """Equal rewards: advantage 0, so that the entropy bonus is all that trains."""
    return [0.0] * len(completions)


def run(folder: Path, target: float, resume: Path | None = None, **options: Any) -> Any:
    entropy = {"use_adaptive_entropy": True, "entropy_target": target, "entropy_coef": 0.0, "entropy_coef_delta": 0.02}
    reward = options.pop("reward_funcs", nothing_to_learn)
    defaults = {"max_steps": STEPS, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
    trainer = tiny.trainer(folder, "rlad", reward_funcs=reward, **(defaults | entropy | options))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.rows = [row for row in trainer.state.log_history if "loss" in row]
    return trainer


def test_it_steers_the_entropy_towards_the_target(tmp_path: Path) -> None:
    """Below the target the coefficient grows by delta a step and the entropy rises to the target; above it the bonus is
    off and the coefficient falls again, so the entropy stays near."""
    start = run(tmp_path / "start", target=0.0, max_steps=1).rows[0]["entropy"]
    target = start + 0.4
    rows = run(tmp_path / "steered", target=target).rows
    entropies = [row["entropy"] for row in rows]
    coefficients = [row["entropy_coef"] for row in rows]
    assert coefficients[:5] == pytest.approx([0.02 * (i + 1) for i in range(5)])
    assert max(entropies) > target  # reached
    crossed = next(i for i, entropy in enumerate(entropies) if entropy > target)
    assert coefficients[crossed] == pytest.approx(coefficients[crossed - 1] - 0.02)
    late = entropies[crossed:]
    assert abs(sum(late) / len(late) - target) < 0.2 < target - start


def test_above_the_target_there_is_no_bonus(tmp_path: Path) -> None:
    trainer = run(tmp_path, target=0.5, max_steps=3)
    assert torch.equal(tiny.weights(trainer.model), tiny.weights(tiny.model(1)))
    assert [row["entropy_coef"] for row in trainer.rows] == [0.0] * 3


def test_resuming_gives_the_same_bits(tmp_path: Path) -> None:
    """The coefficient and the last entropy are in the checkpoint."""
    options = {"target": 99.0, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "reward_funcs": tiny.reward}
    whole = run(tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    resumed = run(tmp_path / "cut", resume=tmp_path / "cut" / "checkpoint-2", **options)
    assert torch.equal(tiny.weights(whole.model), tiny.weights(resumed.model))
    state = json.loads((tmp_path / "whole" / "checkpoint-2" / "entropy_ctrl_state.json").read_text())
    assert state["entropy_coef"] == pytest.approx(0.04)
    state["entropy_coef"] = 0.0  # it matters
    (tmp_path / "cut" / "checkpoint-2" / "entropy_ctrl_state.json").write_text(json.dumps(state))
    other = run(tmp_path / "cut", resume=tmp_path / "cut" / "checkpoint-2", **options)
    assert not torch.equal(tiny.weights(whole.model), tiny.weights(other.model))
