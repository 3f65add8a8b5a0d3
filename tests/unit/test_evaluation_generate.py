"""Draws: each response's own, whatever else is in the batch; and what is drawn follows the probabilities."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from rlad.errors import RladError
from rlad.evaluation.generate import (
    Draws,
    Response,
    Sampling,
    TransformersBackend,
    generate_batches,
    generate_responses,
)

PROMPTS = [[{"role": "user", "content": text}] for text in (*tiny.PROMPTS, tiny.PROMPTS[0])]


@functools.cache
def model() -> Any:
    return tiny.model(1)


def responses(prompts: Any = PROMPTS, **settings: Any) -> list[list[Response]]:
    defaults = {"samples": 3, "max_new_tokens": 8, "seed": 5, "batch_size": 4}
    return generate_responses(model(), tiny.tokenizer(), prompts, **{**defaults, **settings})


def test_neither_batches_nor_other_problems_nor_samples_change_a_draw() -> None:
    """In float32, where padding moves a probability by 1e-7: one token in millions could differ, and here none does."""
    all_at_once = responses(batch_size=100)
    assert all_at_once == responses(batch_size=1) == responses(batch_size=4)
    assert [all_at_once[i] for i in (3, 2, 0)] == responses([PROMPTS[i] for i in (3, 2, 0)])
    assert [each[:2] for each in all_at_once] == responses(samples=2)
    assert all_at_once[0] != all_at_once[4]  # the same prompt twice: the second has draws of its own
    assert responses(seed=6) != all_at_once


def test_what_is_done_is_left_out_and_changes_no_batch() -> None:
    class Recorded:
        tokenizer = tiny.tokenizer()

        def __init__(self) -> None:
            self.batches: list[list[int]] = []

        def prepare(self, longest: int, max_new_tokens: int) -> None:
            assert (longest, max_new_tokens) == (4, 9)

        def sample(self, prompts: Any, seeds: Any, sampling: Sampling) -> list[Response]:
            self.batches.append([len(prompt) for prompt in prompts])
            return [Response(str(seed), 1, False) for seed in seeds]

    def made(done: Any, batch_size: int = 3) -> tuple[list[list[int]], dict[Any, str]]:
        backend = Recorded()
        ids = [[1], [1] * 4, [1] * 2]
        batches = generate_batches(
            backend, ids, 2, lambda place: 10 * place[0] + place[1], Sampling(max_new_tokens=9), batch_size, done=done
        )
        return backend.batches, {place: response.text for batch in batches for place, response in batch}

    batches, texts = made(())
    assert batches == [[4, 4, 2], [2, 1, 1]]  # longest first
    assert texts == {(i, j): str(10 * i + j) for i in range(3) for j in range(2)}
    batches, rest = made({(1, 0), (1, 1), (2, 0)})  # the first batch is there
    assert batches == [[2, 1, 1]] and rest == {place: texts[place] for place in ((2, 1), (0, 0), (0, 1))}
    batches, rest = made({(1, 0), (1, 1), (2, 0)}, batch_size=2)  # and with another size of batches
    assert batches == [[2], [1, 1]] and rest == {place: texts[place] for place in ((2, 1), (0, 0), (0, 1))}
    assert made(set(texts))[0] == []


def drawn(scores: torch.Tensor, seeds: range, temperature: float = 1.0, top_p: float = 1.0) -> torch.Tensor:
    draws = Draws(seeds, 3, Sampling(temperature, top_p, 2), torch.device("cpu"))
    left = draws(torch.zeros(len(seeds), 4, dtype=torch.long), scores)  # the second token of each response
    assert (left == 0).sum(-1).tolist() == [1] * len(seeds) and left.isinf().sum() == left.numel() - len(seeds)
    return left.argmax(-1)


def test_a_draw_is_the_token_at_which_the_cumulative_probability_passes_the_uniform_number() -> None:
    """Against a loop over tokens in their order, with and without a nucleus."""
    torch.manual_seed(0)
    scores, seeds = torch.randn(200, 7) * 2, range(200)
    for temperature, top_p in ((1.0, 1.0), (0.6, 0.95), (2.0, 0.5), (1.0, 1e-6)):
        expected = []
        for row, seed in zip(scores.double() / temperature, seeds, strict=True):
            weights = dict(enumerate(np.exp(row.numpy()) / np.exp(row.numpy()).sum()))
            kept, mass = {}, 0.0
            for token in sorted(weights, key=lambda token: -weights[token]):
                if mass < top_p:
                    kept[token], mass = weights[token], mass + weights[token]
            at = np.random.Generator(np.random.Philox(seed)).random(2)[1] * mass
            for token in sorted(kept):
                at -= kept[token]
                if at < 0:
                    break
            expected.append(token)
        assert drawn(scores, seeds, temperature, top_p).tolist() == expected


def test_a_token_without_probability_is_never_drawn() -> None:
    scores = torch.full((3000, 5), -torch.inf)
    scores[:, 1], scores[:, 3] = 0.0, 1.0
    counts = torch.bincount(drawn(scores, range(3000)), minlength=5)
    # e / (1 + e) = .731 of 3,000 is 2193, with a standard deviation of 24
    assert counts[[0, 2, 4]].sum() == 0 and abs(int(counts[3]) - 2193) < 5 * 24

    # The ends of the range: 0, and 1, to which a number just below it is rounded in float32.
    for uniform, token in ((0.0, 1), (1.0, 3)):
        draws = Draws([0], 0, Sampling(max_new_tokens=1), torch.device("cpu"))
        draws._uniforms.fill_(uniform)
        left = draws(torch.zeros(1, 0), torch.tensor([[-torch.inf, 0.0, 0.3, 1.0, -torch.inf]]))
        assert left.argmax() == token


def test_a_batch_too_large_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(**_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model(), "generate", out_of_memory)
    backend = TransformersBackend(model(), tiny.tokenizer())
    with pytest.raises(RladError, match="a batch of 2 responses does not fit into memory: lower batch_size"):
        backend.sample([[1], [2]], [0, 1], Sampling(max_new_tokens=2))
