"""Random models of a few thousand weights, a tokenizer, a reward and a trainer: enough to run the real code on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rlad.models.tokenizer import train_tokenizer

TEXTS = ("knight knave says that and or if then", "Alice Bob Carol is a knight. Who is a knave?") * 4
PROMPTS = ("Who is a knight?", "Is Bob a knave", "Alice says that Bob is a knight.", "Carol")
RESPONSE = 6  # longest response in tokens
GROUP = 4


@functools.cache
def tokenizer(texts: tuple[str, ...] = TEXTS) -> PreTrainedTokenizerFast:
    return train_tokenizer(texts, vocab_size=280)


def model(seed: int, vocabulary: int | None = None) -> Qwen3ForCausalLM:
    """A random Qwen3. Weights this large make two seeds differ by nats, not by hundredths."""
    torch.manual_seed(seed)
    words = tokenizer()
    config = Qwen3Config(
        vocab_size=vocabulary or len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=16,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3, tie_word_embeddings=True,
        pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def save(seed: int, folder: Path) -> str:
    """A model with its tokenizer on disk, as the hub has them."""
    model(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def reward(completions: list[Any], **_: Any) -> list[float]:
    """The share of characters that are letters: it varies inside a group, and is a function of the response alone."""
    texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
    return [
        sum(character.isascii() and character.isalpha() for character in text) / max(len(text), 1) for text in texts
    ]


def arguments(folder: Path | str, method: Any = "rlad", **options: Any) -> Any:
    """An RLADConfig: two updates of two groups of GROUP."""
    from rlad.trainer.arguments import RLADConfig

    defaults = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-2,
        "max_steps": 2, "num_generations": GROUP, "per_device_train_batch_size": 2 * GROUP,
        "max_completion_length": RESPONSE, "seed": 7,
    }  # fmt: skip
    return RLADConfig(method=method, **(defaults | options))


def trainer(folder: Path | str, method: Any = "rlad", teacher: Any = None, student: Any = None, **options: Any) -> Any:
    """An RLADTrainer. teacher None: a random model of another seed where the method needs one."""
    from rlad.trainer.trainer import RLADTrainer

    ours = ("reward_funcs", "callbacks", "teacher_processing_class", "teacher_alignment")
    keywords = {key: options.pop(key) for key in ours if key in options}
    args = arguments(folder, method, **options)
    needs_teacher = args.method["name"] != "grpo"
    return RLADTrainer(
        model(1) if student is None else student,
        keywords.pop("reward_funcs", reward),
        args,
        Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in PROMPTS * 4]}),
        processing_class=tokenizer(),
        teacher_model=(model(2) if teacher is None else teacher) if needs_teacher else None,
        teacher_processing_class=keywords.pop("teacher_processing_class", tokenizer()) if needs_teacher else None,
        **keywords,
    )


def weights(of: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in of.parameters()]).clone()


def gradient(loss: Tensor, of: Any) -> Tensor:
    """The gradient of `loss` in all parameters, as one vector."""
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(of.parameters()))])


def direct_logps(of: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """(T,) log-probs of the response by a forward of this one sequence: the logits at t - 1 predict token t."""
    logits = of(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    logps: Tensor = logits.log_softmax(-1).gather(-1, torch.tensor([response]).T).squeeze(-1)
    return logps
