"""Records as they are looked at: updates, groups, rollouts, tokens; what is notable of them; figures with examples."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlad import records
from rlad.report import knights
from rlad.report.contributions import group_contributions, method_of
from rlad.report.runs import Run
from rlad.report.words import DROPPED, FILTERS

_LISTS = "logps old_logps teacher_logps ref_logps log_ratio anchor entropy".split()
_FLAGS = "mask branch clipped_low clipped_high clamped".split()


@dataclass
class Rollout:
    """One rollout. row: its record without the lists. arrays: those, float64 (NaN: no value), of equal length.

    Beside the record's lists, `arrays` has teacher (log pi_T - log pi), advantage, contribution and changed (before the
    denominator, see `group_contributions`); flags are bool. marks: the FILTERS that it passes.
    """

    row: dict[str, Any]
    tokens: list[int]
    arrays: dict[str, np.ndarray]
    flags: dict[str, np.ndarray]
    marks: set[str] = field(default_factory=set)

    @property
    def index(self) -> int:
        """Its place in its group."""
        return int(self.row["index"])

    @property
    def weight(self) -> float:
        """What a token's contribution is multiplied by: the denominator of its update. NaN where it is not known."""
        return math.nan if self.row["weight"] is None else float(self.row["weight"])

    @property
    def likes(self) -> float:
        """The mean of log pi_T - log pi over its tokens; NaN where the teacher said nothing."""
        gap = self.arrays["teacher"]
        return float(np.nanmean(gap)) if np.isfinite(gap).any() else math.nan


@dataclass
class Group:
    """Rollouts of one prompt, best first, then the worst, then the rest by falling reward."""

    number: int
    rollouts: list[Rollout]
    puzzle: knights.Puzzle | None

    @property
    def first(self) -> dict[str, Any]:
        """The record of one of them, for what they have in common."""
        return self.rollouts[0].row

    @property
    def flat(self) -> bool:
        """Whether all rewards are equal."""
        return len({each.row["reward"] for each in self.rollouts}) == 1

    @property
    def right(self) -> int | None:
        """How many are right; None where it is not known."""
        known = [each.row["correct"] for each in self.rollouts]
        return None if None in known else sum(known)


@dataclass
class Step:
    """The recorded groups of one update. mismatch: the largest difference, in nats, between the recorded log ratios and
    the same computed again; None where the method is not known here."""

    number: int
    about: dict[str, Any]
    groups: list[Group]
    mismatch: float | None

    @property
    def rollouts(self) -> Iterator[tuple[Group, Rollout]]:
        """All of them, with their groups."""
        return ((group, rollout) for group in self.groups for rollout in group.rollouts)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """What the clip holds r in."""
        method = method_of(self.about.get("in_force") or self.about.get("method"))
        return None if method is None else (1 - method.clip_low, 1 + method.clip_high)


def read_steps(run: Run) -> Iterator[Step]:
    """The recorded updates of a run, in order, one in memory at a time."""
    for number, path in run.parts.items():
        yield read_step(number, path)


def read_step(number: int, path: Path) -> Step:
    """One part of the records."""
    about = records.read_about(path)
    method = method_of(about.get("in_force") or about.get("method"))
    by_group: dict[int, list[dict[str, Any]]] = {}
    for row in records.read_rows(path, "rollout"):
        by_group.setdefault(row["group"], []).append(row)
    groups, mismatch = [], None if method is None else 0.0
    for group, rows in sorted(by_group.items()):
        trained = all(row["logps"] is not None for row in rows)
        computed = group_contributions(rows, method) if trained and method is not None else [{} for _ in rows]
        rollouts = [_rollout(row, arrays) for row, arrays in zip(rows, computed, strict=True)]
        if mismatch is not None:
            mismatch = max([mismatch, *(_difference(row, arrays) for row, arrays in zip(rows, computed, strict=True))])
        _mark(rollouts)
        groups.append(Group(group, _best_and_worst_first(rollouts), _puzzle(rows[0])))
    return Step(number, about, groups, mismatch)


def _rollout(row: dict[str, Any], computed: Mapping[str, np.ndarray]) -> Rollout:
    length = len(row["tokens"])
    nothing = np.full(length, np.nan)
    arrays = {name: nothing if row[name] is None else np.asarray(row[name], dtype=float) for name in _LISTS}
    arrays["teacher"] = arrays["teacher_logps"] - arrays["logps"]
    arrays |= {name: computed.get(name, nothing) for name in ("advantage", "contribution", "changed")}
    off = np.zeros(length, dtype=bool)
    flags = {name: off if row[name] is None else np.asarray(row[name], dtype=bool) for name in _FLAGS}
    lists = {"tokens", *_LISTS, *_FLAGS}
    return Rollout({name: value for name, value in row.items() if name not in lists}, row["tokens"], arrays, flags)


def _difference(row: Mapping[str, Any], computed: Mapping[str, np.ndarray]) -> float:
    if not computed or row["log_ratio"] is None:
        return 0.0
    gap = np.abs(np.asarray(row["log_ratio"], dtype=float) - computed["log_ratio"])
    return float(np.nanmax(gap)) if np.isfinite(gap).any() else 0.0


def _best_and_worst_first(rollouts: Sequence[Rollout]) -> list[Rollout]:
    falling = sorted(rollouts, key=lambda each: (-each.row["reward"], each.index))
    return falling if len(falling) < 3 else [falling[0], falling[-1], *falling[1:-1]]


