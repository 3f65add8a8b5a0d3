"""Whether an answer equals a gold, by math-verify. Imported in worker processes alone: any call can hang or blow up.

math-verify's own timeouts, which need SIGALRM, are off: the process has a limit of its own (see worker.py).
"""

from __future__ import annotations

import logging
import math
import re
from contextlib import suppress
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from rlad.tasks.math.extract import strict_answer
from rlad.tasks.math.latex import is_prose, key, normalised
from rlad.tasks.math.units import contradicts, measure

logging.getLogger("math_verify").setLevel(logging.ERROR)
logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)

_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")  # a list of two for the strict reading, either for the lenient one
_TEXT = (LatexExtractionConfig(), ExprExtractionConfig())
_LATEX = (LatexExtractionConfig(),)


def verdicts(golds: list[str], answers: list[tuple[str, str]], tail: str) -> tuple[bool, bool]:
    """(strict, lenient): whether one of `answers` equals one of `golds`; and whether that, or else `tail`, does.

    answers: (how, text), as in `extract.Found`. tail: the end of the response, in which math-verify searches itself.
    """
    possible = [[gold for gold in golds if not contradicts(gold, text)] for _, text in answers]
    pairs = list(zip(answers, possible, strict=True))
    if any(_same(gold, text) for (_, text), left in pairs for gold in left):  # first: it costs no parsing
        return True, True
    for (how, text), left in pairs:
        parsed = _answer(how, text) if left else []
        if any(_equal(parsed, _gold(gold)) for gold in left):
            return True, True
    # What an answer contradicts is not found in the same answer by a search that knows less.
    left = [gold for gold in golds if all(gold in each for each in possible) and not contradicts(gold, tail)]
    if any(_same(gold, tail) for gold in left):
        return False, True
    parsed = _tail(tail) if left else []
    return False, any(_equal(parsed, (*_gold(gold), *_decimal(gold))) for gold in left)


def _same(gold: str, text: str) -> bool:
    return len(text) <= 300 and key(text) == _key(gold) != ""


def _equal(parsed: list[Any], golds: tuple[Any, ...]) -> bool:
    return bool(parsed and golds) and verify(
        list(golds),
        parsed,
        float_rounding=_places(golds),
        allow_set_relation_comp=True,
        timeout_seconds=None,
        raise_on_error=False,
    )


@lru_cache(maxsize=64)
def _key(gold: str) -> str:
    return key(gold)


def _places(golds: tuple[Any, ...]) -> int:
    """To how many decimal places decimals are equal: six, and more where that would leave a gold fewer than three
    digits."""
    sizes = []
    for gold in golds:
        if getattr(gold, "is_number", False) and gold.count_ops() <= 4:  # as 2 * 10^-7
            with suppress(TypeError, OverflowError):  # of a complex number, and of one beyond all floats
                sizes.append(abs(float(gold)))
    small = min((size for size in sizes if 0 < size < 1), default=1.0)
    return max(6, 2 - math.floor(math.log10(small)))


@lru_cache(maxsize=64)
def _gold(gold: str) -> tuple[Any, ...]:
    """What math-verify reads in a gold: an answer in LaTeX or plain text, or a solution with the answer in it."""
    if "\\boxed" in gold:
        gold = strict_answer(gold).text or gold
    measured = measure(gold)
    alone = _formula(measured.number) if measured and measured.sure else []
    if is_prose(gold):
        return (*alone, *_parsed(normalised(gold), _TEXT))
    return (*alone, *(_formula(gold) or _parsed(normalised(gold), _TEXT)))


def _decimal(gold: str) -> list[Any]:
    return _parsed(gold, _TEXT) if _DECIMAL_COMMA.fullmatch(gold) else []


def _answer(how: str, text: str) -> list[Any]:
    measured = measure(text)
    alone = _formula(measured.number) if measured else []
    if how == "box" or not is_prose(text):
        return alone + _formula(text)
    return alone + _parsed(f"The answer is {normalised(text)}", _TEXT)


def _tail(tail: str) -> list[Any]:
    bare = len(tail) <= 300 and not is_prose(tail) and "\\boxed" not in tail
    return (_formula(tail) if bare else []) + _parsed(normalised(tail), _TEXT)


def _formula(text: str) -> list[Any]:
    return _parsed(f"\\boxed{{{normalised(text).replace('$', '')}}}", _LATEX)


def _parsed(text: str, targets: Any) -> list[Any]:
    found: list[Any] = parse(text, targets, parsing_timeout=None, raise_on_error=False)
    return found
