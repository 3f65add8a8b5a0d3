"""The words of the report: the page and the terminal take them from here, so that they say the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Channel:
    """One value for each token, shown as a colour. unit: what the legend says. about: what it is."""

    key: str
    label: str
    unit: str
    about: str


CHANNELS = (
    Channel(
        "changed",
        "what the teacher changed",
        "objective per nat",
        "contribution under the method minus contribution under GRPO, same signals and denominator",
    ),
    Channel(
        "teacher", "teacher minus student", "nats", "log pi_T - log pi: above 0 the teacher likes the token better"
    ),
    Channel(
        "log_ratio", "log ratio", "nats", "log r of the method: above 0 the token is likelier than under the anchor"
    ),
    Channel("advantage", "advantage", "standard deviations of the reward", "A, as the method uses it for the token"),
    Channel("entropy", "entropy", "nats", "of the student's distribution at the token"),
    Channel(
        "contribution",
        "loss contribution",
        "objective per nat",
        "derivative of the update's objective by the token's log pi: above 0 the update makes the token likelier",
    ),
)

FILTERS = {
    "rewarded": ("wrong but rewarded", "the answer is wrong and the advantage above 0"),
    "disagrees": (
        "teacher disagrees with the advantage",
        "the advantage is above 0 and the teacher likes the response (mean of log pi_T - log pi) less than the group's "
        "mean, by more than one standard deviation; or it is below 0 and the teacher likes it more, by as much",
    ),
    "clipped": ("clipped", "the clip stops at least one token"),
    "clamped": ("clamped", "at least one token is outside of the teacher's clamp"),
    "truncated": ("truncated", "the response was cut off at the longest length"),
    "longest": ("longest", "the longest response of its group"),
}

COVERAGE = "coverage"  # no metric of metrics.jsonl: rlad.report.runs makes it of two
# (metric of metrics.jsonl, or COVERAGE; title; unit)
CURVES: tuple[tuple[str, str, str], ...] = (
    ("reward", "reward", ""),
    ("accuracy", "accuracy", "share of rollouts"),
    ("entropy", "entropy", "nats"),
    ("completions/mean_length", "length", "tokens"),
    ("rlad/clip_low", "clip low", "share of tokens"),
    ("rlad/clip_high", "clip high", "share of tokens"),
    ("rlad/clamped", "clamped", "share of tokens"),
    (COVERAGE, "teacher coverage", "share of tokens with a teacher value"),
)
SECONDS = "rlad/seconds/"  # the metrics of one more curve each

# What is said of one token, in this order: (key, label).
TOKEN = (
    ("token", "token"),
    ("A", "advantage A"),
    ("S", "log pi (student)"),
    ("old", "log pi_old (that sampled)"),
    ("T", "log pi_T (teacher)"),
    ("ref", "log pi_ref (reference)"),
    ("anchor", "anchor"),
    ("log_ratio", "log r"),
    ("r", "r"),
    ("bounds", "bounds of the clip"),
    ("branch", "winning branch"),
    ("clamped", "clamp"),
    ("entropy", "entropy"),
    ("contribution", "contribution"),
    ("grpo", "contribution under GRPO"),
    ("changed", "what the teacher changed"),
)
BRANCHES = {
    "ratio": "r A: the token has its full gradient",
    "low": "clip(r) A: r is below the lower bound and A < 0, so the token has no gradient",
    "high": "clip(r) A: r is above the upper bound and A > 0, so the token has no gradient",
    "flat": "none: A = 0, so the token has no gradient",
}
CLAMPED = {True: "log pi - log pi_T is outside of the clamp", False: "not active"}
MASKED = "masked: it takes no part in the update"
NOT_TRAINED = "the group was dropped before it was trained on: there are no log-probabilities"
NO_RECORDS = "This run has no records: it was made by an older rlad, or with trainer.record_every=0."
VERDICTS = {True: "right", False: "wrong", None: "not known"}
STOPS = {"stop": "ended", "length": "cut off"}
DROPPED = {"all_right": "all right", "all_wrong": "all wrong", "equal": "equal rewards"}
FLAT = "zero variance: all rewards are equal, every advantage is 0"


def number(value: float | None, digits: int = 3) -> str:
    """A value with so many significant digits, the sign always; "-" where there is none."""
    if value is None or value != value:
        return "-"
    return f"{value:+.{digits}g}"


def method_words(method: dict[str, Any]) -> str:
    """A method with its options: "rlad (alpha 0.5, ...)"."""
    options = ", ".join(f"{key} {value}" for key, value in method.items() if key != "name")
    return f"{method.get('name', '?')}{f' ({options})' if options else ''}"
