"""From records to what is looked at: contributions, groups, filters, figures."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import made_runs
from rlad.errors import RladError
from rlad.objectives import METHODS
from rlad.report.contributions import group_contributions, method_of
from rlad.report.runs import Run, curves, header, read_runs, result
from rlad.report.text import shown
from rlad.report.view import Figures, passing, read_steps


def drawn(rng: random.Random, advantage: float, length: int = 12) -> dict[str, Any]:
    """A rollout with signals of every kind: off-policy, clipped on both sides, clamped, masked, without a teacher."""
    student = [-3 * rng.random() for _ in range(length)]
    teacher = [s + rng.uniform(-2, 2) for s in student]
    teacher[rng.randrange(length)] = math.nan
    mask = [rng.random() > 0.1 for _ in range(length)]
    old = [s + rng.uniform(-0.5, 0.5) for s in student]
    return {"tokens": [0] * length, "mask": mask, "logps": student, "old_logps": old, "teacher_logps": teacher,
            "advantage": advantage, "correct": advantage > 0}  # fmt: skip


def by_hand(row: dict[str, Any], i: int, alpha: float, clamp: float, literal: bool) -> float:
    """A r where the clip does not stop it, else 0; times alpha where the clamp is active and literal."""
    S, old, T, A = row["logps"][i], row["old_logps"][i], row["teacher_logps"][i], row["advantage"]
    if math.isnan(T):
        log_r, slope = S - old, 1.0
    else:
        gap = max(-clamp, min(clamp, S - T))
        log_r = alpha * (S - old) + (1 - alpha) * gap
        slope = alpha if literal and abs(S - T) > clamp else 1.0
    r = math.exp(log_r)
    stopped = (r > 1.28 and A > 0) or (r < 0.8 and A < 0)
    return 0.0 if stopped else A * r * slope


@pytest.mark.parametrize("gradient", ["literal", "anchor"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_contribution_and_what_the_teacher_changed_in_closed_form(alpha: float, gradient: str) -> None:
    rng = random.Random(1)
    rows = [drawn(rng, advantage) for advantage in (1.5, -0.7, 0.4, -1.1, 0.0)]
    method = METHODS["rlad"](alpha=alpha, teacher_clip_gradient=gradient)  # type: ignore[call-arg]
    clipped = clamped = 0
    for row, found in zip(rows, group_contributions(rows, method), strict=True):
        for i, counts in enumerate(row["mask"]):
            if not counts:
                assert math.isnan(found["contribution"][i]) and math.isnan(found["changed"][i])
                continue
            ours = by_hand(row, i, alpha, 1.0, gradient == "literal")
            grpo = by_hand(row | {"teacher_logps": [math.nan] * 12}, i, 1.0, 1.0, True)
            assert found["contribution"][i] == pytest.approx(ours, abs=1e-9)
            assert found["changed"][i] == pytest.approx(ours - grpo, abs=1e-9)
            clipped += ours == 0 and row["advantage"] != 0
            clamped += abs(row["logps"][i] - row["teacher_logps"][i]) > 1
    assert clipped > 3 and clamped > 10


def test_at_alpha_1_the_teacher_changes_nothing() -> None:
    rng = random.Random(2)
    rows = [drawn(rng, advantage) for advantage in (1.0, -1.0)]
    for found in group_contributions(rows, METHODS["rlad"](alpha=1.0)):  # type: ignore[call-arg]
        assert np.nanmax(np.abs(found["changed"])) == 0 and np.nanmax(np.abs(found["contribution"])) > 0.5


def test_a_method_that_is_not_known_has_no_contributions(tmp_path: Path) -> None:
    assert (
        method_of({"name": "later", "x": 1}) is None
        and method_of({"name": "rlad", "x": 1}) is None
        and method_of(None) is None
    )
    made_runs.METHOD["name"], before = "later", made_runs.METHOD["name"]
    try:
        folder = made_runs.save(tmp_path / "run", {1: [made_runs.rollout(1, 0, 0, [-1.0])]})
    finally:
        made_runs.METHOD["name"] = before
    (step,) = read_steps(read_runs([folder])[0])
    assert step.mismatch is None and step.bounds is None
    assert np.isnan(step.groups[0].rollouts[0].arrays["contribution"]).all()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Teacher minus student is +1.5, 0, 0, -0.3 on average; rewards 1, 0, 1, 0."""
    r = made_runs.rollout
    rows = [
        r(5, 2, 0, [0.5 - 1e-9, 0.5], 1.0, student=-1.0, extracted=None),
        r(5, 2, 1, [-1.0] * 4, -1.0, stop="length"),
        r(5, 2, 2, [-1.0, -2.5], 0.5, correct=False, reward=0.5),
        r(5, 2, 3, [-1.3] * 3, -1.0),
    ]
    flat = [r(5, 3, i, [-1.0], 0.0, reward=0.25, correct=True) for i in range(2)]
    gone = [r(5, 4, i, [-1.0], 0.0, dropped=True, reason="all_right", logps=None, log_ratio=None, old_logps=None,
              teacher_logps=None, weight=None, anchor=None, entropy=None) for i in range(2)]  # fmt: skip
    return read_runs([made_runs.save(tmp_path / "run", {5: rows + flat + gone})])[0]


