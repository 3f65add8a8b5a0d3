"""Runs made by hand for the tests of the report: records with known signals, a recipe, metrics and a summary."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny
from rlad import records

METHOD = {"name": "rlad", "clip_low": 0.2, "clip_high": 0.28, "alpha": 0.5, "teacher_clip": 1.0,
          "teacher_clip_gradient": "literal"}  # fmt: skip


def rollout(
    step: int,
    group: int,
    index: int,
    teacher: Sequence[float],
    advantage: float = 1.0,
    student: float = -1.0,
    **more: Any,
) -> dict[str, Any]:
    """An on-policy rollout under METHOD: every token has log pi `student`, and log pi_T as given."""
    length, clip = len(teacher), METHOD["teacher_clip"]
    gaps = [student - each for each in teacher]
    ratio = [0.5 * max(-clip, min(clip, gap)) for gap in gaps]
    high = [r > math.log(1.28) and advantage > 0 for r in ratio]
    low = [r < math.log(0.8) and advantage < 0 for r in ratio]
    right = advantage > 0
    return {
        "run": "made", "method": "rlad", "step": step, "group": group, "index": index, "task": "made",
        "difficulty": "2", "prompt": "Who?", "prompt_tokens": [1, 87], "response": "x" * length,
        "tokens": [2 + (index + i) % 60 for i in range(length)], "mask": [True] * length, "logps": [student] * length,
        "old_logps": [student] * length, "teacher_logps": list(teacher), "log_ratio": ratio,
        "anchor": [0.5 * (student + each) for each in teacher],
        "branch": [int(any(each)) for each in zip(high, low, strict=True)],
        "clipped_low": low, "clipped_high": high, "clamped": [abs(gap) > clip for gap in gaps],
        "entropy": [0.5] * length, "weight": 1 / (4 * length), "advantage": advantage, "reward": float(right),
        "reward_parts": {"made": float(right)}, "extracted": "a", "gold": "b", "correct": right,
        "explanation": "because", "stop": "stop", "dropped": False, "kept_why": "at random", "columns": "{}", **more,
    }  # fmt: skip


def save(folder: Path, parts: dict[int, list[dict[str, Any]]], name: str = "rlad", steps: int = 10) -> Path:
    """A run with these records by update."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"run": "made", "method": METHOD, "in_force": METHOD, "groups": 16, "kept": "every one", "dropped": {}}
    for step, rows in parts.items():
        records.write(records.part(folder / "records", step), "rollout", rows, {**about, "step": step})
    if parts:
        (folder / "records" / "tokenizer.json").write_text(tiny.tokenizer().backend_tokenizer.to_str())
    (folder / "recipe.yaml").write_text(
        f"model: embedded:student\nteacher: embedded:teacher\nmethod: {{name: {name}}}\n"
    )
    rng = random.Random(name)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            row = {"step": step, "time": 100.0 + step, "loss": 0.0, "reward": rng.random(), "accuracy": rng.random(),
                   "rlad/broken_teacher": 0.01, "rlad/seconds/generation": 2.0}  # fmt: skip
            file.write(json.dumps(row) + "\n")
    gain = [
        {"difficulty": "all", "problems": 50, "before": 0.2, "after": 0.3, "difference": 0.1, "low": 0.02, "high": 0.18}
    ]
    summary = {"steps": steps, "seconds": 12.0, "commit": "c0ffee", "device": "cpu", "gain": gain}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def large(folder: Path, rollouts: int = 2_000, length: int = 200) -> Path:
    """A run of so many recorded rollouts, in groups of 8, 4 groups an update."""
    rng = random.Random(0)
    parts = {}
    for number in range(rollouts // 32):
        step = max(1, 5 * number)
        parts[step] = [
            rollout(
                step,
                group,
                index,
                [-3 * rng.random() for _ in range(length)],
                rng.choice([-1.0, 1.0]),
                -3 * rng.random(),
            )
            for group in range(4)
            for index in range(8)
        ]
    return save(folder, parts, steps=5 * (rollouts // 32))