def _mark(rollouts: Sequence[Rollout]) -> None:
    """Which filters each rollout of a group passes."""
    longest = max(len(each.tokens) for each in rollouts)
    likes = [each.likes for each in rollouts]
    known = [value for value in likes if not math.isnan(value)]
    middle, apart = (float(np.mean(known)), float(np.std(known))) if known else (math.nan, math.nan)
    for rollout, value in zip(rollouts, likes, strict=True):
        row, advantage, flags = rollout.row, rollout.row["advantage"], rollout.flags
        passes = {
            "rewarded": row["correct"] is False and advantage > 0,
            "disagrees": advantage * (value - middle) < 0 and abs(value - middle) > apart,
            "clipped": bool((flags["clipped_low"] | flags["clipped_high"]).any()),
            "clamped": bool(flags["clamped"].any()),
            "truncated": row["stop"] == "length",
            "longest": len(rollout.tokens) == longest,
        }
        rollout.marks = {name for name in FILTERS if passes[name]}


def _puzzle(row: Mapping[str, Any]) -> knights.Puzzle | None:
    try:
        columns = json.loads(row["columns"] or "{}")
    except (ValueError, RecursionError):
        return None
    return knights.puzzle(columns) if isinstance(columns, dict) else None


@dataclass
class Figure:
    """A number about a run's records, and the place of an example: (update, group, rollout, token), or None."""

    what: str
    value: str
    place: tuple[int, ...] | None = None


class Figures:
    """Headline figures, gathered update by update."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.sums = {"changed": 0.0, "grpo": 0.0}
        self.best: dict[str, tuple[float, tuple[int, ...]]] = {}
        self.dropped: Counter[str] = Counter()

    def add(self, step: Step) -> None:
        """Count an update's records in."""
        self.dropped.update(step.about.get("dropped") or {})
        for group in step.groups:
            if group.first["dropped"]:
                self._example("dropped", 1.0, (step.number, group.number))
                continue
            self.counts["groups"] += 1
            if group.flat:
                self.counts["flat"] += 1
                self._example("flat", 1.0, (step.number, group.number))
            for rollout in group.rollouts:
                self._add_rollout((step.number, group.number, rollout.index), rollout)

    def _add_rollout(self, place: tuple[int, ...], rollout: Rollout) -> None:
        arrays, flags = rollout.arrays, rollout.flags
        self.counts["rollouts"] += 1
        self.counts["tokens"] += int(flags["mask"].sum())
        clipped = flags["clipped_low"] | flags["clipped_high"]
        for name, hit in (("clipped tokens", clipped), ("clamped tokens", flags["clamped"])):
            self.counts[name] += int(hit.sum())
            if hit.any():
                self._example(name, float(hit.mean()), (*place, int(hit.argmax())))
        self.counts["covered"] += int(np.isfinite(arrays["teacher"]).sum())
        size = {"disagrees": abs(rollout.likes), "longest": len(rollout.tokens)}
        for name in rollout.marks:
            self.counts[name] += 1
            self._example(name, float(size.get(name, rollout.row["advantage"])), place)
        self._add_contributions(place, rollout)

    def _add_contributions(self, place: tuple[int, ...], rollout: Rollout) -> None:
        arrays = rollout.arrays
        if math.isnan(rollout.weight):
            return
        changed = np.nan_to_num(arrays["changed"]) * rollout.weight
        grpo = np.nan_to_num(arrays["contribution"] - arrays["changed"]) * rollout.weight
        self.sums["changed"] += float(np.abs(changed).sum())
        self.sums["grpo"] += float(np.abs(grpo).sum())
        if changed.any():
            most = int(np.abs(changed).argmax())
            self._example("changed", abs(float(changed[most])), (*place, most))

    def _example(self, name: str, size: float, place: tuple[int, ...]) -> None:
        if name not in self.best or size > self.best[name][0]:
            self.best[name] = (size, place)

    def lines(self) -> list[Figure]:
        """The figures, each with the clearest example."""
        counts, found = self.counts, []

        def share(name: str, of: str) -> str:
            return f"{counts[name] / max(1, counts[of]):.1%} ({counts[name]} of {counts[of]})"

        if self.sums["grpo"] and self.sums["changed"]:
            value = f"{self.sums['changed'] / self.sums['grpo']:.0%}"
            found.append(("what the teacher changed, as a share of the update under GRPO", value, "changed"))
        found += [
            ("recorded tokens that the clip stops", share("clipped tokens", "tokens"), "clipped tokens"),
            ("recorded tokens outside of the teacher's clamp", share("clamped tokens", "tokens"), "clamped tokens"),
            ("recorded tokens with a teacher value", share("covered", "tokens"), "covered"),
        ]
        shares = [name for name in FILTERS if name != "longest"]
        found += [(f"recorded rollouts: {FILTERS[name][0]}", share(name, "rollouts"), name) for name in shares]
        if "longest" in self.best:
            found.append(("the longest recorded response", f"{self.best['longest'][0]:.0f} tokens", "longest"))
        found.append(("recorded groups of zero variance", share("flat", "groups"), "flat"))
        if self.dropped:
            reasons = ", ".join(f"{count} {DROPPED.get(name, name)}" for name, count in sorted(self.dropped.items()))
            found.append(("groups dropped and replaced at recorded updates", reasons, "dropped"))
        return [Figure(what, value, self.best[name][1] if name in self.best else None) for what, value, name in found]


def passing(steps: Iterable[Step], name: str) -> Iterator[tuple[Step, Group, Rollout]]:
    """The rollouts that pass a filter."""
    for step in steps:
        for group, rollout in step.rollouts:
            if name in rollout.marks:
                yield step, group, rollout