def test_groups_begin_with_the_best_and_the_worst(run: Run) -> None:
    (step,) = read_steps(run)
    mixed, flat, gone = step.groups
    assert [each.index for each in mixed.rollouts] == [0, 3, 2, 1] and not mixed.flat and mixed.right == 1
    assert flat.flat and flat.right == 2 and gone.first["dropped"]
    assert step.bounds == (0.8, 1.28) and step.mismatch is not None and step.mismatch < 1e-6


def test_a_recorded_log_ratio_that_does_not_follow_from_the_log_probabilities_is_noticed(tmp_path: Path) -> None:
    row = made_runs.rollout(1, 0, 0, [-1.0, -1.4])  # gaps 0 and .4: log ratios 0 and .2
    folder = made_runs.save(tmp_path / "run", {1: [row | {"log_ratio": [0.0, 0.5]}]})
    (step,) = read_steps(read_runs([folder])[0])
    assert step.mismatch == pytest.approx(0.3, abs=1e-6)


def test_filters(run: Run) -> None:
    steps = list(read_steps(run))

    def found(name: str) -> list[tuple[int, int]]:
        return [(group.number, each.index) for _, group, each in passing(steps, name)]

    assert found("rewarded") == [(2, 2)]
    assert found("truncated") == [(2, 1)]
    assert (2, 1) in found("longest") and (2, 0) not in found("longest")
    # Gaps 1.5, 0, -0.75, -0.3: mean 0.1125, standard deviation 0.85. Only 0 is that far off, and there A > 0 agrees;
    # 2 is at -0.8625 from the mean with A > 0: it disagrees.
    assert found("disagrees") == [(2, 2)]
    assert found("clamped") == [(2, 0), (2, 2)]
    # log r = (log pi - log pi_T) / 2, clamped at +-1: rollout 2 has +0.5 > log 1.28, A > 0. Rollout 0 has -0.5.
    assert found("clipped") == [(2, 2)]


def test_the_terminal_says_of_how_many_it_lists_the_first(tmp_path: Path) -> None:
    def listed(count: int) -> list[str]:
        rows = [made_runs.rollout(1, 0, i, [-1.0], stop="length") for i in range(count)]
        return shown(made_runs.save(tmp_path / str(count), {1: rows}), filtered="truncated").splitlines()[1:]

    assert len(listed(100)) == 100 and listed(100)[-1].startswith("  1/0/")
    found = listed(103)
    assert all(line.startswith("  1/0/") for line in found[:100])
    assert found[100:] == ["The first 100 of 103 are listed."]


def test_a_token_without_a_log_ratio_has_no_ratio(tmp_path: Path) -> None:
    row = made_runs.rollout(1, 0, 0, [-1.0] * 3) | {"log_ratio": [math.nan, 0.5, 50.0]}
    folder = made_runs.save(tmp_path / "run", {1: [row]})
    found = [shown(folder, f"1/0/0/{place}").splitlines() for place in range(3)]
    ratios = [line.split()[1] for lines in found for line in lines if line.startswith("  r  ")]
    assert ratios == ["-", "1.65", "4.85e+08"]  # e^.5, and e^20 for what would be too large to read
    assert "4.85e+08" not in shown(folder, "1/0/0").splitlines()[-3]


