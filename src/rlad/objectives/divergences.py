"""Estimators of KL(pi_S || pi_T) on tokens sampled from the student, each described by what its gradient is.

The value of an estimator says nothing about its gradient. With tokens sampled from pi_S itself (on-policy), the
expected gradient of each, used as a loss, is (tests enumerate it exactly over a vocabulary):

    k1     0: it teaches nothing. As a detached per-token reward, -k1, it gives exactly the reverse KL's gradient
    k2     the gradient of the reverse KL(pi_S || pi_T)
    k3     the gradient of the forward KL(pi_T || pi_S)
    exact  the gradient of the reverse KL, without sampling; needs both distributions in full

k1, k2, k3: http://joschu.net/blog/kl-approx.html. Log-probs in nats; the teacher carries no gradient; finite inputs.
"""

from __future__ import annotations

from torch import Tensor


def k1(logps: Tensor, teacher_logps: Tensor) -> Tensor:
    """log S - log T per token: unbiased value of the reverse KL, zero expected gradient."""
    return logps - teacher_logps.detach()


def k2(logps: Tensor, teacher_logps: Tensor) -> Tensor:
    """0.5 (log S - log T)^2 per token: biased value, gradient of the reverse KL."""
    return 0.5 * k1(logps, teacher_logps) ** 2


def k3(logps: Tensor, teacher_logps: Tensor) -> Tensor:
    """T/S - 1 - log(T/S) per token: unbiased value of the reverse KL, gradient of the forward KL."""
    log_teacher_ratio = -k1(logps, teacher_logps)
    return log_teacher_ratio.exp() - 1 - log_teacher_ratio


def exact(logps: Tensor, teacher_logps: Tensor) -> Tensor:
    """Sum over the vocabulary of S (log S - log T): the reverse KL of each position.

    Both arguments are log-probs of the whole vocabulary, (..., V), finite; returns (...).
    """
    return (logps.exp() * k1(logps, teacher_logps)).sum(-1)
