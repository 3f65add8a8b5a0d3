"""The teacher-regularised ratio of RLAD (arXiv 2602.22495, Eq. 3-5) and the anchor it is measured against.

    r_TRRD = (pi_S / pi_old)^alpha (pi_S / pi_T)^(1 - alpha) = pi_S / anchor,   anchor = pi_old^alpha pi_T^(1 - alpha)

All log-probs are of the sampled token, in nats; any shape, the same for all.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .signals import usable_teacher

ClipGradient = Literal["literal", "anchor"]


def grpo_log_ratio(logps: Tensor, old_logps: Tensor) -> Tensor:
    """log r_GRPO = log pi_S - log pi_old (RLAD Eq. 1), in nats; the old student carries no gradient."""
    return logps - old_logps.detach()


def rlad_log_ratio(
    logps: Tensor,
    old_logps: Tensor,
    teacher_logps: Tensor,
    alpha: float,
    teacher_clip: float | None,
    teacher_clip_gradient: ClipGradient = "literal",
    usable: Tensor | None = None,
) -> Tensor:
    """log r_TRRD = alpha (log S - log old) + (1 - alpha) clamp(log S - log T, -c, c) (RLAD Eq. 3 and Appendix B).

    `teacher_clip` is c in nats; None means no clamp. The paper leaves the gradient of the clamp open:
    "literal" differentiates the line above, so a clamped token keeps only the factor alpha of its gradient;
    "anchor" has the same value and the full gradient, (log S - sg log S) + clamp(sg log S - log T, -c, c).
    The anchor carries no gradient. Where the teacher's value is not `usable` (if None: where it is NaN, infinite or
    positive) the ratio is GRPO's, log S - log old.
    Raises ValueError when alpha is outside [0, 1], teacher_clip is not above 0, or the gradient has another name.
    """
    check_trrd(alpha, teacher_clip, teacher_clip_gradient)
    usable = usable_teacher(teacher_logps) if usable is None else usable
    teacher_logps = torch.where(usable, teacher_logps, logps).detach()
    to_old = grpo_log_ratio(logps, old_logps)
    if teacher_clip is None:
        to_teacher = logps - teacher_logps
    elif teacher_clip_gradient == "literal":
        to_teacher = (logps - teacher_logps).clamp(-teacher_clip, teacher_clip)
    else:
        frozen = logps.detach()
        to_teacher = (logps - frozen) + (frozen - teacher_logps).clamp(-teacher_clip, teacher_clip)
    log_ratio = alpha * to_old + (1 - alpha) * to_teacher
    return torch.where(usable, log_ratio, to_old)


def anchor_logps(old_logps: Tensor, teacher_logps: Tensor, alpha: float, teacher_clip: float | None) -> Tensor:
    """log anchor = log old + (1 - alpha) clamp(log T - log old, -c, c), detached (RLAD Eq. 4, clamped against old).

    This is what makes TRRD of any engine that has a GRPO loss: give it these as its old log-probs. Without a clamp
    it is alpha log old + (1 - alpha) log T, and log S - anchor is `rlad_log_ratio` exactly. With one it is a third
    thing, because it clamps T against old and not against S: equal to the "anchor" form of `rlad_log_ratio` where
    S = old or nothing clamps, and only there. The anchor is not a normalised distribution.

    Where the teacher's value is NaN, infinite or positive the anchor is the old student. Raises as `rlad_log_ratio`.
    """
    check_trrd(alpha, teacher_clip)
    teacher_logps = torch.where(usable_teacher(teacher_logps), teacher_logps, old_logps)
    from_old = teacher_logps - old_logps
    if teacher_clip is not None:
        from_old = from_old.clamp(-teacher_clip, teacher_clip)
    return (old_logps + (1 - alpha) * from_old).detach()


def check_trrd(alpha: float, teacher_clip: float | None, teacher_clip_gradient: str = "literal") -> None:
    """Refuse, with ValueError, parameters for which TRRD is not defined."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: choose it in [0, 1]; 1 is GRPO, 0 compares with the teacher alone")
    if teacher_clip is not None and not teacher_clip > 0:
        raise ValueError(
            f"teacher_clip is {teacher_clip}: give a positive number of nats, or None for no clamp; "
            "to train without the teacher use the method grpo"
        )
    if teacher_clip_gradient not in get_args(ClipGradient):
        raise ValueError(f"teacher_clip_gradient is {teacher_clip_gradient!r}: choose 'literal' or 'anchor'")
