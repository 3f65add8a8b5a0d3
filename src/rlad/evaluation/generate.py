"""Responses of a model to chat prompts: batched, and the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from rlad.errors import RladError


@dataclass(frozen=True)
class Response:
    """One sampled response. tokens: how many were generated, the end of sequence included. truncated: it never came."""

    text: str
    tokens: int
    truncated: bool


def generate_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[Mapping[str, str]]],
    *,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    batch_size: int = 32,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Response]]:
    """`samples` responses to each prompt (chat messages), in the order of the prompts.

    temperature: 0 takes the likeliest token each time. Nothing but temperature and top_p shapes the sampling: what the
        model's own generation config says of top-k, penalties and so on is left out, its end-of-sequence tokens are
        kept.
    seed: each batch draws from a generator of its own, made from it, so the caller's random state neither matters nor
        changes. Responses are equal for equal prompts, settings and batch_size; another batch_size draws others.
    on_progress: called with (responses done, all of them) after each batch.

    Raises RladError for settings out of range, a tokenizer without a chat template, and a prompt too long for the
    model.
    """
    _check(samples, temperature, top_p, max_new_tokens, batch_size)
    ids = [_prompt_ids(tokenizer, prompt, chat_template_kwargs or {}) for prompt in prompts]
    _check_length(model, ids, max_new_tokens)
    ends = _end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=pad,
        use_cache=True,
        **_sampling(temperature, top_p),
    )
    # Neighbours in length waste the least padding; longest first, so that a batch too large for memory fails at once.
    order = sorted((i for i in range(len(ids)) for _ in range(samples)), key=lambda i: -len(ids[i]))
    responses: list[list[Response]] = [[] for _ in ids]
    with _ready(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            generated = _generate_batch(model, [ids[i] for i in batch], pad, config, _batch_seed(seed, start))
            for i, row in zip(batch, generated, strict=True):
                responses[i].append(_response(tokenizer, row, ends))
            if on_progress is not None:
                on_progress(start + len(batch), len(order))
    return responses


def _check(samples: int, temperature: float, top_p: float, max_new_tokens: int, batch_size: int) -> None:
    for name, value in (("samples", samples), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if type(value) is not int or value < 1:
            raise RladError(f"{name} must be a whole number from 1 on, not {value!r}")
    if not 0 <= temperature < float("inf"):
        raise RladError(f"temperature must be 0 (the likeliest token) or more, not {temperature}")
    if not 0 < top_p <= 1:
        raise RladError(f"top_p must be above 0 and at most 1, not {top_p}")
    if temperature == 0 and samples > 1:
        raise RladError(f"at temperature 0 all {samples} samples of a prompt are the same; ask for 1")


def _sampling(temperature: float, top_p: float) -> dict[str, Any]:
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p), "top_k": 0}


def _prompt_ids(tokenizer: Any, prompt: Sequence[Mapping[str, str]], kwargs: Mapping[str, Any]) -> list[int]:
    if not tokenizer.chat_template:
        raise RladError("the tokenizer has no chat template, so it cannot write a prompt; set tokenizer.chat_template")
    messages = [dict(message) for message in prompt]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False, **kwargs}
    return list(tokenizer.apply_chat_template(messages, **options))


def _check_length(model: Any, ids: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(prompt) for prompt in ids), default=0)
    if limit is not None and longest + max_new_tokens > limit:
        raise RladError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} do not fit the model's {limit} "
            f"positions; set max_new_tokens to at most {limit - longest}"
        )


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = set(own if isinstance(own, list) else [own]) | {tokenizer.eos_token_id}
    ends.discard(None)
    if not ends:
        raise RladError("neither the tokenizer nor the model names an end-of-sequence token; set tokenizer.eos_token")
    return ends


def _batch_seed(seed: int, start: int) -> int:
    return random.Random(f"{seed}/{start}").getrandbits(63)


@contextmanager
def _ready(model: Any) -> Iterator[None]:
    """The model in evaluation mode, and without a generation config of its own to fill in what ours leaves out."""
    training, own = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
        model.train(training)


def _generate_batch(
    model: Any, prompts: Sequence[Sequence[int]], pad: int, config: GenerationConfig, seed: int
) -> list[list[int]]:
    width = max(len(prompt) for prompt in prompts)
    # Left padding: every row's last prompt token stands last, where generation goes on.
    padded = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        output = model.generate(input_ids=padded, attention_mask=mask, generation_config=config)
    rows: list[list[int]] = output[:, width:].tolist()
    return rows


def _response(tokenizer: Any, row: Sequence[int], ends: set[int]) -> Response:
    end = next((place for place, token in enumerate(row) if token in ends), None)
    tokens = len(row) if end is None else end + 1
    return Response(tokenizer.decode(row[:tokens], skip_special_tokens=True), tokens, end is None)
