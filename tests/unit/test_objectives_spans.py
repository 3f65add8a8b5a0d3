"""A span's teacher log-prob shared out over its tokens: closed form, a loop, and where it is no log-prob."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlad.objectives import KDRL, OPD, RLAD, objective_terms, spread_spans, token_signals
from rlad.objectives.signals import usable_teacher


def loop(old: list[float], span_logps: list[float], spans: list[int], mask: list[bool]) -> list[float]:
    """The formula, one token at a time."""
    shares = []
    for t, span in enumerate(spans):
        if span < 0 or not mask[t]:
            shares.append(old[t])
            continue
        members = [i for i, each in enumerate(spans) if each == span and mask[i]]
        shares.append(old[t] + (span_logps[t] - sum(old[i] for i in members)) / len(members))
    return shares


def batch(seed: int, rows: int = 5, tokens: int = 11) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """old, T_span, spans, mask, float64: spans of one to several tokens, some without a teacher, padding behind."""
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(rows, tokens, generator=generator, dtype=torch.float64)
    spans = (torch.rand(rows, tokens, generator=generator) < 0.6).long().cumsum(-1)
    spans = torch.where(torch.rand(rows, tokens, generator=generator) < 0.1, -1, spans.clamp(max=tokens - 1))
    values = -5 * torch.rand(rows, tokens, generator=generator, dtype=torch.float64)
    lengths = torch.randint(0, tokens + 1, (rows, 1), generator=generator)
    return old, values.gather(-1, spans.clamp(min=0)), spans, torch.arange(tokens) < lengths


def test_a_span_is_shared_out_evenly_in_what_the_teacher_adds() -> None:
    # Span 0 has tokens 0 and 1, S_span = -1 - 2 = -3; T_span = -2 adds 1 nat, half to each: -0.5 and -1.5.
    # Span 1 is token 2 alone: T = T_span = -0.7. Token 3 has no teacher value: S_old.
    old = torch.tensor([[-1.0, -2.0, -4.0, -0.25]])
    shares = spread_spans(
        old, torch.tensor([[-2.0, -2.0, -0.7, -9.0]]), torch.tensor([[0, 0, 1, -1]]), torch.ones(1, 4, dtype=torch.bool)
    )
    torch.testing.assert_close(shares, torch.tensor([[-0.5, -1.5, -0.7, -0.25]]))


def test_spreading_equals_the_loop_and_keeps_the_sum_of_a_span() -> None:
    for seed in range(4):
        old, values, spans, mask = batch(seed)
        shares = spread_spans(old, values, spans, mask)
        expected = [loop(*(each[i].tolist() for each in (old, values, spans, mask))) for i in range(len(old))]
        torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        for i, t in (mask & (spans >= 0)).nonzero().tolist():
            members = mask[i] & (spans[i] == spans[i, t])
            assert shares[i][members].sum().item() == pytest.approx(values[i, t].item(), abs=1e-12)


def test_spans_of_one_token_are_the_teacher_itself() -> None:
    old, values, _, mask = batch(0)
    alone = torch.arange(old.shape[1]).expand_as(old)
    torch.testing.assert_close(spread_spans(old, values, alone, mask), torch.where(mask, values, old))


def test_a_broken_span_stays_in_its_tokens_and_padding_in_none() -> None:
    old = torch.tensor([[-1.0, -2.0, -3.0, math.nan]])
    spans, mask = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1, 1, 1, 0]])
    shares = spread_spans(old, torch.tensor([[-2.0, -2.0, math.nan, math.nan]]), spans, mask)[0]
    assert shares[:2].tolist() == [-0.5, -1.5] and shares[2].isnan()


def test_spread_values_carry_no_gradient() -> None:
    old, values, spans, mask = batch(1)
    shares = spread_spans(old.requires_grad_(), values.requires_grad_(), spans, mask)
    assert not shares.requires_grad


def test_shapes_that_differ_are_refused() -> None:
    old, values, spans, mask = batch(2)
    for wrong in ((values[:, 1:], spans, mask), (values, spans[1:], mask), (values, spans, mask[:, :-1])):
        with pytest.raises(ValueError, match="has shape"):
            spread_spans(old, *wrong)


def test_a_share_above_zero_still_teaches() -> None:
    """Old is sure of the first token and not of the second; the teacher likes both: the first share is above 0."""
    # S_span = -0.1 - 4.1 = -4.2, T_span = -0.2 adds 4 nats, 2 to each: T = 1.9 and -2.1.
    old, mask = torch.tensor([[-0.1, -4.1]]), torch.ones(1, 2, dtype=torch.bool)
    of_span = torch.full((1, 2), -0.2)
    shares = spread_spans(old, of_span, torch.zeros(1, 2, dtype=torch.long), mask)
    torch.testing.assert_close(shares, torch.tensor([[1.9, -2.1]]))
    advantages = torch.tensor([1.0])
    signals = token_signals(old, old, shares, advantages, mask, teacher_ok=usable_teacher(of_span))
    assert signals.broken_teacher == 0
    # S = old, so the ratio is 1 but for RLAD's exp(0.5 clamp(S - T, -1, 1)), S - T = -2 at both tokens.
    expected = [
        (RLAD(), math.exp(-0.5)),
        (RLAD(teacher_clip=None), math.exp(-1.0)),
        (OPD(), 2.0),  # T - S
        (KDRL(coefficient=0.3), 1 - 0.3 * 0.5 * 2**2),
    ]
    for method, value in expected:
        torch.testing.assert_close(objective_terms(method, signals).objective, torch.full((1, 2), value))


def test_a_value_that_is_said_to_be_broken_is_not_used() -> None:
    old, mask = torch.tensor([[-1.0, -2.0]]), torch.ones(1, 2, dtype=torch.bool)
    shares = torch.tensor([[-0.5, math.nan]])
    ok = torch.tensor([[True, False]])
    signals = token_signals(old + 0.1, old, shares, torch.tensor([1.0]), mask, teacher_ok=ok)
    assert signals.broken_teacher == 1
    # 0.5 * 0.1 + 0.5 (-0.9 + 0.5) = -0.15; the second token keeps the whole ratio to old, 0.1
    expected = torch.tensor([[-0.15, 0.1]]).exp()
    torch.testing.assert_close(objective_terms(RLAD(), signals).objective, expected)
