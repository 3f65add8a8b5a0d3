"""The installed TRL has every private name that rlad leans on, and one that goes is found."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from transformers import Trainer
from trl.trainer.grpo_trainer import GRPOTrainer

from rlad.trainer import upstream
from rlad.trainer.saving import NothingLeft
from rlad.trainer.trainer import RLADTrainer


def test_the_installed_trl_has_everything() -> None:
    assert upstream.problems() == []


# transformers' Trainer has the others as well, with the same parameters: they cannot go.
TRLS_OWN = [name for name in upstream.METHODS if not hasattr(Trainer, name)]


@pytest.mark.parametrize("name", TRLS_OWN)
def test_a_method_that_goes_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # inspect.getsource reads the file, so nothing but the method is missed.
    monkeypatch.delattr(GRPOTrainer, name)
    assert upstream.problems() == [f"GRPOTrainer.{name} is gone"]


def test_most_of_the_methods_are_trls_own() -> None:
    assert len(TRLS_OWN) >= 5


def test_a_method_whose_parameters_move_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def _compute_loss(self: object, batch: object, model: object) -> None: ...

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", _compute_loss)
    found = upstream.problems()
    assert (
        "GRPOTrainer._compute_loss('self', 'batch', 'model') does not begin with ('self', 'model', 'inputs')" in found
    )


def test_an_attribute_and_a_key_that_go_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "ATTRIBUTES", ("_no_such_attribute",))
    monkeypatch.setattr(upstream, "BATCH_KEYS", ("no_such_key",))
    assert upstream.problems() == [
        "GRPOTrainer no longer has self._no_such_attribute",
        "the batch no longer has 'no_such_key'",
    ]


def test_every_private_method_that_we_override_is_listed() -> None:
    ours = vars(RLADTrainer) | vars(NothingLeft)
    overridden = {name for name in ours if callable(getattr(GRPOTrainer, name, None))}
    assert {name for name in overridden if not name.startswith("__") and name != "log"} == upstream.METHODS.keys()


# Their public names, from where importing does not take the whole of TRL.
CONFIGS = ("trl.trainer.grpo_config", "trl.trainer.sft_config")


def test_trls_private_modules_are_imported_in_one_place(repository: Path) -> None:
    package = repository / "src" / "rlad"
    for path in package.rglob("*.py"):
        if path.name == "upstream.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert not module.startswith("trl.trainer") or module in CONFIGS, path
