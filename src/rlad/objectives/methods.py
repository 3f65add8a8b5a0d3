"""The table of methods. All are one clipped surrogate (surrogate.py); a row says what rho, A and the penalty are.

    method         rho                              A                    penalty  source
    grpo           r = S/old                        A                    -        RLAD Eq. 1
    rlad           r^alpha (S/T)^(1-alpha)          A                    -        RLAD Eq. 3-5 (arXiv 2602.22495)
    rlad-schedule  the same, alpha by progress      A                    -        ours
    kdrl, k2       r                                A                    beta k2  KDRL (arXiv 2506.02208), RLAD Eq. 2
    kdrl, reward   r                                A + beta d           -        KDRL (arXiv 2506.02208)
    kdrl-mask      r                                A + beta d if wrong  -        as in arXiv 2609.04108
    kdrl-annealed  r                                A + beta d           -        as there, beta by progress
    opd            r                                d                    -        as there
    opd-then-grpo  r                                d, then A            -        as there
    srpo           r                                A if right, else d   -        as there
    hdpo           r                                A + beta d if all of the group are wrong       as there
    rlsd           r                                A ((1 - l) + l clip(exp(sign(A) d), 1 +- e))   as there

S, old, T: the student now, the student that sampled, the teacher, each its probability of the sampled token;
d = log T - log S, detached, per token. A method is immutable; its defaults are its paper's where the paper has them.
HDPO (arXiv 2603.23871) and RLSD (arXiv 2604.03128) were proposed with the student itself, told more, as the teacher;
here, as in arXiv 2609.04108, the teacher is any model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .divergences import k1, k2
from .ratios import ClipGradient, check_trrd, grpo_log_ratio, rlad_log_ratio
from .schedules import Shape, check_shape, scheduled
from .signals import TokenSignals
from .surrogate import check_clip


@dataclass(frozen=True, kw_only=True)
class Method:
    """What the rows share: rho = S/old, the group advantage, no penalty, and the clip range of RLAD's experiments.

    Every method raises ValueError for bad parameters when it is made, and, where it needs the teacher or needs to know
    which rollouts are right, when the signals do not say.
    """

    name: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    needs_correct: ClassVar[bool] = False

    clip_low: float = 0.20
    clip_high: float = 0.28

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def at(self, progress: float) -> Method:
        """The method in force when the fraction `progress`, in [0, 1], of the training steps is done."""
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is {progress}: give the fraction of training steps done, in [0, 1]")
        return self

    def log_ratio(self, signals: TokenSignals) -> Tensor:
        """log rho, (B, T), nats."""
        return grpo_log_ratio(signals.logps, signals.old_logps)

    def advantage(self, signals: TokenSignals) -> Tensor:
        """A, (B, T), without a gradient."""
        return signals.advantages

    def penalty(self, signals: TokenSignals) -> Tensor | None:
        """What is subtracted from the surrogate, (B, T), or None."""
        return None

    def clamped(self, signals: TokenSignals) -> Tensor:
        """Where a clamp on log S - log T is active, (B, T) bool."""
        return torch.zeros_like(signals.mask)

    def _teacher(self, signals: TokenSignals) -> Tensor:
        if signals.teacher_logps is None:
            raise ValueError(
                f"{self.name} needs the teacher's log-probs: pass teacher_logps to token_signals, or use grpo"
            )
        return signals.teacher_logps

    def _distillation_advantage(self, signals: TokenSignals) -> Tensor:
        """d = log T - log S, detached: live in rho, a constant in A. 0 where the teacher's value is broken.

        As a per-token reward without reward-to-go its policy gradient is the reverse KL's at each prefix, not the
        reverse KL's of the whole sequence.
        """
        return -k1(signals.logps, self._teacher(signals)).detach()

    def _per_rollout(self, signals: TokenSignals, name: Literal["correct", "group_wrong"]) -> Tensor:
        """A field of the signals that is (B,) bool, as (B, 1)."""
        values: Tensor | None = getattr(signals, name)
        if values is None:
            raise ValueError(
                f"{self.name} needs to know which rollouts are right: pass {name} to token_signals, with a task whose "
                "scores say so, or use kdrl"
            )
        return values.unsqueeze(-1)


@dataclass(frozen=True, kw_only=True)
class _Schedule(Method):
    """A method that trains nothing itself: `at(progress)` says which method is in force."""

    def log_ratio(self, signals: TokenSignals) -> Tensor:
        raise ValueError(f"{self.name} is a schedule: take method.at(progress) and use what it returns")


@dataclass(frozen=True, kw_only=True)
class GRPO(Method):
    """rho = S/old, A = (r - mean)/std of the group (RLAD Eq. 1, without its reference KL, which the engine adds)."""

    name = "grpo"
    needs_teacher = False


@dataclass(frozen=True, kw_only=True)
class RLAD(Method):
    """rho = (S/old)^alpha (S/T)^(1-alpha), A as in GRPO (RLAD Eq. 3-5).

    The teacher decides how far a token may go, never in which direction: the sign is the reward's, and a token whose
    advantage is 0 does not move. alpha = 1 is GRPO to the bit (Eq. 3; one sentence of Section 4.1 says alpha = 0).

    alpha: the weight of the old student against the teacher in the anchor; the paper's .5, insensitive in .3 to .7.
    teacher_clip: log S - log T is clamped to +-this many nats per token (Appendix B); None for no clamp.
    teacher_clip_gradient: "literal" or "anchor", see `rlad_log_ratio`.
    """

    name = "rlad"

    alpha: float = 0.5
    teacher_clip: float | None = 1.0
    teacher_clip_gradient: ClipGradient = "literal"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_trrd(self.alpha, self.teacher_clip, self.teacher_clip_gradient)

    def log_ratio(self, signals: TokenSignals) -> Tensor:
        return rlad_log_ratio(
            signals.logps,
            signals.old_logps,
            self._teacher(signals),
            self.alpha,
            self.teacher_clip,
            self.teacher_clip_gradient,
            # In the signals a broken teacher value is already replaced, so rlad_log_ratio can no longer see it.
            signals.teacher_ok,
        )

    def clamped(self, signals: TokenSignals) -> Tensor:
        if self.teacher_clip is None:
            return torch.zeros_like(signals.mask)
        return k1(signals.logps, self._teacher(signals)).detach().abs() > self.teacher_clip


@dataclass(frozen=True, kw_only=True)
class RLADSchedule(_Schedule):
    """RLAD whose alpha goes from `start` to `end` over training: from anchored to the teacher to plain GRPO (ours).

    A schedule: `at(progress)` is the RLAD in force, and the only thing to train with. start, end, shape and switch: see
    `rlad.objectives.schedules`. teacher_clip, teacher_clip_gradient: RLAD's.
    """

    name = "rlad-schedule"

    start: float = 0.5
    end: float = 1.0
    shape: Shape = "linear"
    switch: float = 0.5
    teacher_clip: float | None = 1.0
    teacher_clip_gradient: ClipGradient = "literal"

    def __post_init__(self) -> None:
        super().__post_init__()
        for alpha in (self.start, self.end):
            check_trrd(alpha, self.teacher_clip, self.teacher_clip_gradient)
        check_shape(self.shape, self.switch)

    def at(self, progress: float) -> Method:
        super().at(progress)
        return RLAD(
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            alpha=scheduled(self.start, self.end, self.shape, progress, self.switch),
            teacher_clip=self.teacher_clip,
            teacher_clip_gradient=self.teacher_clip_gradient,
        )


@dataclass(frozen=True, kw_only=True)
class KDRL(Method):
    """GRPO with beta times the reverse KL(S || T) on the student's own tokens (RLAD Eq. 2; KDRL, arXiv 2506.02208).

    coefficient: beta, in advantage per nat; the paper's 2e-3.
    form "k2": the penalty beta 0.5 (log S - log T)^2, whose on-policy gradient is the reverse KL's.
    form "reward": A + beta d, d = log T - log S detached (-k1 as a per-token reward, added after the group's
    normalisation), whose policy gradient is the reverse KL's as well.

    With num_iterations > 1 the two part. From the second iteration on the tokens come from old, not from S. The k2
    penalty has no ratio in front of it and reads the current S: its gradient, an average over old instead of S, is
    biased. The reward form is multiplied by S/old, which corrects it for every token that the clip does not stop.
    """

    name = "kdrl"

    coefficient: float = 2e-3
    form: Literal["k2", "reward"] = "k2"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_coefficient("coefficient", self.coefficient)
        if self.form not in ("k2", "reward"):
            reasons = {
                "k1": "as a loss, log S - log T has zero expected gradient and teaches nothing",
                "k3": "as a loss, k3 has the gradient of the forward KL, not of KDRL's reverse KL",
            }
            reason = reasons.get(self.form, "there is no such form")
            raise ValueError(f"kdrl form {self.form!r}: {reason}; use 'k2' (a penalty) or 'reward' (-k1 as a reward)")

    def advantage(self, signals: TokenSignals) -> Tensor:
        if self.form == "k2":
            return signals.advantages
        return signals.advantages + self.coefficient * self._distillation_advantage(signals)

    def penalty(self, signals: TokenSignals) -> Tensor | None:
        if self.form == "reward":
            return None
        return self.coefficient * k2(signals.logps, self._teacher(signals))


@dataclass(frozen=True, kw_only=True)
class KDRLMask(Method):
    """KDRL's reward form on wrong rollouts only: A if the rollout is right, else A + beta d (as in arXiv 2609.04108).

    coefficient: beta, in advantage per nat; the default is KDRL's.
    """

    name = "kdrl-mask"
    needs_correct = True

    coefficient: float = 2e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_coefficient("coefficient", self.coefficient)

    def advantage(self, signals: TokenSignals) -> Tensor:
        distillation = self.coefficient * self._distillation_advantage(signals)
        return signals.advantages + distillation * ~self._per_rollout(signals, "correct")


@dataclass(frozen=True, kw_only=True)
class KDRLAnnealed(_Schedule):
    """KDRL's reward form, A + beta d, with beta from `start` to `end` over training (as in arXiv 2609.04108).

    A schedule: `at(progress)` is the KDRL in force, and the only thing to train with. start, end: in advantage per nat,
    the paper's 0.2 and 0.002. shape and switch (`rlad.objectives.schedules`): the default is ours.
    """

    name = "kdrl-annealed"

    start: float = 0.2
    end: float = 0.002
    shape: Shape = "linear"
    switch: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_coefficient("start", self.start)
        _check_coefficient("end", self.end)
        check_shape(self.shape, self.switch)

    def at(self, progress: float) -> Method:
        super().at(progress)
        coefficient = scheduled(self.start, self.end, self.shape, progress, self.switch)
        return KDRL(clip_low=self.clip_low, clip_high=self.clip_high, coefficient=coefficient, form="reward")


@dataclass(frozen=True, kw_only=True)
class OPD(Method):
    """On-policy distillation: rho = S/old, A = d = log T - log S, detached. The reward is not used.

    With num_iterations > 1 it behaves as KDRL's reward form: corrected by S/old, where the clip does not stop it.
    """

    name = "opd"

    def advantage(self, signals: TokenSignals) -> Tensor:
        return self._distillation_advantage(signals)


@dataclass(frozen=True, kw_only=True)
class OPDThenGRPO(_Schedule):
    """OPD until the fraction `switch` of the training steps is done, then GRPO and no teacher (arXiv 2609.04108).

    A schedule: `at(progress)` is the method in force, and the only thing to train with. The default switch is ours.
    """

    name = "opd-then-grpo"

    switch: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.switch < 1:
            raise ValueError(f"switch is {self.switch}: choose it inside (0, 1); for one phase alone use opd or grpo")

    def at(self, progress: float) -> Method:
        super().at(progress)
        phase = OPD if progress < self.switch else GRPO
        return phase(clip_low=self.clip_low, clip_high=self.clip_high)


@dataclass(frozen=True, kw_only=True)
class SRPO(Method):
    """A if the rollout is right, else d (as in arXiv 2609.04108).

    The reward for what is right, the teacher for the rest. Two scales meet: A is in standard deviations of the reward,
    d in nats.
    """

    name = "srpo"
    needs_correct = True

    def advantage(self, signals: TokenSignals) -> Tensor:
        right = self._per_rollout(signals, "correct")
        return torch.where(right, signals.advantages, self._distillation_advantage(signals))


@dataclass(frozen=True, kw_only=True)
class HDPO(Method):
    """A + beta d in groups whose rollouts are all wrong, else A (as in arXiv 2609.04108; HDPO, arXiv 2603.23871).

    The teacher speaks where the reward does not tell the rollouts apart.
    coefficient: beta, in advantage per nat; the default is ours.
    """

    name = "hdpo"
    needs_correct = True

    coefficient: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_coefficient("coefficient", self.coefficient)

    def advantage(self, signals: TokenSignals) -> Tensor:
        distillation = self.coefficient * self._distillation_advantage(signals)
        return signals.advantages + distillation * self._per_rollout(signals, "group_wrong")


@dataclass(frozen=True, kw_only=True)
class RLSD(Method):
    """A ((1 - l) + l clip(exp(sign(A) d), 1 - e, 1 + e)) (as in arXiv 2609.04108; RLSD, arXiv 2604.03128).

    The reward says whether, the teacher how much. A token that the teacher likes better than the student weighs more in
    a good rollout and less in a bad one; the sign stays the reward's.

    mix: l; 0 is GRPO. width: e. Both defaults are ours.
    """

    name = "rlsd"

    mix: float = 0.5
    width: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix is {self.mix}: choose it in [0, 1]; 0 is grpo, 1 the teacher's weight alone")
        if not 0 < self.width <= 1:
            raise ValueError(f"width is {self.width}: choose it in (0, 1]; a weight is held in 1 - width to 1 + width")

    def advantage(self, signals: TokenSignals) -> Tensor:
        agreement = signals.advantages.sign() * self._distillation_advantage(signals)
        weight = agreement.exp().clamp(1 - self.width, 1 + self.width)
        return signals.advantages * ((1 - self.mix) + self.mix * weight)


def _check_coefficient(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value}: give a finite number, at least 0")


_TABLE = (GRPO, RLAD, RLADSchedule, KDRL, KDRLMask, KDRLAnnealed, OPD, OPDThenGRPO, SRPO, HDPO, RLSD)
METHODS: dict[str, type[Method]] = {method.name: method for method in _TABLE}
