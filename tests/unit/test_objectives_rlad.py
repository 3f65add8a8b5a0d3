"""TRRD in closed form: what RLAD Eq. 3-5 and Appendix B say about one token, with the arithmetic beside it.

Log-probs in nats. On the first inner step S = old, and with the defaults (alpha .5, clip .20 / .28, clamp 1 nat) a
token weighs r = (S/T)^(1 - alpha) = exp(.5 (log S - log T)), or 0 where it is clipped.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlad.objectives import (
    GRPO,
    RLAD,
    Method,
    anchor_logps,
    clip_branches,
    objective_terms,
    rlad_log_ratio,
    token_signals,
)
from rlad.objectives.ratios import ClipGradient

FORMS: tuple[ClipGradient, ClipGradient] = ("literal", "anchor")


def row(*values: float) -> Tensor:
    """One rollout (1, T) in float64."""
    return torch.tensor([values], dtype=torch.float64)


def run(
    method: Method, s: Tensor, old: Tensor | None, teacher: Tensor | None, advantage: float
) -> tuple[list[float], list[float]]:
    """Objective and its gradient by log S, per token of one rollout."""
    student = s.clone().requires_grad_()
    mask = torch.ones_like(s, dtype=torch.bool)
    signals = token_signals(student, old, teacher, torch.tensor([advantage], dtype=s.dtype), mask)
    objective = objective_terms(method, signals).objective
    (gradient,) = torch.autograd.grad(objective.sum(), student)
    return objective.detach()[0].tolist(), gradient[0].tolist()


def near(*values: float) -> object:
    return pytest.approx(list(values), rel=1e-12, abs=1e-12)


def test_log_ratio_weighs_old_and_teacher() -> None:
    # .3 (-1.0 - -1.2) + .7 (-1.0 - -1.6) = .06 + .42
    assert rlad_log_ratio(row(-1.0), row(-1.2), row(-1.6), 0.3, None)[0].tolist() == near(0.48)
    # alpha 0: the teacher alone, -1.0 + 1.6. alpha 1: the old student alone, -1.0 + 1.2
    assert rlad_log_ratio(row(-1.0), row(-1.2), row(-1.6), 0.0, None)[0].tolist() == near(0.6)
    assert rlad_log_ratio(row(-1.0), row(-1.2), row(-1.6), 1.0, None)[0].tolist() == near(0.2)


def test_clamp_bounds_the_teacher_term_alone() -> None:
    # log S - log T = -.5 + 3 = 2.5, clamped to 1: .5 (-.5 - -3.5) + .5 * 1 = 1.5 + .5; the first term is not clamped.
    assert rlad_log_ratio(row(-0.5), row(-3.5), row(-3.0), 0.5, 1.0)[0].tolist() == near(2.0)
    # The other side: -4 + .5 = -3.5, clamped to -1: .5 (-4 - -4) + .5 * -1
    assert rlad_log_ratio(row(-4.0), row(-4.0), row(-0.5), 0.5, 1.0)[0].tolist() == near(-0.5)
    # No clamp: .5 * 0 + .5 * -3.5
    assert rlad_log_ratio(row(-4.0), row(-4.0), row(-0.5), 0.5, None)[0].tolist() == near(-1.75)


def test_clamp_gradient_literal_keeps_alpha_and_anchor_keeps_all() -> None:
    old, teacher = row(-0.5, -0.5), row(-3.0, -0.6)  # gaps 2.5 (clamped at 1) and .1 (not)
    values, gradients = [], []
    for form in FORMS:
        s = row(-0.5, -0.5).requires_grad_()
        log_ratio = rlad_log_ratio(s, old, teacher, 0.3, 1.0, form)
        values.append(log_ratio.detach())
        gradients.append(torch.autograd.grad(log_ratio.sum(), s)[0][0].tolist())
    assert torch.equal(values[0], values[1])
    assert values[0][0].tolist() == near(0.7, 0.07)  # .7 * 1 and .7 * .1
    assert gradients[0] == near(0.3, 1.0)  # literal: alpha; .3 + .7
    assert gradients[1] == near(1.0, 1.0)  # anchor


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("broken", [-1.5, math.nan, math.inf, -math.inf, 0.5])
def test_alpha_one_is_grpo_to_the_bit(form: ClipGradient, broken: float) -> None:
    generator = torch.Generator().manual_seed(0)
    s, old, teacher = (-3 * torch.rand(6, 9, generator=generator) for _ in range(3))  # float32
    teacher[2, 3:6] = broken
    advantages = torch.tensor([1.3, -0.7, 0.0, 2.0, -1.0, 0.4])
    mask = torch.rand(6, 9, generator=generator) < 0.8
    results = []
    for method in (GRPO(), RLAD(alpha=1.0, teacher_clip_gradient=form)):
        student = s.clone().requires_grad_()
        objective = objective_terms(method, token_signals(student, old, teacher, advantages, mask)).objective
        results.append((objective.detach(), torch.autograd.grad(objective.sum(), student)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(anchor_logps(old, teacher, 1.0, 1.0), old)


def test_alpha_zero_compares_with_the_teacher_alone() -> None:
    # r = S/T = exp(-1.0 + 1.2) = exp(.2) = 1.2214, whatever old is; A = 1: not clipped, gradient r
    for old in (row(-1.0), row(-7.0)):
        values, gradients = run(RLAD(alpha=0.0), row(-1.0), old, row(-1.2), 1.0)
        assert values == near(math.exp(0.2))
        assert gradients == near(math.exp(0.2))


def test_first_step_ratio_is_not_one() -> None:
    # S = old: r = (S/T)^.5. Gaps .4 and -.6: r = exp(.2) = 1.2214 and exp(-.3) = .7408; value and gradient r A
    values, gradients = run(RLAD(), row(-1.0, -1.0), row(-1.0, -1.0), row(-1.4, -0.4), 2.0)
    assert values == near(2 * math.exp(0.2), 2 * math.exp(-0.3))
    assert gradients == near(2 * math.exp(0.2), 2 * math.exp(-0.3))


def test_first_step_can_skip_old_logps() -> None:
    s, teacher = row(-1.0, -0.2, -2.0), row(-1.4, -0.9, -0.4)
    assert run(RLAD(), s, None, teacher, 1.5) == run(RLAD(), s, s, teacher, 1.5)


def test_positive_advantage_stops_above_0_494_nats() -> None:
    # clipped when .5 gap > ln 1.28 = .24686, gap > .49372. Teacher at -2, S at -2 + gap.
    values, gradients = run(RLAD(), row(-2 + 0.4937, -2 + 0.4938), None, row(-2.0, -2.0), 1.0)
    assert gradients == near(math.exp(0.5 * 0.4937), 0.0)
    assert values == near(math.exp(0.5 * 0.4937), 1.28)
    # A token the teacher prefers (gap -1.5) is never stopped: clamped to -1, r = exp(-.5) = .607 < 1 - .2, yet min
    # takes r A = .607 over .8. Literal clamp: gradient alpha r = .303. It is a smaller step than GRPO's 1.
    values, gradients = run(RLAD(), row(-2.0), None, row(-0.5), 1.0)
    assert values == near(math.exp(-0.5))
    assert gradients == near(0.5 * math.exp(-0.5))


def test_negative_advantage_stops_below_minus_0_446_nats() -> None:
    # clipped when .5 gap < ln .8 = -.22314, gap < -.44629.
    values, gradients = run(RLAD(), row(-2 - 0.4462, -2 - 0.4463), None, row(-2.0, -2.0), -1.0)
    assert gradients == near(-math.exp(-0.5 * 0.4462), 0.0)
    assert values == near(-math.exp(-0.5 * 0.4462), -0.8)


def test_teacher_preference_moves_the_upper_clip() -> None:
    # Upper clip where .5 (S - old) + .5 (S - T) = ln 1.28: S = .5 (old + T) + .24686. With old = -1:
    # T = -1.0 stops S at -.75314; T = -.8 (prefers the token) at -.65314; T = -1.2 (dislikes it) already at -.85314.
    for teacher, stop in ((-1.0, -0.75314), (-0.8, -0.65314), (-1.2, -0.85314)):
        _, gradients = run(RLAD(), row(stop - 1e-4, stop + 1e-4), row(-1.0, -1.0), row(teacher, teacher), 1.0)
        assert gradients[0] > 0
        assert gradients[1] == 0
    # Negative advantage, the mirror image: lower clip at S = .5 (old + T) + ln .8 = .5 (old + T) - .22314.
    for teacher, stop in ((-1.0, -1.22314), (-0.8, -1.12314), (-1.2, -1.32314)):
        _, gradients = run(RLAD(), row(stop + 1e-4, stop - 1e-4), row(-1.0, -1.0), row(teacher, teacher), -1.0)
        assert gradients[0] < 0
        assert gradients[1] == 0


def test_zero_advantage_moves_nothing() -> None:
    for alpha in (0.0, 0.5, 1.0):
        values, gradients = run(RLAD(alpha=alpha), row(-0.1, -3.0), row(-0.5, -2.0), row(-40.0, -0.01), 0.0)
        assert values == [0, 0]
        assert gradients == [0, 0]


def test_teacher_never_sets_the_sign() -> None:
    gaps = torch.linspace(-6, 6, 241, dtype=torch.float64).unsqueeze(0)
    teacher = torch.full_like(gaps, -7.0)
    for method in (RLAD(), RLAD(teacher_clip_gradient="anchor"), RLAD(teacher_clip=None)):
        for advantage in (1.0, -1.0):
            _, gradients = run(method, teacher + gaps, None, teacher, advantage)
            assert all(g * advantage >= 0 for g in gradients)
            assert any(g != 0 for g in gradients)


def test_clamp_never_decides_the_clip_at_alpha_half() -> None:
    # At the clamp (|gap| = 1) r = exp(.5) = 1.649 > 1.28 and exp(-.5) = .607 < .8: what the clamp changes was beyond
    # the clip bound already, on either side.
    gaps = torch.linspace(-6, 6, 1201, dtype=torch.float64).unsqueeze(0)
    clamped = rlad_log_ratio(gaps - 7, gaps - 7, torch.full_like(gaps, -7.0), 0.5, 1.0)
    free = rlad_log_ratio(gaps - 7, gaps - 7, torch.full_like(gaps, -7.0), 0.5, None)
    assert not torch.allclose(clamped, free)
    for advantage in (1.0, -1.0):
        low, high = clip_branches(clamped, torch.tensor([advantage]), 0.2, 0.28)
        low_free, high_free = clip_branches(free, torch.tensor([advantage]), 0.2, 0.28)
        assert torch.equal(low, low_free)
        assert torch.equal(high, high_free)
        assert (low | high).any()


def test_where_both_are_sure_and_disagree_only_the_teachers_direction_is_left() -> None:
    # S - T = 15 and -15, clamped to 1 and -1: r = e^.5 = 1.649 and e^-.5 = .607; of a gradient alpha = .5 is left.
    student, teacher = row(-0.001, -15.0), row(-15.001, 0.0)
    # A = 1: 1.649 is above 1.28, clipped; .607 is not below .8 on that side: .5 * .607
    assert run(RLAD(), student, None, teacher, 1.0)[1] == near(0.0, 0.5 * math.exp(-0.5))
    # A = -1: -1.649 is the smaller, nothing stops it: -.5 * 1.649; .607 is below .8, clipped
    assert run(RLAD(), student, None, teacher, -1.0)[1] == near(-0.5 * math.exp(0.5), 0.0)


def test_nothing_is_clipped_on_the_first_step_at_alpha_0_9() -> None:
    # r = exp(.1 gap) with |gap| <= 1: between .9048 and 1.1052, inside [.8, 1.28]. Without the clamp it can be.
    gaps = torch.linspace(-6, 6, 241, dtype=torch.float64).unsqueeze(0)
    for clip, expected in ((1.0, False), (None, True)):
        log_ratio = rlad_log_ratio(gaps - 7, gaps - 7, torch.full_like(gaps, -7.0), 0.9, clip)
        clipped = [torch.stack(clip_branches(log_ratio, torch.tensor([a]), 0.2, 0.28)).any() for a in (1.0, -1.0)]
        assert bool(any(clipped)) is expected


def test_anchor_is_the_denominator_without_a_clamp() -> None:
    # .5 * -2.5 + .5 * -1.5 = -2.0; .9 * -2.5 + .1 * -1.5 = -2.4. It is more than a distribution's share: no norm.
    assert anchor_logps(row(-2.5), row(-1.5), 0.5, None)[0].tolist() == near(-2.0)
    assert anchor_logps(row(-2.5), row(-1.5), 0.9, None)[0].tolist() == near(-2.4)
    s, old, teacher = row(-1.0, -0.3, -4.0), row(-2.5, -0.2, -1.0), row(-1.5, -3.0, -0.5)
    log_ratio = rlad_log_ratio(s, old, teacher, 0.3, None)
    torch.testing.assert_close(s - anchor_logps(old, teacher, 0.3, None), log_ratio, rtol=0, atol=1e-12)


def test_anchor_with_a_clamp_is_a_third_thing() -> None:
    s, old, teacher = row(-1.0, -1.0), row(-2.5, -1.0), row(-0.5, -4.0)
    # token 1: T - old = 2.0, clamped to 1: anchor = -2.5 + .5 = -2.0, log r = 1.0. Clamping S - T = -.5 instead does
    # nothing: .5 * 1.5 + .5 * -.5 = .5. They differ.
    # token 2, S = old: T - old = -3, clamped to -1: anchor = -1.5, log r = .5. S - T = 3, clamped to 1: .5 * 1.
    log_anchor = anchor_logps(old, teacher, 0.5, 1.0)
    assert (s - log_anchor)[0].tolist() == near(1.0, 0.5)
    assert rlad_log_ratio(s, old, teacher, 0.5, 1.0, "anchor")[0].tolist() == near(0.5, 0.5)


def test_anchor_carries_no_gradient() -> None:
    s, old, teacher = (row(value).requires_grad_() for value in (-1.0, -1.2, -1.6))
    for form in FORMS:
        log_ratio = rlad_log_ratio(s, old, teacher, 0.5, 1.0, form)
        gradients = torch.autograd.grad(log_ratio.sum(), (s, old, teacher), allow_unused=True)
        assert [gradient is None for gradient in gradients] == [False, True, True]
    assert not anchor_logps(old, teacher, 0.5, 1.0).requires_grad


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 0.5, 1e30])
@pytest.mark.parametrize("clip", [1.0, None])
def test_broken_teacher_value_leaves_the_grpo_ratio(broken: float, clip: float | None) -> None:
    # -1.0 + 1.3 = .3 with its full gradient 1; the sound neighbour is .5 * .3 + .5 (-1.0 + 1.2) = .25
    for form in FORMS:
        s = row(-1.0, -1.0).requires_grad_()
        log_ratio = rlad_log_ratio(s, row(-1.3, -1.3), row(broken, -1.2), 0.5, clip, form)
        assert log_ratio[0].tolist() == near(0.3, 0.25)
        assert torch.autograd.grad(log_ratio.sum(), s)[0][0].tolist() == near(1.0, 1.0)
    # The anchor there is the old student; its neighbour .5 * -1.3 + .5 * -1.2.
    assert anchor_logps(row(-1.3, -1.3), row(broken, -1.2), 0.5, clip)[0].tolist() == near(-1.3, -1.25)


def test_rounding_above_zero_is_not_broken() -> None:
    # 5e-5 is within POSITIVE_TOLERANCE: .5 * 0 + .5 (-.5 - 5e-5)
    assert rlad_log_ratio(row(-0.5), row(-0.5), row(5e-5), 0.5, 1.0)[0].tolist() == near(-0.250025)


def test_clamped_tokens_are_reported() -> None:
    s, teacher = row(-2.0, -2.0, -2.0, -2.0), row(-3.1, -2.9, -0.5, math.nan)  # gaps 1.1, .9, -1.5, broken
    mask = torch.ones(1, 4, dtype=torch.bool)
    signals = token_signals(s, None, teacher, torch.ones(1), mask)
    assert objective_terms(RLAD(), signals).clamped[0].tolist() == [True, False, True, False]
    assert objective_terms(RLAD(teacher_clip=1.2), signals).clamped[0].tolist() == [False, False, True, False]
    # A gap of exactly the clamp keeps its whole gradient, and is not clamped: -2 + 3.5.
    assert objective_terms(RLAD(teacher_clip=1.5), signals).clamped[0].tolist() == [False] * 4
    assert not objective_terms(RLAD(teacher_clip=None), signals).clamped.any()
    assert not objective_terms(GRPO(), signals).clamped.any()


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 1.5},
        {"alpha": -0.1},
        {"alpha": math.nan},
        {"teacher_clip": 0.0},
        {"teacher_clip": -1.0},
        {"teacher_clip_gradient": "none"},
    ],
)
def test_bad_parameters_are_refused(options: dict[str, object]) -> None:
    name = next(iter(options))
    with pytest.raises(ValueError, match=name):
        RLAD(**options)  # type: ignore[arg-type]
    arguments = {"alpha": 0.5, "teacher_clip": 1.0, **options}
    with pytest.raises(ValueError, match=name):
        rlad_log_ratio(row(-1.0), row(-1.0), row(-1.0), **arguments)  # type: ignore[arg-type]
