"""A run with a method of the user's own, which the recipe names by its module."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import letters_task
import tiny
from rlad.objectives import METHODS
from rlad.report.runs import header, read_runs
from rlad.report.view import read_steps
from rlad.trainer.run import train

OWN = """
from dataclasses import dataclass
from rlad.objectives import Method

@dataclass(frozen=True, kw_only=True)
class Halved(Method):
    name = "halved"
    needs_teacher = False

    def advantage(self, signals):
        return signals.advantages / 2
"""


def test_its_page_is_complete_and_later_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halving.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    base, folder = tiny.save(1, tmp_path / "base"), tmp_path / "run"
    recipe = letters_task.recipe(
        base, folder, {"save_strategy": "no", "record_every": 1}, method="halving:Halved", evaluate=None
    )
    try:
        assert train(recipe, emit=lambda line: None) == 0
        (run,) = read_runs([folder])
        assert "not known" not in dict(header(run))["method"] and run.about["method"]["name"] == "halving:Halved"
        step = next(read_steps(run))
        assert step.bounds == (0.8, 1.28)
        changed = [each.arrays["changed"] for _, each in step.rollouts]
        assert any(abs(value) > 0 for row in changed for value in row)  # half of GRPO's everywhere
    finally:
        METHODS.pop("halving:Halved", None)
        sys.modules.pop("halving", None)
    assert "not known to this process" in dict(header(run))["method"]
    assert next(read_steps(run)).bounds is None
