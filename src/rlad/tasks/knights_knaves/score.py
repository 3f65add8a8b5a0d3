"""Scores for an answer to a Knights & Knaves puzzle: our strict one, and the two of Logic-RL (arXiv 2502.14768).

A response comes from a model and can be anything of any length: every step here takes time linear in its length. That
is why tags are found with `str.find` and lines are searched one by one, where the obvious regular expressions
(`<answer>(.*?)</answer>`, `name.*?knight`) are quadratic on a response that repeats their beginning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from rlad.errors import RladError
from rlad.tasks.base import Score

OPEN, CLOSE, THINK, THINK_END = "<answer>", "</answer>", "<think>", "</think>"
SHOWN = 2_000  # characters of an answer that a Score keeps

_ROLE = re.compile(r"\b(knight|knave)\b", re.IGNORECASE)
_STRICT_CLAIM = re.compile(r"\s+is\s+a\s+(knight|knave)(?![\w-])", re.IGNORECASE)
# Words around the claims that make them something else than claims.
_UNSAYS = re.compile(
    r"\b(?:not|no|never|neither|nor|or|either|if|unless|cannot|false|untrue|wrong|incorrect|impossible|maybe|perhaps"
    r"|possibly|might|could|lie|opposite)\b|n['\u2019]t\b",
    re.IGNORECASE,
)


def score(
    response: str,
    names: Sequence[str],
    solution: Sequence[bool],
    scorer: str = "strict",
    *,
    prompt_ends_with_think: bool = False,
) -> Score:
    """Score a response to the puzzle about `names`, whose `solution[i]` is True where names[i] is a knight.

    scorer, one of:
        "strict": 1.0, or 0.0. Inside the last <answer>…</answer> every name stands exactly once, followed by "is a
            knight" or "is a knave" with the right role (any case, any white space), and nothing else there speaks of a
            knight or a knave, negates or doubts. Numbers, punctuation and other words may stand around.
        "logic-rl": its training reward. 3.0 right, -0.5 wrong, -1.0 readable format but no readable answer, -3.0 wrong
            format.
        "logic-rl-eval": 1.0 or 0.0 by its evaluation, which sees the response alone and takes the first role on the
            line after a name, so that "is not a knight" counts as knight.
    prompt_ends_with_think: whether the prompt ended in <think>, as Logic-RL's does; "logic-rl" counts that tag.

    Raises RladError for an unknown scorer, and for names or a solution that are not those of a puzzle; never for a
    response.
    """
    if scorer not in SCORERS:
        raise RladError(f"there is no scorer {scorer!r}; there are {', '.join(SCORERS)}")
    _check(response, names, solution)
    return SCORERS[scorer](response, tuple(names), tuple(solution), prompt_ends_with_think)


def _check(response: Any, names: Any, solution: Any) -> None:
    if not isinstance(response, str):
        raise RladError(f"response must be a string, not {type(response).__name__}")
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise RladError(f"names must be a list of names, not {names!r}")
    if not all(isinstance(name, str) and name and name == name.strip() for name in names):
        raise RladError(f"names must be non-empty strings without white space around them, not {list(names)!r}")
    if len({name.casefold() for name in names}) != len(names):
        raise RladError(f"names must differ by more than upper and lower case: {', '.join(names)}")
    if not isinstance(solution, Sequence) or not all(isinstance(knight, bool) for knight in solution):
        raise RladError(f"solution must be a list of true (a knight) and false (a knave), not {solution!r}")
    if len(solution) != len(names):
        raise RladError(f"solution has {len(solution)} entries for {len(names)} names")


def _strict(response: str, names: tuple[str, ...], solution: tuple[bool, ...], _: bool) -> Score:
    start = response.rfind(OPEN, 0, max(response.rfind(CLOSE), 0))
    if start < 0:
        return Score(0.0, False, None, "there is no <answer>…</answer>", False)
    answer = response[start + len(OPEN) : response.find(CLOSE, start)].strip()
    said, unreadable = claims(answer, names)
    problem = unreadable or _wrong_roles(said, names, solution)
    return Score(float(not problem), not problem, answer[:SHOWN], problem or "every role is right", not unreadable)


def claims(answer: str, names: tuple[str, ...]) -> tuple[dict[str, bool], str]:
    """Who is said to be a knight, and what is wrong with the way it is said ("" for nothing)."""
    roles = _role_count(answer)
    if roles != len(names):
        return {}, f"the answer says knight or knave {roles} times, for {len(names)} people"
    said: dict[str, bool] = {}
    around, at = [], 0
    for mention in _mentions(names).finditer(answer):
        name = names[_by_length(names)[(mention.lastindex or 1) - 1]]
        if name in said:
            return {}, f"{name} stands more than once in the answer"
        claim = _STRICT_CLAIM.match(answer, mention.end())
        if claim is None:
            return {}, f"{name} is not followed by 'is a knight' or 'is a knave'"
        said[name] = claim[1].lower() == "knight"
        around.append(answer[at : mention.start()])
        at = claim.end()
    missing = [name for name in names if name not in said]
    if missing:
        return {}, f"{', '.join(missing)} not in the answer"
    unsaid = next((found for text in (*around, answer[at:]) if (found := _UNSAYS.search(text))), None)
    return said, f"the answer hedges or negates with {unsaid[0]!r}" if unsaid else ""


def _by_length(names: tuple[str, ...]) -> list[int]:
    """Places of the names, longest first: where "Mary Ann" stands, "Mary" does not."""
    return sorted(range(len(names)), key=lambda i: -len(names[i]))


@lru_cache(maxsize=256)
def _mentions(names: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern of any of the names as a whole word; group k + 1 is the k-th longest."""
    one = "|".join(f"({re.escape(names[i])})" for i in _by_length(names))
    return re.compile(rf"(?<![\w'\u2019])(?<!\w-)(?:{one})(?!\w)(?![-'\u2019]\w)", re.IGNORECASE)


