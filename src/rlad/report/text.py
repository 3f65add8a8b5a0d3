"""The report in the terminal: the same words and numbers as the page (`rlad show`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rlad.errors import RladError
from rlad.report import knights
from rlad.report import words as w
from rlad.report.runs import Run, curves, header, read_runs, result, result_words
from rlad.report.tokens import Vocabulary
from rlad.report.tokens import on_one_line as _safe
from rlad.report.view import Figures, Group, Rollout, Step, passing, read_step, read_steps

_LISTED = 100
_Found = TypeVar("_Found", Group, Rollout)


def shown(folder: str | Path, place: str = "", filtered: str | None = None) -> str:
    """The text for a place in a run ("" for the run; 5, 5/3, 5/3/0, 5/3/0/17), or for a filter of FILTERS.

    Raises RladError for a place or a filter that is not there.
    """
    runs = read_runs([folder])
    if len(runs) > 1:
        raise RladError(f"{folder} was trained in stages: name one of {', '.join(str(run.folder) for run in runs)}")
    if filtered is not None:
        return "\n".join(_filtered(runs[0], filtered))
    numbers = _numbers(place)
    if not numbers:
        return "\n".join(_run(runs[0]))
    step = _step(runs[0], numbers[0])
    if len(numbers) == 1:
        return "\n".join(_step_lines(step))
    group = _one([each for each in step.groups if each.number == numbers[1]], "group", [g.number for g in step.groups])
    if len(numbers) == 2:
        return "\n".join(_group_lines(group))
    rollout = _one(
        [each for each in group.rollouts if each.index == numbers[2]], "rollout", [r.index for r in group.rollouts]
    )
    vocabulary = runs[0].vocabulary()
    if len(numbers) == 3:
        return "\n".join(_rollout_lines(step, group, rollout, vocabulary))
    if numbers[3] >= len(rollout.tokens):
        raise RladError(f"there is no token {numbers[3]}: the response has {len(rollout.tokens)}, from 0")
    return "\n".join(_token_lines(step, rollout, numbers[3], vocabulary))


def _numbers(place: str) -> list[int]:
    parts = [part for part in place.removeprefix("#").split("/") if part]
    if len(parts) > 4 or not all(part.isascii() and part.isdigit() for part in parts):
        raise RladError(f"{place!r} is no place: write UPDATE/GROUP/ROLLOUT/TOKEN, as in 5/3/0/17, or a part of it")
    return [int(part) for part in parts]


def _step(run: Run, number: int) -> Step:
    if not run.parts:
        raise RladError(w.NO_RECORDS)
    if number not in run.parts:
        raise RladError(f"update {number} was not recorded; recorded are {', '.join(map(str, run.parts))}")
    return read_step(number, run.parts[number])


def _one(found: Sequence[_Found], what: str, there: Sequence[int]) -> _Found:
    if not found:
        raise RladError(f"there is no such {what}; there are {', '.join(map(str, sorted(there)))}")
    return found[0]


def _run(run: Run) -> Iterator[str]:
    yield run.name
    yield from _pairs(header(run))
    for row in result(run):
        yield f"  accuracy, {result_words(row)}"
    yield from ("", "Curves: first, last, lowest, highest")
    for title, points in curves(run).items():
        values = [value for _, value in points]
        ends = (values[0], values[-1], min(values), max(values))
        yield f"  {title:<22}" + "".join(f"{value:12.4g}" for value in ends)
    if not run.parts:
        yield from ("", w.NO_RECORDS)
        return
    figures, lines = Figures(), []
    for step in read_steps(run):
        figures.add(step)
        groups = ", ".join(f"{group.number} ({_notes(group)})" for group in step.groups)
        lines.append(f"  {step.number}: groups {groups}")
    yield from ("", "What the records say")
    for figure in figures.lines():
        where = "" if figure.place is None else f"  [{'/'.join(map(str, figure.place))}]"
        yield f"  {figure.value} {figure.what}{where}"
    yield from ("", f"Recorded: {run.about.get('kept', '')}.", "", "Recorded updates", *lines)


def _pairs(pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    width = max((len(what) for what, _ in pairs), default=0)
    for what, value in pairs:
        yield f"  {what:<{width}}  {_safe(value)}"


def _right(group: Group) -> str:
    return "-" if group.right is None else f"{group.right} of {len(group.rollouts)} right"


def _notes(group: Group) -> str:
    notes = [_right(group)]
    if group.first["dropped"]:
        notes.append(f"dropped: {w.DROPPED.get(group.first['reason'], group.first['reason'])}")
    if group.flat:
        notes.append("zero variance")
    return ", ".join(notes)


def _step_lines(step: Step) -> Iterator[str]:
    yield f"Update {step.number}: {len(step.groups)} recorded groups of {step.about.get('groups', '?')}"
    for group in step.groups:
        yield f"  group {group.number}: {_notes(group)}; {_safe(group.first['kept_why'])}"
        yield f"    {_safe(group.first['prompt'])[:160]}"


def _group_lines(group: Group) -> Iterator[str]:
    first = group.first
    yield f"Group {group.number}: {_notes(group)}; {_safe(first['kept_why'])}"
    yield f"  prompt  {_safe(first['prompt'])}"
    yield f"  gold    {_safe(first['gold'] or '-')}"
    yield from (f"  {line}" for line in (group.puzzle.said if group.puzzle else ()))
    yield "rollout  verdict    reward  advantage  length  stop     answer"
    for each in group.rollouts:
        row = each.row
        answer = _safe(row["extracted"] if row["extracted"] is not None else "none")[:80]
        yield (
            f"{each.index:7}  {w.VERDICTS[row['correct']]:<9}  {row['reward']:6.3g}  {row['advantage']:+9.3g}  "
            f"{len(each.tokens):6}  {w.STOPS.get(row['stop'], row['stop']):<7}  {answer}"
        )
        notable = ", ".join(w.FILTERS[name][0] for name in w.FILTERS if name in each.marks)
        parts = ", ".join(f"{name} {value:.3g}" for name, value in (row["reward_parts"] or {}).items())
        yield f"         {notable}{'; ' if notable and parts else ''}{_safe(parts)}"


_COLUMNS = ("S", "old", "T", "log_ratio", "r", "entropy", "contribution", "changed")


def _rollout_lines(step: Step, group: Group, rollout: Rollout, vocabulary: Vocabulary) -> Iterator[str]:
    row = rollout.row
    yield f"Rollout {rollout.index} of group {group.number}: {w.VERDICTS[row['correct']]}; {_safe(row['explanation'])}"
    yield (
        f"  reward {row['reward']:.4g}, advantage {row['advantage']:+.4g}, {len(rollout.tokens)} tokens, "
        f"{w.STOPS.get(row['stop'], row['stop'])}; answer {_safe(row['extracted'])}; gold {_safe(row['gold'])}"
    )
    if group.puzzle is not None:
        yield from _people(knights.reading(group.puzzle, row["response"]))
    if not rollout.flags["mask"].any() or math.isnan(float(rollout.arrays["logps"][0])):
        yield f"  {w.NOT_TRAINED if row['dropped'] else w.MASKED}"
    labels = dict(w.TOKEN)
    yield from (f"  {name}: {labels[name]}" for name in _COLUMNS)
    yield "place  token             " + "".join(f"{name:>13}" for name in _COLUMNS) + "  branch"
    for place in range(len(rollout.tokens)):
        facts = token_facts(step, rollout, place, vocabulary)
        marks = "clipped" if facts["branch"] in (w.BRANCHES["low"], w.BRANCHES["high"]) else ""
        marks = "masked" if facts["branch"] == w.MASKED else marks
        marks += " clamped" if facts["clamped"] == w.CLAMPED[True] else ""
        yield f"{place:5}  {facts['token'][:16]:<16}  " + "".join(f"{facts[k]:>13}" for k in _COLUMNS) + f"  {marks}"


def _people(reading: knights.Reading) -> Iterator[str]:
    for name, said, truth in reading.answer:
        yield f"  {name}: {said or 'no role'}" + ("" if said == truth else f", in truth {truth}")
    for assumed, truth, wrong in reading.assumed:
        yield f"  assumed {assumed}: {truth}" + (f"; {wrong}" if wrong else "")


def token_facts(step: Step, rollout: Rollout, place: int, vocabulary: Vocabulary) -> dict[str, str]:
    """What is said of a token, by the keys of `words.TOKEN`."""
    arrays, flags, weight = rollout.arrays, rollout.flags, rollout.weight

    def at(name: str, times: float = 1.0) -> str:
        return w.number(float(arrays[name][place]) * times)

    low, high = step.bounds or (math.nan, math.nan)
    grpo = (arrays["contribution"][place] - arrays["changed"][place]) * weight
    log_r = float(arrays["log_ratio"][place])
    return {
        "token": vocabulary.text([rollout.tokens[place]]),
        "A": at("advantage"),
        "S": at("logps"),
        "old": at("old_logps"),
        "T": at("teacher_logps"),
        "ref": at("ref_logps"),
        "anchor": at("anchor"),
        "log_ratio": at("log_ratio"),
        "r": "-" if math.isnan(log_r) else w.number(math.exp(min(20.0, log_r))).lstrip("+"),  # min would take 20
        "bounds": f"{low:.3g} to {high:.3g}",
        "branch": branch(rollout, place),
        "clamped": w.CLAMPED[bool(flags["clamped"][place])],
        "entropy": at("entropy").lstrip("+"),
        "contribution": at("contribution", weight),
        "grpo": w.number(float(grpo)),
        "changed": at("changed", weight),
    }


def branch(rollout: Rollout, place: int) -> str:
    """Which term of the min won, in words."""
    flags = rollout.flags
    if not flags["mask"][place] or math.isnan(float(rollout.arrays["logps"][place])):
        return w.MASKED if not rollout.row["dropped"] else w.NOT_TRAINED
    if flags["clipped_low"][place]:
        return w.BRANCHES["low"]
    if flags["clipped_high"][place]:
        return w.BRANCHES["high"]
    return w.BRANCHES["flat" if rollout.arrays["advantage"][place] == 0 else "ratio"]


def _token_lines(step: Step, rollout: Rollout, place: int, vocabulary: Vocabulary) -> Iterator[str]:
    facts = token_facts(step, rollout, place, vocabulary)
    yield f"Token {place} of {len(rollout.tokens)}, number {rollout.tokens[place]}"
    yield from _pairs([(label, facts[key]) for key, label in w.TOKEN])


def _filtered(run: Run, name: str) -> Iterator[str]:
    if name not in w.FILTERS:
        raise RladError(f"there is no filter {name!r}; there are {', '.join(w.FILTERS)}")
    yield f"{w.FILTERS[name][0]}: {w.FILTERS[name][1]}"
    count = 0
    for count, (step, group, each) in enumerate(passing(read_steps(run), name), 1):
        if count > _LISTED:  # the rest is counted
            continue
        yield (
            f"  {step.number}/{group.number}/{each.index}  {w.VERDICTS[each.row['correct']]}, "
            f"reward {each.row['reward']:.3g}, advantage {each.row['advantage']:+.3g}, {len(each.tokens)} tokens"
        )
    if count > _LISTED:
        yield f"The first {_LISTED} of {count} are listed."