def test_figures_count_what_was_trained_and_name_examples(run: Run) -> None:
    figures = Figures()
    for step in read_steps(run):
        figures.add(step)
    lines = {figure.what: figure for figure in figures.lines()}
    clip = lines["recorded tokens that the clip stops"]
    assert clip.value == "7.7% (1 of 13)" and clip.place == (
        5,
        2,
        2,
        1,
    )  # 2 + 4 + 2 + 3 tokens, and 2 of the flat group
    assert lines["recorded rollouts: truncated"].value == "16.7% (1 of 6)"
    assert lines["recorded groups of zero variance"].value == "50.0% (1 of 2)"
    # On-policy, r = 1 under GRPO: contributions A / (4 length). By rollout: 0: r = e^-.5, clamped: slope .5;
    # 1: same as GRPO; 2: r = 1 and 0 for the clipped token; 3: r = e^.15, A = -1.
    grpo = 1 / 4 + 1 / 4 + 0.5 / 4 + 1 / 4
    changed = (1 - 0.5 * math.exp(-0.5)) / 4 + 0.5 / 8 + (math.exp(0.15) - 1) / 4
    assert lines["what the teacher changed, as a share of the update under GRPO"].value == f"{changed / grpo:.0%}"
    assert figures.best["changed"][1][:3] == (5, 2, 0)


def test_the_header_and_the_curves(run: Run) -> None:
    lines = dict(header(run))
    assert lines["commit"] == "c0ffee" and lines["time"] == "12 s of training" and lines["updates"] == "10"
    assert lines["student"] == "embedded:student" and "alpha" not in lines["method"]
    assert "not known to this process" not in lines["method"]
    other = replace(run, recipe={**run.recipe, "method": {"name": "mine:Praise"}})
    assert dict(header(other))["method"].startswith("mine:Praise (not known to this process")
    found = curves(run)
    assert found["teacher coverage"][0] == (1, pytest.approx(0.99)) and found["seconds: generation"][9] == (10, 2.0)


def test_runs_without_records_stages_and_folders_without_a_run(tmp_path: Path) -> None:
    old = made_runs.save(tmp_path / "old", {})
    (run,) = read_runs([old])
    assert list(read_steps(run)) == [] and curves(run)["reward"]
    for number in (1, 2):
        made_runs.save(tmp_path / "staged" / f"stage-{number}", {})
    assert [each.name for each in read_runs([tmp_path / "staged"])] == ["staged, stage-1", "staged, stage-2"]
    assert [each.name for each in read_runs([old, old])] == ["old", "old (2)"]
    with pytest.raises(RladError, match="holds no run"):
        read_runs([tmp_path])
    with pytest.raises(RladError, match="there is no folder"):
        read_runs([tmp_path / "nothing"])
    (old / "summary.json").write_text("{")
    with pytest.raises(RladError, match=r"summary\.json cannot be read"):
        read_runs([old])


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("recipe.yaml", b"model: \xff\n", "recipe.yaml cannot be read"),
        ("recipe.yaml", f"model: {DEEP}".encode(), "recipe.yaml cannot be read"),
        ("summary.json", DEEP.encode(), "summary.json cannot be read"),
        ("metrics.jsonl", b'{"step": 1}\n\xff\n{"step": 2}\n', "metrics.jsonl, line 2: no JSON object"),
        ("metrics.jsonl", b'[1, 2]\n{"step": 2}\n', "metrics.jsonl, line 1: no JSON object"),
        ("metrics.jsonl", DEEP.encode() + b'\n{"step": 2}\n', "metrics.jsonl, line 1: no JSON object"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, file: str, content: bytes, says: str) -> None:
    folder = made_runs.save(tmp_path / "run", {})
    (folder / file).write_bytes(content)
    with pytest.raises(RladError, match=says):
        read_runs([folder])


def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    folder = made_runs.save(tmp_path / "run", {})
    (folder / "recipe.yaml").write_text("method: [1]\ntask: {since: 2026-01-01}\n")
    gain = [{"difficulty": "all", "before": 0.1}, {"difficulty": "2"}, 3]
    summary = {"seconds": "long", "gain": gain, "versions": ["1"], "steps": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [{"step": "x", "time": "x", "reward": 1.0}, {"step": 1, "time": 5.0, "reward": 10**400},
            {"step": 2, "time": 8.0, "reward": 0.5, "rlad/broken_teacher": "x"}]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "rew')
    (run,) = read_runs([folder])
    lines = dict(header(run))
    assert lines["updates"] == "2" and lines["time"].startswith("3 s") and "versions" not in lines
    assert result(run) == [] and curves(run) == {"reward": [(2, 0.5)]}