def _role_count(answer: str) -> int:
    lower = answer.lower()
    return lower.count("knight") + lower.count("knave")


def _wrong_roles(said: dict[str, bool], names: tuple[str, ...], solution: tuple[bool, ...]) -> str:
    wrong = [name for name, knight in zip(names, solution, strict=True) if said[name] != knight]
    return f"wrong role for {', '.join(wrong)}" if wrong else ""


def _logic_rl(response: str, names: tuple[str, ...], solution: tuple[bool, ...], think_in_prompt: bool) -> Score:
    # Prompt and response are read as one text, from the first "Assistant:" if there is one, else from the assistant's
    # header, which ends the prompt. So a response that says "Assistant:" cuts off the <think> of its own prompt.
    _, cut, after = response.partition("Assistant:")
    text = after if cut else THINK * think_in_prompt + response
    answer = _last_pair(text)
    shown = None if answer is None else answer[:SHOWN]
    if not _tags_in_order(text, (THINK, THINK_END, OPEN, CLOSE)):
        return Score(
            -3.0,
            False,
            shown,
            "format: <think>, </think>, <answer>, </answer> must each stand once, in this order",
            False,
        )
    said = _read(answer, names, _first_claim) if answer and _role_count(answer) == len(names) else None
    if not said:
        return Score(-1.0, False, shown, "the format is right, the answer cannot be read", True)
    problem = _wrong_roles(said, names, solution)
    return Score(-0.5 if problem else 3.0, not problem, shown, problem or "every role is right", True)


def _logic_rl_eval(response: str, names: tuple[str, ...], solution: tuple[bool, ...], _: bool) -> Score:
    answer = _last_pair(response)
    shown = None if answer is None else answer[:SHOWN]
    if not _tags_in_order(response, (THINK_END, OPEN, CLOSE)) or not answer:
        return Score(
            0.0, False, shown, "format: </think>, <answer>, </answer> must each stand once, in this order", False
        )
    said = _read(answer, names, _first_role_on_line)
    if not said:
        return Score(0.0, False, shown, "the answer cannot be read", True)
    problem = _wrong_roles(said, names, solution)
    return Score(float(not problem), not problem, shown, problem or "every role is right", True)


def _last_pair(text: str) -> str | None:
    """What `<answer>(.*?)</answer>` finds last, without white space around it; None where it finds nothing."""
    answer, at = None, 0
    while (start := text.find(OPEN, at)) >= 0 and (end := text.find(CLOSE, start)) >= 0:
        answer, at = (start + len(OPEN), end), end + len(CLOSE)
    return None if answer is None else text[slice(*answer)].strip()


def _tags_in_order(text: str, tags: Sequence[str]) -> bool:
    places = [text.find(tag) for tag in tags]
    return all(text.count(tag) == 1 for tag in tags) and places == sorted(places)


def _read(answer: str, names: tuple[str, ...], reader: Callable[[str, str], str | None]) -> dict[str, bool] | None:
    """Who is said to be a knight by `reader`, or None where it finds no role for one of the names."""
    said: dict[str, bool] = {}
    for name in names:
        role = reader(answer, name)
        if role is None:
            return None
        said[name] = role.lower() == "knight"
    return said


def _first_claim(answer: str, name: str) -> str | None:
    found = re.search(rf"\b{re.escape(name)}\b\s+is\s+a\s+\b(knight|knave)\b", answer, re.IGNORECASE)
    return found and found[1]


def _first_role_on_line(answer: str, name: str) -> str | None:
    whole = re.compile(rf"\b{re.escape(name)}\b", re.IGNORECASE)
    for line in answer.split("\n"):
        # Where no role follows the first mention on a line, none follows a later one.
        if (mention := whole.search(line)) and (role := _ROLE.search(line, mention.end())):
            return role[1]
    return None


SCORERS: dict[str, Callable[[str, tuple[str, ...], tuple[bool, ...], bool], Score]] = {
    "strict": _strict,
    "logic-rl": _logic_rl,
    "logic-rl-eval": _logic_rl_eval,
}
