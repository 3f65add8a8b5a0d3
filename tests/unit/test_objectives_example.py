"""The method that the documentation adds as an example works, and is known to recipes as the documentation says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rlad.objectives import METHODS
from rlad.trainer.config import Recipe

TEXT = (Path(__file__).parents[2] / "docs" / "objective.md").read_text(encoding="utf-8")


def test_the_method_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    method, test = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    monkeypatch.setitem(METHODS, "praise", None)  # taken away again after the test
    names: dict[str, Any] = {"__name__": __name__}  # where dataclasses look for annotations
    exec(compile(method, "docs/objective.md", "exec"), names)
    exec(compile(test, "docs/objective.md", "exec"), names)
    blames = test.replace("[[1.1, 1.0]]", "[[1.1, 0.95]]")
    assert blames != test
    with pytest.raises(AssertionError):
        exec(compile(blames, "docs/objective.md", "exec"), names)
    data = {
        "model": "embedded:student", "teacher": "embedded:teacher", "task": "knights_knaves",
        "method": {"name": "praise", "coefficient": 0.1}, "trainer": {"use_cpu": True, "bf16": False},
    }  # fmt: skip
    made = Recipe.from_mapping(data).make_method()
    assert type(made) is names["Praise"] and made.coefficient == 0.1
    assert torch.is_tensor(names["signals"].advantages)
