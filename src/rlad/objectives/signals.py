"""What every method is a function of: the log-probs, the advantage and the mask of each sampled token.

Axes: B rollouts, T response tokens (padded to the longest). Log-probs are of the sampled token, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

POSITIVE_TOLERANCE = 1e-4
"""Nats. A log-prob cannot exceed 0, but a logit minus its logsumexp, in float32 at logits near 100, can by about
1e-5. Up to this tolerance such a value is rounding and is used as it is; above it the teacher's value is broken."""
LOWEST = -9998.0
"""Nats. Below it stands no log-prob but a sign for -inf (vLLM writes -9999, float32's lowest is -3e38): squared, or as
an advantage, it would be the whole gradient."""


@dataclass(frozen=True)
class TokenSignals:
    """One batch of rollouts as the methods see it. Build it with `token_signals`, which makes every value finite.

    logps (B, T): the student now, pi_S; the only field that carries a gradient.
    old_logps (B, T): the student that sampled the tokens, pi_old.
    teacher_logps (B, T) or None: the teacher, pi_T; equal to `logps` (detached) where its value was broken.
    advantages (B, T): the group-relative advantage of each token's rollout.
    mask (B, T) bool: True for the tokens that count. Elsewhere log-probs and advantages are 0.
    teacher_ok (B, T) bool: False exactly where a token that counts had a broken teacher value, or none.
    ref_logps (B, T) or None: a frozen reference, pi_ref; carried for methods that read it (none of METHODS does).
    correct (B,) bool or None: whether the rollout's answer is right, which no advantage says.
    group_wrong (B,) bool or None: whether every rollout of its group is wrong (`all_wrong`): a batch may hold a part
        of a group, so it is decided where the groups are whole.
    """

    logps: Tensor
    old_logps: Tensor
    teacher_logps: Tensor | None
    advantages: Tensor
    mask: Tensor
    teacher_ok: Tensor
    ref_logps: Tensor | None = None
    correct: Tensor | None = None
    group_wrong: Tensor | None = None

    @property
    def broken_teacher(self) -> Tensor:
        """How many tokens that count had a broken teacher value, or none: 0-dim, integer."""
        return (~self.teacher_ok).sum()

    @property
    def token_count(self) -> Tensor:
        """How many tokens count: 0-dim, integer."""
        return self.mask.sum()


def usable_teacher(teacher_logps: Tensor) -> Tensor:
    """True where a teacher log-prob can be one: above LOWEST, and not above 0 by more than POSITIVE_TOLERANCE."""
    return (teacher_logps > LOWEST) & (teacher_logps <= POSITIVE_TOLERANCE)


def token_signals(
    logps: Tensor,
    old_logps: Tensor | None,
    teacher_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor | None = None,
    correct: Tensor | None = None,
    teacher_ok: Tensor | None = None,
    group_wrong: Tensor | None = None,
) -> TokenSignals:
    """Decide, once, which tokens count and which teacher values can be used; make everything else harmless.

    `old_logps` None means one on-policy step: the old student is the current one, detached. `advantages` is (B,) or
    (B, T). `mask` is (B, T), bool or 0/1. Values are replaced here, before any arithmetic, because a NaN that is only
    multiplied by 0 later is still a NaN, in the value or in the gradient.

    `teacher_ok` (B, T) says which teacher values can be used, where that is known otherwise: a share of a span
    (`spread_spans`) may be above 0, and is as good as the span's own value; a token may have none. None means
    `usable_teacher(teacher_logps)`.

    `correct` and `group_wrong` are (B,), bool or 0/1.

    Raises ValueError when a shape does not fit `logps`.
    """
    if logps.dim() != 2:
        raise ValueError(f"logps has shape {tuple(logps.shape)}: expected (rollouts, response tokens)")
    _check_shape("mask", mask, logps)
    counts = mask.bool()

    def where_it_counts(name: str, values: Tensor) -> Tensor:
        _check_shape(name, values, logps)
        return torch.where(counts, values, 0.0)

    student = where_it_counts("logps", logps)
    old = student.detach() if old_logps is None else where_it_counts("old_logps", old_logps.detach())
    teacher, sound = None, torch.ones_like(counts)
    if teacher_logps is not None:
        _check_shape("teacher_logps", teacher_logps, logps)
        sound = (usable_teacher(teacher_logps) if teacher_ok is None else teacher_ok) | ~counts
        # The student's own value stands in for a broken one: log S - log T is then 0, and so is a distillation term.
        usable = torch.where(sound, teacher_logps.detach(), logps.detach())
        teacher = where_it_counts("teacher_logps", usable)
    return TokenSignals(
        logps=student,
        old_logps=old,
        teacher_logps=teacher,
        advantages=where_it_counts("advantages", _per_token(advantages.detach(), logps)),
        mask=counts,
        teacher_ok=sound,
        ref_logps=None if ref_logps is None else where_it_counts("ref_logps", ref_logps.detach()),
        correct=_of_rollouts("correct", correct, logps),
        group_wrong=_of_rollouts("group_wrong", group_wrong, logps),
    )


def _per_token(advantages: Tensor, logps: Tensor) -> Tensor:
    """Advantages of rollouts (B,) or tokens (B, T), as (B, T)."""
    per_token = advantages.unsqueeze(-1) if advantages.dim() == 1 else advantages
    if per_token.shape not in (logps.shape, (logps.shape[0], 1)):
        raise ValueError(
            f"advantages has shape {tuple(advantages.shape)}: expected one per rollout, ({logps.shape[0]},), "
            f"or one per token, {tuple(logps.shape)}"
        )
    return per_token.expand_as(logps)


def _of_rollouts(name: str, values: Tensor | None, logps: Tensor) -> Tensor | None:
    if values is not None and values.shape != logps.shape[:1]:
        raise ValueError(f"{name} has shape {tuple(values.shape)}: expected one per rollout, ({logps.shape[0]},)")
    return None if values is None else values.bool()


def _check_shape(name: str, values: Tensor, logps: Tensor) -> None:
    if values.shape != logps.shape:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)} but logps {tuple(logps.shape)}: give one value for each of the "
            "same response tokens, prompt tokens left out"
        )
