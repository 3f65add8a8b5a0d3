"""Leaving padding out, and moving rows between micro-batches of an update, changes no gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from rlad.objectives import RLAD, objective_terms, token_signals
from rlad.trainer.trim import balanced, by_length, trimmed

P, T = 5, 7  # columns of prompts and responses, as TRL pads a whole generation to its longest


def rows(lengths: list[tuple[int, int]], seed: int = 0) -> dict[str, Any]:
    """A micro-batch as TRL has it: prompts padded on the left, responses on the right. lengths: (prompt, response)."""
    draw = torch.Generator().manual_seed(seed)
    count = len(lengths)
    prompt, response = torch.zeros(count, P, dtype=torch.long), torch.zeros(count, T, dtype=torch.long)
    for i, (p, t) in enumerate(lengths):
        prompt[i, P - p :] = 1
        response[i, :t] = 1

    def ids(mask: Tensor) -> Tensor:
        return torch.randint(3, len(tiny.tokenizer()), mask.shape, generator=draw) * mask

    def logps() -> Tensor:
        return -3 * torch.rand(count, T, generator=draw, dtype=torch.float64) * response

    return {
        "prompt_ids": ids(prompt), "prompt_mask": prompt, "completion_ids": ids(response), "completion_mask": response,
        "advantages": torch.randn(count, generator=draw, dtype=torch.float64), "old_per_token_logps": logps(),
        "teacher_logps": logps(), "num_items_in_batch": torch.tensor(50), "nothing": None,
    }  # fmt: skip


LENGTHS = st.lists(st.tuples(st.integers(1, P), st.integers(0, T)), min_size=2, max_size=2)
UPDATES = st.lists(LENGTHS, min_size=1, max_size=4)


def loss(model: Any, batch: dict[str, Any], kind: str) -> Tensor:
    """Minus RLAD's objective of one micro-batch, summed as TRL's loss types do; in float64, by a plain forward."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, batch["prompt_ids"].shape[1] - 1 : -1]
    logps = logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]
    real = batch["completion_mask"]
    signals = token_signals(logps, batch["old_per_token_logps"], batch["teacher_logps"], batch["advantages"], real)
    each = objective_terms(RLAD(), signals).objective * real
    if kind == "grpo":
        return -(each.sum(1) / real.sum(1).clamp(min=1)).mean()
    return -each.sum() / (batch["num_items_in_batch"] if kind == "dapo" else T * len(each))


def gradient(micro_batches: list[dict[str, Any]], kind: str) -> Tensor:
    model = tiny.model(1).double()
    total = torch.stack([loss(model, each, kind) for each in micro_batches]).sum()
    return tiny.gradient(total, model)


@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo"])
@settings(max_examples=12, deadline=None, derandomize=True)  # float32 RoPE leaves 3e-7 of the 1e-6
@given(lengths=UPDATES)
def test_gradients_do_not_change(kind: str, lengths: list[list[tuple[int, int]]]) -> None:
    update = [rows(each, seed) for seed, each in enumerate(lengths)]
    plain, less = gradient(update, kind), gradient([trimmed(each) for each in balanced(update, len(update))], kind)
    assert (plain - less).norm() <= 1e-6 * plain.norm()


def test_a_row_that_moves_changes_the_gradient_of_bnpo() -> None:
    """So balancing is not for it: it divides by the tokens of the micro-batch. Shows that the test above can fail."""

    def bnpo(update: list[dict[str, Any]]) -> Tensor:
        for each in update:
            each["num_items_in_batch"] = each["completion_mask"].sum()
        return gradient(update, "dapo")

    update = [rows([(3, 7), (2, 1)]), rows([(1, 6), (2, 2)], seed=1)]
    plain, moved = bnpo(update), bnpo(balanced(update, 2))
    assert (plain - moved).norm() > 1e-2 * plain.norm()


@settings(deadline=None)
@given(lengths=LENGTHS)
def test_trimming_takes_padding_and_nothing_else(lengths: list[tuple[int, int]]) -> None:
    batch = rows(lengths)
    cut = trimmed(batch)
    longest_prompt, longest = max(p for p, _ in lengths), max(1, *(t for _, t in lengths))
    assert cut["prompt_ids"].shape == (2, longest_prompt) and cut["completion_ids"].shape == (2, longest)
    for name, value in batch.items():
        if name in ("prompt_ids", "prompt_mask"):
            assert torch.equal(cut[name], value[:, P - longest_prompt :]) and not value[:, : P - longest_prompt].any()
        elif isinstance(value, Tensor) and value.ndim == 2:
            assert torch.equal(cut[name], value[:, :longest]) and not value[:, longest:].any()
        else:
            assert cut[name] is value


def test_a_tensor_over_prompt_and_response_stops_the_trimming() -> None:
    batch = {**rows([(1, 1), (2, 2)]), "token_type_ids": torch.zeros(2, P + T)}
    assert trimmed(batch) == batch


@settings(deadline=None)
@given(lengths=UPDATES, window=st.integers(1, 4))
def test_balancing_moves_whole_rows_within_an_update(lengths: list[list[tuple[int, int]]], window: int) -> None:
    update = [rows(each, seed) for seed, each in enumerate(lengths)]
    after = balanced(update, window)
    assert len(after) == len(update)

    def key(batch: dict[str, Any], i: int) -> tuple[Any, ...]:
        return tuple(tuple(value[i].flatten().tolist()) for value in batch.values() if getattr(value, "ndim", 0))

    for start in range(0, len(update), window):
        one, two = update[start : start + window], after[start : start + window]
        assert sorted(key(b, i) for b in one for i in range(2)) == sorted(key(b, i) for b in two for i in range(2))
        sums = [int(b["prompt_mask"][i].sum() + b["completion_mask"][i].sum()) for b in two for i in range(2)]
        assert len(one) == 1 or sums == sorted(sums, reverse=True)


def test_micro_batches_with_anything_else_in_them_stay_as_they_are() -> None:
    update = [{**rows([(1, 1), (2, 7)]), "images": [1, 2]}, {**rows([(1, 2), (2, 2)], 1), "images": [3, 4]}]
    for one, two in zip(update, balanced(update, 2), strict=True):
        assert one == two


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_a_pass_by_length_is_the_plain_pass(batch_size: int) -> None:
    batch = rows([(1, 7), (5, 0), (2, 3), (5, 7), (3, 1)])
    model = tiny.model(1).double()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    sizes = []

    def forward(ids: Tensor, mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        sizes.append(ids.numel())
        with torch.no_grad():
            logps = model(input_ids=ids, attention_mask=mask).logits[:, -keep - 1 : -1].log_softmax(-1)
        entropies = -(logps * logps.exp()).sum(-1)
        return logps.gather(-1, ids[:, -keep:, None])[..., 0] * mask[:, -keep:], entropies * mask[:, -keep:]

    plain, plain_entropies = forward(ids, mask, T)
    sizes.clear()
    found, entropies = by_length(forward, ids, mask, T, batch_size)
    assert entropies is not None and found.shape == (5, T)
    torch.testing.assert_close(found, plain, rtol=0, atol=2e-6)
    torch.testing.assert_close(entropies, plain_entropies, rtol=0, atol=2e-6)
    assert len(sizes) == -(-5 // batch_size) and (batch_size == 5 or sum(sizes) < ids.numel())
