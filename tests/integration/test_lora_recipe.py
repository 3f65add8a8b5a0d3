"""Recipes that train an adapter: alone, beside a teacher that is an adapter on the same base, and from a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import letters_task
import tiny
from rlad.evaluation.models import load_model
from rlad.trainer.config import Recipe
from rlad.trainer.run import train

LORA = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "up_proj"]}


@pytest.fixture
def base(tmp_path: Path) -> str:
    return tiny.save(1, tmp_path / "base")


def recipe(base: str, output: Path, **more: Any) -> Recipe:
    with_adapter = {"model": {"path": base, "lora": LORA}, "teacher": base, "method": "rlad"}
    return letters_task.recipe(base, output, {}, **(with_adapter | more))


def weights(folder: Path) -> dict[str, Any]:
    return dict(load_file(folder / "adapter_model.safetensors"))


@pytest.fixture
def teacher(base: str, tmp_path: Path) -> str:
    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(tiny.model(1), config).save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


@pytest.mark.parametrize("shared", [True, False])
def test_an_adapter_is_trained_saved_alone_and_gone_on_with(
    shared: bool, base: str, teacher: str, tmp_path: Path
) -> None:
    """The two ways to say the teacher, its adapter on the student's base or on a base of its own, train the same."""
    section = {"adapter": teacher} if shared else {"path": base, "adapter": teacher}
    assert train(recipe(base, tmp_path / "run", teacher=section), emit=lambda line: None) == 0
    saved = tmp_path / "run" / "model"
    found = weights(saved)
    assert found and all("lora" in name and ("q_proj" in name or "up_proj" in name) for name in found)
    assert not (saved / "teacher").exists() and not list(saved.rglob("*.bin"))
    assert any(each.abs().max() > 0 for name, each in found.items() if "lora_B" in name)
    # It loads as any model does, and is the base with that adapter.
    model, _ = load_model(str(saved))
    ids = torch.tensor([[5, 6, 7]])
    both = PeftModel.from_pretrained(tiny.model(1), saved)
    assert torch.allclose(model(input_ids=ids).logits, both(input_ids=ids).logits, atol=1e-4)
    # From the first checkpoint on to the same bits.
    shutil.copytree(
        tmp_path / "run", tmp_path / "cut", ignore=shutil.ignore_patterns("checkpoint-2", "model", "summary*")
    )
    cut = recipe(base, tmp_path / "cut", teacher=section)
    assert train(cut, resume=True, emit=lambda line: None) == 0
    again = weights(tmp_path / "cut" / "model")
    assert found.keys() == again.keys()
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_both_forms_of_the_teacher_train_the_same(base: str, teacher: str, tmp_path: Path) -> None:
    for name, section in (("one", {"adapter": teacher}), ("two", {"path": base, "adapter": teacher}), ("none", base)):
        train(recipe(base, tmp_path / name, teacher=section, evaluate=None), emit=lambda line: None)
    one, two, none = (weights(tmp_path / name / "model") for name in ("one", "two", "none"))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    assert any(not torch.allclose(one[name], none[name], atol=1e-5) for name in one)
