"""A teacher that is a LoRA adapter: on weights of its own, and on the student's own base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import tiny
from rlad.errors import RladError
from rlad.teacher.local import AdapterTeacher, LocalTeacher, SharedBase

PROMPTS, RESPONSES = [[5, 6, 7], [8]], [[9, 10, 11, 12], [13, 14]]
LORA = dict(r=4, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    """An adapter that changes the base by nats."""
    torch.manual_seed(3)
    model = get_peft_model(tiny.model(1), LoraConfig(**LORA, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def student() -> Any:
    torch.manual_seed(4)
    return get_peft_model(tiny.model(1), LoraConfig(**LORA, lora_dropout=0.5, init_lora_weights=False))


def by_itself(adapter: str, tmp_path: Path) -> LocalTeacher:
    return LocalTeacher.load(tiny.save(1, tmp_path / "base"), adapter=adapter)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True))


def test_base_and_adapter_score_as_the_two_together(adapter: str, tmp_path: Path) -> None:
    from peft import PeftModel

    merged = PeftModel.from_pretrained(tiny.model(1), adapter).merge_and_unload()
    found = by_itself(adapter, tmp_path).score(PROMPTS, RESPONSES)
    assert same(found, LocalTeacher(merged).score(PROMPTS, RESPONSES))
    assert not same(found, LocalTeacher(tiny.model(1)).score(PROMPTS, RESPONSES))


def test_on_the_students_base_it_scores_the_same_and_leaves_the_student_as_it_was(adapter: str, tmp_path: Path) -> None:
    policy = student().train()
    ids = torch.tensor([[5, 6, 7, 9]])
    before = policy.eval()(input_ids=ids).logits
    trainable = {name for name, each in policy.named_parameters() if each.requires_grad}
    policy.train()
    teacher = AdapterTeacher(policy, adapter)
    assert same(teacher.score(PROMPTS, RESPONSES), by_itself(adapter, tmp_path).score(PROMPTS, RESPONSES))
    assert policy.training and policy.active_adapter == "default"
    assert {name for name, each in policy.named_parameters() if each.requires_grad} == trainable
    assert torch.equal(policy.eval()(input_ids=ids).logits, before)


def test_training_with_it_changes_the_students_adapter_alone(adapter: str, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path / "run", teacher=SharedBase(adapter), student=student())
    assert isinstance(trainer.teacher, AdapterTeacher)
    before = {name: each.detach().clone() for name, each in trainer.model.named_parameters()}
    trainer.train()
    changed = {n for n, each in trainer.model.named_parameters() if not torch.equal(each, before[n])}
    assert changed and all(".default." in name for name in changed)
    assert any(".teacher." in name for name in before)
    assert trainer.state.log_history[0]["rlad/student_minus_teacher"] != 0


def test_what_cannot_be_such_a_teacher_is_refused(adapter: str, tmp_path: Path) -> None:
    with pytest.raises(RladError, match="needs a student that is trained as an adapter too"):
        AdapterTeacher(tiny.model(1), adapter)
    weights = Path(adapter) / "adapter_model.safetensors"
    weights.rename(weights.with_name("adapter_model.bin"))
    for make in (lambda: AdapterTeacher(student(), adapter), lambda: by_itself(adapter, tmp_path)):
        with pytest.raises(RladError, match=r"has no adapter_model\.safetensors: other formats can run code"):
            make()


def test_an_adapter_of_another_model_does_not_fit(tmp_path: Path) -> None:
    other = get_peft_model(tiny.model(1), LoraConfig(**{**LORA, "target_modules": ["lm_head"]}))
    other.save_pretrained(tmp_path / "other")
    config = tmp_path / "other" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lm_head"', '"no_such_layer"'))
    with pytest.raises(RladError, match=r"does not fit the student's base: .*no_such_layer"):
        AdapterTeacher(student(), str(tmp_path / "other"))


def test_on_the_students_base_it_scores_in_the_students_precision(adapter: str) -> None:
    """accelerate wraps the student's own forward in autocast; the base's, which scores, is not wrapped."""
    exact, policy = AdapterTeacher(student(), adapter).score(PROMPTS, RESPONSES), student()
    rough = AdapterTeacher(policy, adapter, precision=lambda: torch.autocast("cpu", torch.bfloat16))
    found = rough.score(PROMPTS, RESPONSES)
    assert not same(found, exact)
    assert all(torch.allclose(a, b, atol=0.5) for a, b in zip(found, exact, strict=True))
    assert not torch.is_autocast_enabled("cpu")
