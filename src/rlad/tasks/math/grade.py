"""Verdicts on responses: what was extracted, and whether it is right by the strict and by the lenient reading."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlad.errors import RladError
from rlad.tasks.math.extract import lenient_text, options, strict_answer
from rlad.tasks.math.latex import key, letter
from rlad.tasks.math.pool import Job, Limits, run_jobs

MOST_GOLDS = 32
LONGEST_GOLD = 6_000  # characters: some golds are whole solutions


@dataclass(frozen=True)
class Verdict:
    r"""Both readings of a response.

    strict: its last \boxed, or else what follows its last "answer is", equals a gold. lenient: that, or else what
    math-verify finds at the end of the response does. extracted: what the strict reading found, None where that is
    nothing. problem: why grading stopped, or why nothing was extracted; "" where neither happened. graded: False where
    grading stopped, and both verdicts are False for that alone.
    """

    strict: bool
    lenient: bool
    extracted: str | None
    problem: str = ""
    graded: bool = True


def grade(response: str, golds: str | Sequence[str], problem: str = "", limits: Limits | None = None) -> Verdict:
    """The verdict on one response to `problem` (for the options that it lists), whose answer is any of `golds`."""
    return grade_all([response], [golds], [problem], limits)[0]


def grade_all(
    responses: Sequence[str],
    golds: Sequence[str | Sequence[str]],
    problems: Sequence[str] | None = None,
    limits: Limits | None = None,
) -> list[Verdict]:
    """The verdict on each response, in order, from worker processes in parallel.

    Raises RladError for golds that are none, and where workers cannot start; never for a response.
    """
    for response in responses:
        if not isinstance(response, str):
            raise RladError(f"response must be a string, not {type(response).__name__}")
    lists = [(gold,) if isinstance(gold, str) else tuple(gold) for gold in golds]
    for each in lists:
        _check(each)
    asked = [""] * len(responses) if problems is None else problems
    found = [strict_answer(response) for response in responses]
    jobs = [
        _job(one.how, one.text, gold, problem, response)
        for one, gold, problem, response in zip(found, lists, asked, responses, strict=True)
    ]
    outcomes = run_jobs(jobs, limits or Limits())
    return [
        Verdict(outcome.strict, outcome.lenient, one.text, outcome.problem or one.problem, not outcome.problem)
        for one, outcome in zip(found, outcomes, strict=True)
    ]


def gold_texts(answer: Any) -> list[str]:
    """The golds that an `answer` is: a text, a number (27.0 is "27"), or a list of them, any of which counts.

    Raises ValueError for anything else.
    """
    values = answer if isinstance(answer, (list, tuple)) else [answer]
    golds = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"an answer is a text, a number or a list of them, not {answer!r:.200}")
        if isinstance(value, float):
            if value != value or value in (float("inf"), float("-inf")):
                raise ValueError(f"an answer must be finite, not {value}")
            value = int(value) if value.is_integer() else value
        golds.append(str(value).strip())
    if not golds or not all(golds):
        raise ValueError(f"an answer must not be empty: {answer!r:.200}")
    return golds


def json_golds(text: Any) -> list[str]:
    """The golds in a JSON-encoded list, as Skywork-OR1 has them. Raises ValueError where it is none."""
    try:
        values = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list):
        raise ValueError(f"the answer must be a JSON-encoded list, not {text!r:.200}")
    return gold_texts(values)


def _check(golds: tuple[str, ...]) -> None:
    if not golds or not all(isinstance(gold, str) and gold.strip() for gold in golds):
        raise RladError(f"math needs an answer to score a response: a text or a list of them, not {list(golds)!r:.200}")
    if len(golds) > MOST_GOLDS or any(len(gold) > LONGEST_GOLD for gold in golds):
        raise RladError(f"math takes up to {MOST_GOLDS} answers of up to {LONGEST_GOLD} characters to a problem")


def _job(how: str, answer: str | None, golds: tuple[str, ...], problem: str, response: str) -> Job:
    """The comparisons to make. A letter stands for the option that it names, where the problem lists options."""
    listed = options(problem) if problem else {}
    if any(letter(text) for text in listed.values()):
        listed = {}  # options that are letters themselves: a letter would be ambiguous
    answers = [] if answer is None else list(dict.fromkeys([answer, *_meant(answer, listed)]))
    meant = [text for gold in golds for text in _meant(gold, listed)]
    return Job(tuple(dict.fromkeys([*golds, *meant])), tuple((how, text) for text in answers), lenient_text(response))


def _meant(text: str, listed: dict[str, str]) -> list[str]:
    r"""What else an answer says: the letter in "\text{(B)}" or in "(B) 15", and the option that a letter names."""
    found = letter(text)
    if found is None:
        named = [(name, option) for name, option in listed.items() if key(text) in _labelled(name, option)]
        return list(named[0]) if named else []
    return [found, listed[found]] if found in listed else [found]


def _labelled(name: str, option: str) -> set[str]:
    return {key(form.format(name, option)) for form in ("({}) {}", "{}. {}", "{}) {}", "{}: {}")}
