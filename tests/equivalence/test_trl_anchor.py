"""TRL's own GRPO loss, fed the anchor as its old log-probs, is RLAD: loss and gradient of a real model.

log r_TRRD = log S - log anchor, so any engine with a GRPO loss computes TRRD when it is given the anchor. A real
GRPOTrainer computes its loss on a tiny, randomly initialised Qwen3; ours is computed from a plain forward of the same
model. This pins our objective to an implementation that we did not write.
"""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]

from rlad.objectives import (
    GRPO,
    RLAD,
    Method,
    anchor_logps,
    group_advantages,
    objective_terms,
    sequence_mean,
    token_mean,
    token_signals,
)

VOCABULARY, ROLLOUTS, PROMPT, RESPONSE = 32, 8, 5, 12
SECOND_ITERATION = 0.3  # nats, the spread of log S - log old
PAD, EOS = "<pad>", "<eos>"
OUTPUT = tempfile.TemporaryDirectory()


def no_reward(completions: list[str], **_: Any) -> list[float | None]:
    return [0.0] * len(completions)


@functools.cache
def trainer() -> Any:
    words = {PAD: 0, EOS: 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    core = Tokenizer(WordLevel(words, unk_token=PAD))
    core.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=EOS)  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=16,
                    num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3)
    )  # fmt: skip
    arguments = GRPOConfig(
        output_dir=OUTPUT.name, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
        per_device_train_batch_size=ROLLOUTS, num_generations=4, max_completion_length=RESPONSE,
        loss_type="grpo", epsilon=0.2, epsilon_high=0.28, beta=0.0, temperature=1.0,
    )  # fmt: skip
    made = GRPOTrainer(
        model=model,
        reward_funcs=no_reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["w2 w3"] * 4}),
        processing_class=tokenizer,
    )
    made.current_gradient_accumulation_steps = 1  # a training step sets it
    return made


@functools.cache
def batch() -> dict[str, Tensor]:
    """A generation batch as TRL builds it: prompts padded on the left, responses on the right."""
    generator = torch.Generator().manual_seed(1)
    prompt_mask = (torch.arange(PROMPT) >= torch.randint(0, 3, (ROLLOUTS, 1), generator=generator)).long()
    mask = (torch.arange(RESPONSE) < torch.randint(3, RESPONSE + 1, (ROLLOUTS, 1), generator=generator)).long()
    return {
        "prompt_ids": torch.randint(2, VOCABULARY, (ROLLOUTS, PROMPT), generator=generator) * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": torch.randint(2, VOCABULARY, (ROLLOUTS, RESPONSE), generator=generator) * mask,
        "completion_mask": mask,
        "advantages": group_advantages(torch.tensor([1.0, 0, 0, 1, 0, 0, 1, 0]), 4),
        "num_items_in_batch": mask.sum(),
    }


def student_logps() -> Tensor:
    """(B, T) log-probs of the response tokens by a plain forward: logits at position t - 1 predict token t."""
    inputs = batch()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    logits = trainer().model(input_ids=ids, attention_mask=attention).logits[:, PROMPT - 1 : -1]
    logps: Tensor = logits.log_softmax(-1).gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)
    return logps


def old_and_teacher(first_iteration: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        s = student_logps()
    old = s if first_iteration else s + SECOND_ITERATION * torch.randn(s.shape, generator=generator)
    return old, (s + 1.5 * torch.randn(s.shape, generator=generator)).clamp(max=0)


def loss_and_gradient(loss: Tensor) -> tuple[Tensor, Tensor]:
    gradients = torch.autograd.grad(loss, list(trainer().model.parameters()), allow_unused=True)
    return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def trl(old_logps: Tensor, loss_type: str) -> tuple[Tensor, Tensor]:
    trainer().loss_type = loss_type
    return loss_and_gradient(trainer()._compute_loss(trainer().model, {**batch(), "old_per_token_logps": old_logps}))


def ours(method: Method, old: Tensor, teacher: Tensor, loss_type: str) -> tuple[Tensor, Tensor]:
    mask = batch()["completion_mask"]
    signals = token_signals(student_logps(), old, teacher, batch()["advantages"], mask)
    objective = objective_terms(method, signals).objective
    if loss_type == "grpo":
        return loss_and_gradient(-sequence_mean(objective, mask, ROLLOUTS))
    return loss_and_gradient(-token_mean(objective, mask, mask.sum()))


def agree(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    assert a[1].norm() > 1e-2
    return bool((a[0] - b[0]).abs() < 1e-6) and bool((a[1] - b[1]).norm() < 1e-6 * a[1].norm().clamp(min=1))


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
@pytest.mark.parametrize("first_iteration", [True, False])
def test_trl_fed_the_anchor_is_rlad_without_a_clamp(first_iteration: bool, loss_type: str) -> None:
    old, teacher = old_and_teacher(first_iteration)
    for alpha in (0.0, 0.5, 0.8):
        method = RLAD(alpha=alpha, teacher_clip=None)
        anchor = anchor_logps(old, teacher, alpha, None)
        assert agree(ours(method, old, teacher, loss_type), trl(anchor, loss_type))
        assert not agree(ours(method, old, teacher, loss_type), trl(old, loss_type))


def test_trl_fed_the_anchor_is_the_anchor_form_where_s_is_old() -> None:
    old, teacher = old_and_teacher(first_iteration=True)
    # At alpha .5 a clamped token is often clipped and has no gradient, so .8 is what tells the forms apart.
    for alpha in (0.5, 0.8):
        fed = trl(anchor_logps(old, teacher, alpha, 1.0), "grpo")
        assert agree(ours(RLAD(alpha=alpha, teacher_clip_gradient="anchor"), old, teacher, "grpo"), fed)
        literal = ours(RLAD(alpha=alpha, teacher_clip_gradient="literal"), old, teacher, "grpo")
        assert (literal[0] - fed[0]).abs() < 1e-6  # the same value
        assert not agree(literal, fed)  # another gradient
    # Off it (a second iteration) the clamp of T against old is a third thing.
    old, teacher = old_and_teacher(first_iteration=False)
    fed = trl(anchor_logps(old, teacher, 0.8, 1.0), "grpo")
    assert not agree(ours(RLAD(alpha=0.8, teacher_clip_gradient="anchor"), old, teacher, "grpo"), fed)


def test_trl_fed_the_old_student_is_grpo_and_rlad_at_alpha_one() -> None:
    for first_iteration in (True, False):
        old, teacher = old_and_teacher(first_iteration)
        assert agree(ours(GRPO(), old, teacher, "grpo"), trl(old, "grpo"))
        assert agree(ours(RLAD(alpha=1.0), old, teacher, "grpo"), trl(old, "grpo"))
