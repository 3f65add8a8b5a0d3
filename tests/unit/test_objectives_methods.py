"""The surrogate and the rows of the table beside RLAD, in closed form, and what they refuse."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlad.objectives import (
    GRPO,
    HDPO,
    KDRL,
    METHODS,
    OPD,
    RLAD,
    RLSD,
    SRPO,
    KDRLAnnealed,
    KDRLMask,
    Method,
    ObjectiveTerms,
    OPDThenGRPO,
    RLADSchedule,
    all_wrong,
    clip_branches,
    clipped_surrogate,
    objective_terms,
    token_signals,
)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def run(
    method: Method,
    s: Tensor,
    old: Tensor,
    teacher: Tensor | None,
    advantage: float,
    right: bool | None = None,
    group_wrong: bool | None = None,
) -> tuple[ObjectiveTerms, list[float]]:
    """The terms of one rollout and the gradient of its summed objective by log S."""
    student = s.clone().requires_grad_()
    mask = torch.ones_like(s, dtype=torch.bool)
    correct, lost = (None if each is None else torch.tensor([each]) for each in (right, group_wrong))
    advantages = torch.tensor([advantage], dtype=s.dtype)
    signals = token_signals(student, old, teacher, advantages, mask, correct=correct, group_wrong=lost)
    terms = objective_terms(method, signals)
    (gradient,) = torch.autograd.grad(terms.objective.sum(), student)
    return terms, gradient[0].tolist()


def near(*values: float) -> object:
    return pytest.approx(list(values), rel=1e-12, abs=1e-12)


def test_surrogate_takes_the_smaller_branch() -> None:
    # rho = .5, 1, 1.5 at clip .2 / .28
    log_ratio = torch.tensor([[0.5, 1.0, 1.5]], dtype=torch.float64).log().requires_grad_()
    # A = 2: min(1, 1.6), min(2, 2), min(3, 2.56); gradient rho A where not clipped
    objective = clipped_surrogate(log_ratio, torch.tensor([2.0]), 0.2, 0.28)
    assert objective[0].tolist() == near(1.0, 2.0, 2.56)
    assert torch.autograd.grad(objective.sum(), log_ratio)[0][0].tolist() == near(1.0, 2.0, 0.0)
    # A = -2: min(-1, -1.6), min(-2, -2), min(-3, -2.56)
    objective = clipped_surrogate(log_ratio, torch.tensor([-2.0]), 0.2, 0.28)
    assert objective[0].tolist() == near(-1.6, -2.0, -3.0)
    assert torch.autograd.grad(objective.sum(), log_ratio)[0][0].tolist() == near(0.0, -2.0, -3.0)


def test_clip_branches_name_the_clipped_side() -> None:
    log_ratio = torch.tensor([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5], [0.5, 1.0, 1.5]], dtype=torch.float64).log()
    low, high = clip_branches(log_ratio, torch.tensor([2.0, -2.0, 0.0]), 0.2, 0.28)
    assert low.tolist() == [[False, False, False], [True, False, False], [False, False, False]]
    assert high.tolist() == [[False, False, True], [False, False, False], [False, False, False]]


def test_advantages_per_rollout_or_per_token() -> None:
    # Two rollouts of two tokens, so that (B,) could be mistaken for (T,): rho = 1, the objective is A itself.
    zeros = torch.zeros(2, 2)
    assert clipped_surrogate(zeros, torch.tensor([1.0, -3.0]), 0.2, 0.28).tolist() == [[1, 1], [-3, -3]]
    per_token = torch.tensor([[1.0, 2.0], [-3.0, -4.0]])
    assert torch.equal(clipped_surrogate(zeros, per_token, 0.2, 0.28), per_token)


def test_huge_ratio_has_no_nan_gradient() -> None:
    # exp(200) overflows float32; the token is clipped (A > 0), so value 1.28 and gradient 0
    log_ratio = torch.tensor([[200.0, -200.0]], requires_grad=True)
    objective = clipped_surrogate(log_ratio, torch.tensor([1.0]), 0.2, 0.28)
    gradient = torch.autograd.grad(objective.sum(), log_ratio)[0]
    assert objective[0].tolist() == pytest.approx([1.28, 0.0])
    assert gradient[0].tolist() == [0, 0]
    negative = clipped_surrogate(log_ratio, torch.tensor([-1.0]), 0.2, 0.28)
    assert torch.isfinite(negative).all()
    assert torch.isfinite(torch.autograd.grad(negative.sum(), log_ratio)[0]).all()


def test_grpo_first_step_is_the_plain_policy_gradient() -> None:
    # S = old: rho = 1, objective A, gradient A
    terms, gradients = run(GRPO(), row(-1.0, -2.0), row(-1.0, -2.0), None, -1.5)
    assert terms.objective[0].tolist() == near(-1.5, -1.5)
    assert gradients == near(-1.5, -1.5)


def test_grpo_second_step_is_clipped() -> None:
    # rho = exp(.1) = 1.105 and exp(.3) = 1.350 > 1.28; A = 1
    terms, gradients = run(GRPO(), row(-0.9, -0.7), row(-1.0, -1.0), None, 1.0)
    assert terms.objective[0].tolist() == near(math.exp(0.1), 1.28)
    assert gradients == near(math.exp(0.1), 0.0)
    assert terms.clipped_high[0].tolist() == [False, True]
    assert not terms.clipped_low.any()


def test_kdrl_k2_is_a_penalty_beside_grpo() -> None:
    # gap = -1 + 3 = 2: penalty 2e-3 * .5 * 4 = .004, its gradient 2e-3 * 2 = .004; S = old, A = 1
    terms, gradients = run(KDRL(), row(-1.0), row(-1.0), row(-3.0), 1.0)
    assert terms.objective[0].tolist() == near(1 - 0.004)
    assert gradients == near(1 - 0.004)
    assert terms.penalty is not None and terms.penalty[0].tolist() == near(0.004)
    assert terms.advantage[0].tolist() == near(1.0)
    # It acts where the reward says nothing (A = 0), and without the ratio in front: S off old changes nothing.
    _, gradients = run(KDRL(), row(-1.0), row(-1.7), row(-3.0), 0.0)
    assert gradients == near(-0.004)


def test_kdrl_reward_adds_a_detached_log_ratio_to_the_advantage() -> None:
    # d = log T - log S = -3 + 1 = -2: A = 1 - .1 * 2 = .8. rho = exp(-1 + 1.1) = exp(.1). Detached: gradient rho A
    terms, gradients = run(KDRL(form="reward", coefficient=0.1), row(-1.0), row(-1.1), row(-3.0), 1.0)
    assert terms.advantage[0].tolist() == near(0.8)
    assert terms.objective[0].tolist() == near(0.8 * math.exp(0.1))
    assert gradients == near(0.8 * math.exp(0.1))
    assert terms.penalty is None
    assert not terms.advantage.requires_grad


def test_opd_is_driven_by_the_teacher_alone() -> None:
    # d = .5 and -.7, whatever the reward's advantage; S = old: objective d, gradient d
    terms, gradients = run(OPD(), row(-1.0, -1.0), row(-1.0, -1.0), row(-0.5, -1.7), 123.0)
    assert terms.objective[0].tolist() == near(0.5, -0.7)
    assert gradients == near(0.5, -0.7)
    # Second step, rho = exp(.3) = 1.35: clipped up for d = .5 (1.28 * .5), not for d = -.7
    terms, gradients = run(OPD(), row(-1.0, -1.0), row(-1.3, -1.3), row(-0.5, -1.7), 123.0)
    assert terms.objective[0].tolist() == near(0.64, -0.7 * math.exp(0.3))
    assert gradients == near(0.0, -0.7 * math.exp(0.3))


def test_kdrl_mask_teaches_wrong_rollouts_only() -> None:
    # d = -3 + 1 = -2, beta .1: A = -.5 - .2 = -.7 if wrong, -.5 if right. rho = exp(-1 + 1.1) = exp(.1)
    method = KDRLMask(coefficient=0.1)
    terms, gradients = run(method, row(-1.0), row(-1.1), row(-3.0), -0.5, right=False)
    assert terms.advantage[0].tolist() == near(-0.7)
    assert gradients == near(-0.7 * math.exp(0.1))
    terms, gradients = run(method, row(-1.0), row(-1.1), row(-3.0), -0.5, right=True)
    assert terms.advantage[0].tolist() == near(-0.5)
    assert gradients == near(-0.5 * math.exp(0.1))


def test_srpo_takes_the_reward_or_the_teacher() -> None:
    # d = .5 and -.7 where the rollout is wrong, whatever A; A = 2 where it is right. S = old: the gradient is A or d
    _, gradients = run(SRPO(), row(-1.0, -1.0), row(-1.0, -1.0), row(-0.5, -1.7), 2.0, right=False)
    assert gradients == near(0.5, -0.7)
    _, gradients = run(SRPO(), row(-1.0, -1.0), row(-1.0, -1.0), row(-0.5, -1.7), 2.0, right=True)
    assert gradients == near(2.0, 2.0)


def test_hdpo_teaches_groups_that_are_all_wrong() -> None:
    # A = 0, d = -2, beta .1: -.2 if the whole group is wrong, and nothing else; a wrong rollout in another group: 0
    method = HDPO(coefficient=0.1)
    _, gradients = run(method, row(-1.0), row(-1.0), row(-3.0), 0.0, right=False, group_wrong=True)
    assert gradients == near(-0.2)
    _, gradients = run(method, row(-1.0), row(-1.0), row(-3.0), 0.0, right=False, group_wrong=False)
    assert gradients == [0]
    # All wrong and yet of unequal rewards (a format, say): A + beta d = 1 - .2
    _, gradients = run(method, row(-1.0), row(-1.0), row(-3.0), 1.0, right=False, group_wrong=True)
    assert gradients == near(0.8)


def test_rlsd_weighs_the_advantage_by_the_teacher() -> None:
    # d = ln 1.1 and ln .5, l = .5, e = .2. A = 2: weights 1.1 and .5 -> .8, so 2 (.5 + .5 * 1.1) = 2.1 and 1.8
    s, teacher = row(-1.0, -1.0), row(-1 + math.log(1.1), -1 + math.log(0.5))
    terms, gradients = run(RLSD(), s, s, teacher, 2.0)
    assert terms.advantage[0].tolist() == gradients == near(2.1, 1.8)
    # A = -2: exp(-d) = 1/1.1 and 2 -> 1.2: -2 (.5 + .5 / 1.1) = -21/11 and -2 (.5 + .6) = -2.2
    _, gradients = run(RLSD(), s, s, teacher, -2.0)
    assert gradients == near(-21 / 11, -2.2)
    # l = 1, e = 1: the weight alone, held in 0 to 2: a teacher 900 nats below (A < 0) or above all bounds -> 2
    wide = RLSD(mix=1.0, width=1.0)
    assert run(wide, row(-1.0), row(-1.0), row(-901.0), -1.0)[1] == near(-2.0)
    assert run(wide, row(-1.0), row(-1.0), row(-1 + math.log(0.25)), 3.0)[1] == near(0.75)


@pytest.mark.parametrize("advantage", [-1.5, 0.0, 0.7])
def test_where_the_teacher_has_no_say_the_methods_are_grpo(advantage: float) -> None:
    """To the bit, for a teacher that is far away."""
    s, old, teacher = row(-1.0, -0.7), row(-1.1, -1.0), row(-3.0, -0.1)
    grpo, expected = run(GRPO(), s, old, None, advantage)
    silent: list[tuple[Method, dict[str, bool]]] = [
        (KDRLMask(coefficient=5.0), {"right": True}),
        (SRPO(), {"right": True}),
        (HDPO(coefficient=5.0), {"right": False, "group_wrong": False}),
        (RLSD(mix=0.0), {}),
        (RLADSchedule().at(1.0), {}),
        (KDRLAnnealed(end=0.0).at(1.0), {}),
        (OPDThenGRPO().at(1.0), {}),
    ]
    for method, known in silent:
        terms, gradients = run(method, s, old, teacher, advantage, **known)
        assert torch.equal(terms.objective, grpo.objective) and gradients == expected, method


def test_where_every_rollout_is_wrong_the_methods_are_kdrl_or_opd() -> None:
    s, old, teacher = row(-1.0, -0.7), row(-1.1, -1.0), row(-3.0, -0.1)
    for method, same, known in (
        (KDRLMask(coefficient=0.3), KDRL(coefficient=0.3, form="reward"), {"right": False}),
        (SRPO(), OPD(), {"right": False}),
        (HDPO(coefficient=0.3), KDRL(coefficient=0.3, form="reward"), {"right": False, "group_wrong": True}),
    ):
        terms, gradients = run(method, s, old, teacher, 0.4, **known)
        expected, same_gradients = run(same, s, old, teacher, 0.4)
        assert torch.equal(terms.objective, expected.objective) and gradients == same_gradients


def test_all_wrong_looks_at_whole_groups() -> None:
    correct = torch.tensor([0, 0, 0, 1, 1, 1])
    assert all_wrong(correct, 2).tolist() == [True, True, False, False, False, False]
    assert all_wrong(correct.bool(), 3).tolist() == [True, True, True, False, False, False]
    for wrong, size in ((correct, 4), (correct, 0), (correct.reshape(2, 3), 3)):
        with pytest.raises(ValueError, match="correct has shape"):
            all_wrong(wrong, size)


def test_rlad_schedule_moves_alpha() -> None:
    # From .2 to 1: linear .2 + .8 p; cosine .2 + .8 (1 - cos(pi p)) / 2, at p = 1/3: .2 + .8 / 4; step at the switch
    def alphas(shape: str, *progress: float) -> list[float]:
        method = RLADSchedule(start=0.2, end=1.0, shape=shape, switch=0.25, teacher_clip=0.5, clip_low=0.1)  # type: ignore[arg-type]
        found = [method.at(each) for each in progress]
        assert all(isinstance(each, RLAD) and each.teacher_clip == 0.5 and each.clip_low == 0.1 for each in found)
        return [each.alpha for each in found if isinstance(each, RLAD)]

    assert alphas("linear", 0, 0.25, 1) == near(0.2, 0.4, 1.0)
    assert alphas("cosine", 0, 1 / 3, 0.5, 1) == near(0.2, 0.4, 0.6, 1.0)
    assert alphas("step", 0, 0.2499, 0.25, 1) == [0.2, 0.2, 1.0, 1.0]
    assert alphas("constant", 0, 0.5, 1) == [0.2, 0.2, 0.2]
    anchor = RLADSchedule(teacher_clip_gradient="anchor", clip_high=0.4).at(0.0)
    assert anchor == RLAD(teacher_clip_gradient="anchor", clip_high=0.4)


def test_kdrl_annealed_lowers_the_coefficient() -> None:
    # .2 - .198 p at p = 0, .5, 1, in the reward form
    found = [KDRLAnnealed(clip_high=0.4).at(progress) for progress in (0.0, 0.5, 1.0)]
    assert found == [KDRL(coefficient=beta, form="reward", clip_high=0.4) for beta in (0.2, 0.101, 0.002)]
    step = KDRLAnnealed(shape="step", switch=0.7, clip_low=0.1)
    assert [step.at(progress) for progress in (0.6, 0.7)] == [
        KDRL(coefficient=beta, form="reward", clip_low=0.1) for beta in (0.2, 0.002)
    ]


def test_only_the_objective_carries_a_gradient() -> None:
    for method in (KDRL(coefficient=0.1), RLAD(), OPD()):
        student = row(-1.0).requires_grad_()
        signals = token_signals(student, row(-1.2), row(-2.0), torch.ones(1), torch.ones(1, 1))
        terms = objective_terms(method, signals)
        found = {name: part.requires_grad for name, part in vars(terms).items() if part is not None}
        assert [name for name, carries in found.items() if carries] == ["objective"]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 0.5])
def test_broken_teacher_value_has_no_distillation_term(broken: float) -> None:
    s, old, teacher = row(-1.0, -1.0), row(-1.1, -1.1), row(broken, -2.0)
    _, grpo = run(GRPO(), s, old, None, 1.0)
    for method in (KDRL(coefficient=0.1), KDRL(coefficient=0.1, form="reward"), RLAD()):
        terms, gradients = run(method, s, old, teacher, 1.0)
        assert gradients[0] == grpo[0]
        assert gradients[1] != grpo[1]
        assert torch.isfinite(terms.objective).all()
    for method in (KDRLMask(coefficient=0.1), HDPO(coefficient=0.1), RLSD()):
        _, gradients = run(method, s, old, teacher, 1.0, right=False, group_wrong=True)
        assert gradients[0] == grpo[0]
        assert gradients[1] != grpo[1]
    assert run(SRPO(), s, old, teacher, 1.0, right=False)[1][0] == 0
    terms, gradients = run(OPD(), s, old, teacher, 1.0)
    assert terms.objective[0, 0] == 0 and gradients[0] == 0
    assert gradients[1:] == near(-math.exp(0.1))  # the sound neighbour: d = -2 + 1, rho = exp(.1)


def test_opd_then_grpo_switches_once() -> None:
    method = OPDThenGRPO(switch=0.25, clip_low=0.1, clip_high=0.3)
    assert method.at(0.0) == method.at(0.2499) == OPD(clip_low=0.1, clip_high=0.3)
    assert method.at(0.25) == method.at(1.0) == GRPO(clip_low=0.1, clip_high=0.3)
    assert method.needs_teacher and not method.at(1.0).needs_teacher


def test_a_schedule_trains_nothing_itself() -> None:
    signals = token_signals(row(-1.0), None, row(-1.0), torch.ones(1), torch.ones(1, 1))
    for method in (OPDThenGRPO(), RLADSchedule(), KDRLAnnealed()):
        with pytest.raises(ValueError, match=rf"{method.name} is a schedule: take method.at\(progress\)"):
            objective_terms(method, signals)


def test_constant_methods_are_the_same_at_any_progress() -> None:
    for method in (GRPO(), RLAD(alpha=0.3), KDRL(form="reward"), OPD(), KDRLMask(), SRPO(), HDPO(), RLSD()):
        assert method.at(0.0) is method and method.at(1.0) is method


@pytest.mark.parametrize("progress", [-0.01, 1.01, math.nan])
@pytest.mark.parametrize("name", ["rlad", "opd-then-grpo", "rlad-schedule", "kdrl-annealed"])
def test_progress_outside_the_run_is_refused(name: str, progress: float) -> None:
    with pytest.raises(ValueError, match="progress"):
        METHODS[name]().at(progress)


def test_table_and_defaults_are_the_papers() -> None:
    assert list(METHODS) == [
        "grpo", "rlad", "rlad-schedule", "kdrl", "kdrl-mask", "kdrl-annealed", "opd", "opd-then-grpo",
        "srpo", "hdpo", "rlsd",
    ]  # fmt: skip
    assert all(name == method.name for name, method in METHODS.items())
    assert [name for name, method in METHODS.items() if not method.needs_teacher] == ["grpo"]
    assert [name for name, method in METHODS.items() if method.needs_correct] == ["kdrl-mask", "srpo", "hdpo"]
    clip = {"clip_low": 0.20, "clip_high": 0.28}
    assert dataclasses.asdict(GRPO()) == clip
    assert dataclasses.asdict(RLAD()) == {
        **clip, "alpha": 0.5, "teacher_clip": 1.0, "teacher_clip_gradient": "literal",
    }  # fmt: skip
    assert dataclasses.asdict(KDRL()) == {**clip, "coefficient": 2e-3, "form": "k2"}
    assert dataclasses.asdict(KDRLMask()) == {**clip, "coefficient": 2e-3}
    ends = {"start": 0.2, "end": 0.002, "shape": "linear", "switch": 0.5}
    assert dataclasses.asdict(KDRLAnnealed()) == {**clip, **ends}
    # Of these two the defaults are ours.
    assert dataclasses.asdict(HDPO()) == {**clip, "coefficient": 0.05}
    assert dataclasses.asdict(RLSD()) == {**clip, "mix": 0.5, "width": 0.2}


def test_kdrl_refuses_k1_and_k3_as_losses_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"zero expected gradient.*'reward'"):
        KDRL(form="k1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="forward KL"):
        KDRL(form="k3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no such form"):
        KDRL(form="jsd")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("options", [{"clip_low": 0.0}, {"clip_low": 1.1}, {"clip_high": 0.0}, {"clip_high": -0.2}])
def test_bad_clip_is_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        METHODS[name](**options)
    with pytest.raises(ValueError, match=next(iter(options))):
        clipped_surrogate(row(0.0), row(1.0), **{"clip_low": 0.2, "clip_high": 0.28, **options})


@pytest.mark.parametrize(
    "method, options",
    [
        (KDRL, {"coefficient": -1.0}),
        (KDRL, {"coefficient": math.inf}),
        (OPDThenGRPO, {"switch": 0.0}),
        (OPDThenGRPO, {"switch": 1.0}),
        (KDRLMask, {"coefficient": -1.0}),
        (HDPO, {"coefficient": math.nan}),
        (KDRLAnnealed, {"start": -1.0}),
        (KDRLAnnealed, {"end": math.inf}),
        (KDRLAnnealed, {"shape": "square"}),
        (KDRLAnnealed, {"switch": 1.0}),
        (RLADSchedule, {"shape": "square"}),
        (RLADSchedule, {"switch": 0.0}),
        (RLSD, {"mix": -0.1}),
        (RLSD, {"mix": 1.1}),
        (RLSD, {"width": 0.0}),
        (RLSD, {"width": 1.1}),
    ],
)
def test_bad_coefficient_or_switch_is_refused(method: type[Method], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        method(**options)


@pytest.mark.parametrize("options", [{"start": -0.1}, {"end": 1.1}, {"teacher_clip": 0.0}])
def test_a_bad_alpha_of_a_schedule_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"alpha is|teacher_clip is"):
        RLADSchedule(**options)  # type: ignore[arg-type]


def test_not_knowing_what_is_right_is_refused() -> None:
    signals = token_signals(row(-1.0), None, row(-1.0), torch.ones(1), torch.ones(1, 1))
    for method in (KDRLMask(), SRPO(), HDPO()):
        with pytest.raises(ValueError, match=f"{method.name} needs to know which rollouts are right"):
            objective_terms(method, signals)


def test_missing_teacher_is_refused() -> None:
    signals = token_signals(row(-1.0), None, None, torch.ones(1), torch.ones(1, 1), correct=torch.zeros(1))
    for method in (RLAD(), KDRL(), KDRL(form="reward"), OPD(), KDRLMask(), SRPO(), HDPO(), RLSD()):
        with pytest.raises(ValueError, match=f"{method.name} needs the teacher"):
            objective_terms(method, signals)
    assert torch.isfinite(objective_terms(GRPO(), signals).objective).all()
