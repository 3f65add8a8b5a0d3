"""The direction in which each KL estimator pushes, by exact enumeration of a vocabulary of 8 tokens.

The student is a softmax over 8 logits. "Expected" means: summed over all tokens, each weighed by its probability under
the distribution that samples, which carries no gradient (as sampled tokens carry none). No sampling error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlad.objectives import GRPO, KDRL, OPD, Method, objective_terms, token_signals
from rlad.objectives.divergences import exact, k1, k2, k3

VOCABULARY = 8


def distributions() -> tuple[Tensor, Tensor, Tensor]:
    """Student logits (a leaf), old student log-probs, teacher log-probs; float64, all three different."""
    generator = torch.Generator().manual_seed(3)
    logits, noise, teacher = (torch.randn(VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(3))
    return logits.requires_grad_(), (logits.detach() + 0.1 * noise).log_softmax(-1), (2 * teacher).log_softmax(-1)


def reverse_kl_gradient(logits: Tensor, teacher: Tensor) -> Tensor:
    """grad of KL(S || T) = sum S (log S - log T), written out: S (log S - log T - KL)."""
    student = logits.detach().log_softmax(-1)
    kl = (student.exp() * (student - teacher)).sum()
    return student.exp() * (student - teacher - kl)


def forward_kl_gradient(logits: Tensor, teacher: Tensor) -> Tensor:
    """grad of KL(T || S) = -sum T log S + const, written out: S - T."""
    return logits.detach().softmax(-1) - teacher.exp()


def loss_gradient(estimator: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Expected on-policy gradient of an estimator as a loss, the student's logits and the teacher."""
    logits, _, teacher = distributions()
    student = logits.log_softmax(-1)
    expected = (student.exp().detach() * estimator(student, teacher)).sum()
    return torch.autograd.grad(expected, logits)[0], logits, teacher


def objective_gradient(method: Method, sampler: Tensor, old: Tensor | None) -> Tensor:
    """Expected gradient of a method's objective with zero reward advantage: every token once, weighed by `sampler`."""
    logits, _, teacher = distributions()
    student = logits.log_softmax(-1).unsqueeze(-1)  # 8 rollouts of 1 token: each token of the vocabulary
    old = None if old is None else old.unsqueeze(-1)
    mask = torch.ones(VOCABULARY, 1, dtype=torch.bool)
    signals = token_signals(student, old, teacher.unsqueeze(-1), torch.zeros(VOCABULARY), mask)
    objective = objective_terms(method, signals).objective.squeeze(-1)
    return torch.autograd.grad((sampler.exp() * objective).sum(), logits)[0]


def close(actual: Tensor, expected: Tensor) -> bool:
    return torch.allclose(actual, expected, rtol=0, atol=1e-12)


def test_k1_as_a_loss_teaches_nothing() -> None:
    gradient, *_ = loss_gradient(k1)
    assert close(gradient, torch.zeros(VOCABULARY, dtype=torch.float64))


def test_k2_as_a_loss_is_the_reverse_kl() -> None:
    gradient, logits, teacher = loss_gradient(k2)
    assert close(gradient, reverse_kl_gradient(logits, teacher))
    assert gradient.abs().max() > 0.01


def test_k3_as_a_loss_is_the_forward_kl() -> None:
    gradient, logits, teacher = loss_gradient(k3)
    assert close(gradient, forward_kl_gradient(logits, teacher))
    assert not close(gradient, reverse_kl_gradient(logits, teacher))


def test_exact_is_the_reverse_kl() -> None:
    logits, _, teacher = distributions()
    kl = exact(logits.log_softmax(-1), teacher)
    assert close(torch.autograd.grad(kl, logits)[0], reverse_kl_gradient(logits, teacher))


def test_values_of_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    logits, _, teacher = distributions()
    student = logits.detach().log_softmax(-1)
    kl = exact(student, teacher)
    means = [(student.exp() * estimator(student, teacher)).sum() for estimator in (k1, k2, k3)]
    assert kl > 0
    assert close(means[0], kl) and close(means[2], kl)
    assert (means[1] - kl).abs() > 0.01


def test_single_tokens() -> None:
    # log S = -1, log T = -1.5: k1 .5, k2 .125, k3 exp(-.5) - 1 + .5 = .1065
    s, t = torch.tensor(-1.0, dtype=torch.float64), torch.tensor(-1.5, dtype=torch.float64)
    assert k1(s, t).item() == pytest.approx(0.5)
    assert k2(s, t).item() == pytest.approx(0.125)
    assert k3(s, t).item() == pytest.approx(0.10653, abs=1e-5)
    # S = (.5, .5), T = (.9, .1): .5 ln(.5/.9) + .5 ln(.5/.1) = .5 (-.5878 + 1.6094) = .5108
    full = exact(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log())
    assert full.item() == pytest.approx(0.5108, abs=1e-4)


def test_teacher_gets_no_gradient() -> None:
    s = torch.tensor([-1.0], requires_grad=True)
    teacher = torch.tensor([-2.0], requires_grad=True)
    for estimator in (k1, k2, k3):
        assert torch.autograd.grad(estimator(s, teacher).sum(), (s, teacher), allow_unused=True)[1] is None


# A wide clip: what is tested is the direction, and a clipped token has none.
WIDE: Any = {"clip_low": 1.0, "clip_high": 1e3}


def test_on_policy_both_kdrl_forms_and_opd_descend_the_reverse_kl() -> None:
    logits, _, teacher = distributions()
    student = logits.detach().log_softmax(-1)
    descent = -reverse_kl_gradient(logits, teacher)
    assert close(objective_gradient(KDRL(coefficient=0.3), student, None), 0.3 * descent)
    assert close(objective_gradient(KDRL(coefficient=0.3, form="reward"), student, None), 0.3 * descent)
    assert close(objective_gradient(OPD(), student, None), descent)
    assert close(objective_gradient(GRPO(), student, None), torch.zeros_like(descent))


def test_off_policy_the_reward_form_is_corrected_and_k2_is_biased() -> None:
    logits, old, teacher = distributions()
    descent = -reverse_kl_gradient(logits, teacher)
    # Tokens sampled from old, as from the second iteration on. The ratio S/old turns the average over old into S's.
    reward = KDRL(coefficient=0.3, form="reward", **WIDE)
    assert close(objective_gradient(reward, old, old), 0.3 * descent)
    assert close(objective_gradient(OPD(**WIDE), old, old), descent)
    # k2 has no ratio in front: sum old (log S - log T) grad log S, which is another vector.
    biased = objective_gradient(KDRL(coefficient=0.3), old, old)
    gap = logits.detach().log_softmax(-1) - teacher
    by_hand = old.exp() * gap - (old.exp() * gap).sum() * logits.detach().softmax(-1)
    assert close(biased, -0.3 * by_hand)
    assert (biased - 0.3 * descent).abs().max() > 1e-3
