"""The mask and the broken teacher values: decided once, before any arithmetic."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlad.objectives import (
    GRPO,
    KDRL,
    METHODS,
    OPD,
    RLAD,
    Method,
    anchor_logps,
    objective_terms,
    rlad_log_ratio,
    sequence_mean,
    token_signals,
)
from rlad.objectives.ratios import ClipGradient

METHOD_VARIANTS: list[Method] = [
    GRPO(),
    RLAD(),
    RLAD(teacher_clip=None),
    RLAD(teacher_clip_gradient="anchor"),
    KDRL(),
    KDRL(form="reward", coefficient=0.2),
    OPD(),
]
ARITHMETIC = {"add", "sub", "mul", "div", "neg", "exp", "pow", "clamp", "minimum", "rsub"}


class FiniteArithmetic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails as soon as an arithmetic operation, forward or backward, yields a NaN or an infinite value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ARITHMETIC and result.is_floating_point():
            assert torch.isfinite(result).all(), func
        return result


def test_tokens_stay_in_their_places() -> None:
    s = torch.tensor([[-1.0, -2.0, -3.0]])
    old, teacher, ref = s - 0.1, s - 0.2, s - 0.3
    advantages = torch.tensor([0.5])
    correct = torch.tensor([True])
    signals = token_signals(s, old, teacher, advantages, torch.tensor([[1, 1, 0]]), ref, correct)
    assert signals.teacher_logps is not None and signals.ref_logps is not None
    assert signals.logps.tolist() == [[-1.0, -2.0, 0.0]]
    assert signals.old_logps[:, :2].equal(old[:, :2])
    assert signals.teacher_logps[:, :2].equal(teacher[:, :2])
    assert signals.ref_logps[:, :2].equal(ref[:, :2])
    for field in (signals.old_logps, signals.teacher_logps, signals.ref_logps):
        assert field[0, 2] == 0
    assert signals.advantages.tolist() == [[0.5, 0.5, 0.0]]
    assert signals.correct is correct
    assert signals.mask.dtype == torch.bool
    assert signals.token_count == 2


def test_only_logps_carry_a_gradient() -> None:
    leaves = [torch.tensor([[-1.0, -2.0]], requires_grad=True) for _ in range(5)]
    s, old, teacher, advantages, ref = leaves
    signals = token_signals(s, old, teacher, advantages, torch.ones(1, 2), ref)
    assert signals.logps.requires_grad
    assert signals.teacher_logps is not None and signals.ref_logps is not None
    for field in (signals.old_logps, signals.teacher_logps, signals.advantages, signals.ref_logps):
        assert not field.requires_grad


def test_missing_old_logps_are_the_detached_current_ones() -> None:
    s = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    signals = token_signals(s, None, None, torch.ones(1), torch.ones(1, 2))
    assert torch.equal(signals.old_logps, s)
    assert not signals.old_logps.requires_grad


def test_broken_teacher_values_are_counted_where_they_count() -> None:
    teacher = torch.tensor([[-1.0, math.nan, math.inf, -math.inf, 0.2, 1e-6, math.nan, math.nan]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]])
    s = torch.full((1, 8), -1.5)
    signals = token_signals(s, None, teacher, torch.ones(1), mask)
    assert signals.broken_teacher == 4  # not the sound -1, not the rounding 1e-6, not the padding
    assert signals.token_count == 6
    assert signals.teacher_ok.tolist() == [[True, False, False, False, False, True, True, True]]
    assert signals.teacher_logps is not None
    assert signals.teacher_logps[0].tolist() == pytest.approx([-1, -1.5, -1.5, -1.5, -1.5, 1e-6, 0, 0])
    assert token_signals(s, None, None, torch.ones(1), mask).broken_teacher == 0
    # A percent of a nat above 0 is no rounding; -9999 is how vLLM writes -inf, -3e38 how float32 can.
    doubtful = torch.tensor([[9e-5, 0.005, -8999.0, -9999.0, -3e38]])
    signals = token_signals(s[:, :5], None, doubtful, torch.ones(1), torch.ones(1, 5))
    assert signals.teacher_ok.tolist() == [[True, False, True, False, False]]


@pytest.mark.parametrize("method", METHOD_VARIANTS, ids=repr)
def test_nan_in_padding_survives_nowhere(method: Method) -> None:
    nan = math.nan
    s = torch.tensor([[-1.0, nan], [-0.5, -0.7]], requires_grad=True)
    old = torch.tensor([[-1.1, nan], [-0.4, -0.9]])
    teacher = torch.tensor([[-0.8, nan], [-1.4, -0.3]])
    advantages = torch.tensor([[1.0, nan], [-1.0, -1.0]])
    mask = torch.tensor([[True, False], [True, True]])
    terms = objective_terms(method, token_signals(s, old, teacher, advantages, mask))
    for values in (terms.objective, terms.log_ratio, terms.advantage, terms.penalty):
        assert values is None or (torch.isfinite(values).all() and values[0, 1] == 0)
    assert not terms.clamped[0, 1] and not terms.clipped_low[0, 1] and not terms.clipped_high[0, 1]
    (gradient,) = torch.autograd.grad(sequence_mean(terms.objective, mask, 2), s)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 1] == 0 and gradient[0, 0] != 0


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 0.5])
@pytest.mark.parametrize("method", METHOD_VARIANTS, ids=repr)
def test_broken_teacher_gives_finite_values_and_gradients(method: Method, broken: float) -> None:
    s = torch.tensor([[-1.0, -1.0, -9.0]], requires_grad=True)
    teacher = torch.tensor([[broken, -2.0, broken]])
    signals = token_signals(s, s.detach() - 0.05, teacher, torch.tensor([1.0]), torch.ones(1, 3))
    terms = objective_terms(method, signals)
    (gradient,) = torch.autograd.grad(terms.objective.sum(), s)
    assert torch.isfinite(terms.objective).all() and torch.isfinite(terms.log_ratio).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_broken_teacher_is_replaced_before_any_arithmetic(broken: float, clip: float | None) -> None:
    s, old = torch.tensor([[-1.0, -1.0]], requires_grad=True), torch.tensor([[-1.2, -0.9]])
    teacher, mask = torch.tensor([[broken, -2.0]]), torch.ones(1, 2)
    with FiniteArithmetic():  # type: ignore[no-untyped-call]
        for method in METHOD_VARIANTS:
            signals = token_signals(s, old, teacher, torch.ones(1), mask)
            torch.autograd.grad(objective_terms(method, signals).objective.sum(), s)
        for form in get_args(ClipGradient):
            log_ratio = rlad_log_ratio(s, old, teacher, 0.5, clip, form)
            torch.autograd.grad(log_ratio.sum(), s)
        anchor_logps(old, teacher, 0.5, clip)


def test_arguments_are_not_changed() -> None:
    s, old, teacher = (torch.tensor([[-1.0, math.nan, -2.0]]) for _ in range(3))
    advantages, mask = torch.tensor([1.0]), torch.tensor([[1, 0, 1]])
    arguments = [s, old, teacher, advantages, mask]
    copies = [argument.clone() for argument in arguments]
    for method in METHODS.values():
        known = {"correct": torch.tensor([False]), "group_wrong": torch.tensor([True])}
        objective_terms(method().at(0.5), token_signals(s, old, teacher, advantages, mask, **known))
    for argument, copy in zip(arguments, copies, strict=True):
        torch.testing.assert_close(argument, copy, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "name, shape",
    [("old_logps", (2, 2)), ("teacher_logps", (2, 4)), ("mask", (2,)), ("advantages", (3,)), ("ref_logps", (1, 3))],
)
def test_wrong_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    arguments = {field: torch.full((2, 3), -1.0) for field in ("logps", "old_logps", "teacher_logps", "ref_logps")}
    arguments |= {"mask": torch.ones(2, 3), "advantages": torch.ones(2), name: torch.ones(shape)}
    with pytest.raises(ValueError, match=f"{name} has shape"):
        token_signals(**arguments)
    with pytest.raises(ValueError, match="logps has shape"):
        token_signals(torch.zeros(3), None, None, torch.ones(3), torch.ones(3))


def test_what_is_right_is_bool_and_one_for_each_rollout() -> None:
    s, rest = torch.full((2, 3), -1.0), (torch.ones(2), torch.ones(2, 3))
    signals = token_signals(s, None, None, *rest, correct=torch.tensor([1, 0]), group_wrong=torch.tensor([0.0, 1.0]))
    assert signals.correct is not None and signals.correct.tolist() == [True, False]
    assert signals.group_wrong is not None and signals.group_wrong.tolist() == [False, True]
    for name in ("correct", "group_wrong"):
        with pytest.raises(ValueError, match=f"{name} has shape"):
            token_signals(s, None, None, *rest, **{name: torch.ones(3)})
