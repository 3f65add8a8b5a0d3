"""A teacher in this process: one forward pass for a batch, log-probs in tiles of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlad.errors import RladError
from rlad.models import resolve

TOKENS_PER_BATCH = 16_384


class LocalTeacher:
    """A frozen causal language model that scores responses. See `rlad.teacher.Teacher`.

    model: a transformers causal LM; it is put in evaluation mode and its gradients are turned off.
    temperature: what its logits are divided by; the student's sampling temperature.
    tokens_per_batch: most tokens, padding included, in one forward pass.

    No (B, T, V) tensor is made: TRL's fused head (trl.trainer.utils.add_fused_lm_head) projects a tile of the positions
    at a time and keeps the log-prob of the token that was sampled.
    """

    def __init__(self, model: Any, temperature: float = 1.0, tokens_per_batch: int = TOKENS_PER_BATCH) -> None:
        from rlad.trainer.upstream import add_fused_lm_head

        self.model = model.eval().requires_grad_(False)
        self.tokens_per_batch = tokens_per_batch
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        add_fused_lm_head(self.model, temperature=temperature)

    @classmethod
    def load(cls, path: str, temperature: float = 1.0, device: Any = None, **kwargs: Any) -> LocalTeacher:
        """Load a teacher by hub id, path or embedded:NAME; `kwargs` go to from_pretrained. Safetensors only."""
        from transformers import AutoModelForCausalLM

        try:
            model = AutoModelForCausalLM.from_pretrained(resolve(path), use_safetensors=True, **kwargs)
        except (OSError, ValueError) as error:
            raise RladError(f"the teacher {path!r} cannot be loaded: {error}") from error
        return cls(model.to(device) if device is not None else model, temperature)

    @torch.no_grad()
    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `rlad.teacher.Teacher`. Raises RladError where a token id is outside the teacher's vocabulary."""
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses")
        if any(not prompt for prompt in prompts):
            raise ValueError("a prompt is empty: the first token of its response would have nothing to be scored by")
        highest = max((max(ids) for ids in (*prompts, *responses) if ids), default=0)
        if highest >= self.vocabulary:
            raise RladError(
                f"token id {highest} is outside the teacher's vocabulary of {self.vocabulary}: "
                "teacher and student need the same tokenizer"
            )
        scores: list[Tensor] = [torch.zeros(0)] * len(prompts)
        # Like lengths together, longest first: little padding, and a batch too large for memory fails at once.
        order = sorted(range(len(prompts)), key=lambda i: -(len(prompts[i]) + len(responses[i])))
        while order:
            longest = len(prompts[order[0]]) + len(responses[order[0]])
            size = max(1, self.tokens_per_batch // longest)
            batch, order = order[:size], order[size:]
            for i, row in zip(
                batch, self._forward([prompts[i] for i in batch], [responses[i] for i in batch]), strict=True
            ):
                scores[i] = row
        return scores

    def _forward(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Tensor]:
        width = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
        ids = torch.zeros((len(prompts), width), dtype=torch.long)
        labels = torch.full((len(prompts), width), -100)
        real = torch.zeros((len(prompts), width), dtype=torch.long)
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            end = len(prompt) + len(response)
            ids[i, :end] = torch.tensor([*prompt, *response])
            real[i, :end] = 1
            labels[i, len(prompt) : end] = ids[i, len(prompt) : end]
        device = self.model.device
        output = self.model(
            input_ids=ids.to(device), attention_mask=real.to(device), labels=labels.to(device), fused_lm_head=True
        )
        # The fused head returns one value fewer than there are tokens: column t - 1 is the log-prob of token t.
        logps = output.log_probs.float().cpu()
        return [
            logps[i, len(p) - 1 : len(p) + len(r) - 1].clone()
            for i, (p, r) in enumerate(zip(prompts, responses, strict=True))
        ]
