"""A teacher with another tokenizer: its log-prob of a span of text, shared out over the student's tokens in it."""

from __future__ import annotations

import torch
from torch import Tensor


def spread_spans(old_logps: Tensor, span_logps: Tensor, spans: Tensor, mask: Tensor) -> Tensor:
    """T_t = S_old,t + (T_span - S_span) / n, with S_span the sum of S_old over the n tokens of the span: (B, T), nats.

    The sum over a span is T_span, and a span of one token gets T_span itself. Where there is no teacher value (a span
    below 0) S_old,t stands, which is no value of the teacher: say so to `token_signals` by its teacher_ok. A share can
    be above 0, where the student's token is all but certain; it is then no log-prob, and only T_span tells whether the
    teacher's value is broken.

    old_logps (B, T): the student that sampled the tokens. span_logps (B, T): T_span, at each token of its span.
    spans (B, T) integer: the index of a token's span within its row, in [0, T), or below 0. mask (B, T): the tokens
    that count; others are in no sum, and get S_old,t. Nothing carries a gradient; a NaN stays in its span.

    Raises ValueError when a shape differs.
    """
    for name, values in (("span_logps", span_logps), ("spans", spans), ("mask", mask)):
        if values.shape != old_logps.shape:
            raise ValueError(f"{name} has shape {tuple(values.shape)} but old_logps {tuple(old_logps.shape)}")
    old = old_logps.detach()
    scored = mask.bool() & (spans >= 0)
    index = torch.where(scored, spans, 0)

    def span_sum(values: Tensor) -> Tensor:
        kept = torch.where(scored, values, 0.0)
        return torch.zeros_like(kept).scatter_add(-1, index, kept).gather(-1, index)

    count = span_sum(torch.ones_like(old))
    return torch.where(scored, old + (span_logps.detach().to(old) - span_sum(old)) / count, old)
