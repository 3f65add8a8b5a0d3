"""Whether an answer equals a gold, by math-verify. Imported in worker processes alone: any call can hang or blow up.

math-verify's own timeouts, which need SIGALRM, are off: the process has a limit of its own (see worker.py).
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from rlad.tasks.math.extract import strict_answer
from rlad.tasks.math.latex import is_prose, key, normalised

logging.getLogger("math_verify").setLevel(logging.ERROR)
logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)

_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")  # a list of two for the strict reading, either for the lenient one
_TEXT = (LatexExtractionConfig(), ExprExtractionConfig())
_LATEX = (LatexExtractionConfig(),)


def verdicts(golds: list[str], answers: list[tuple[str, str]], tail: str) -> tuple[bool, bool]:
    """(strict, lenient): whether one of `answers` equals one of `golds`; and whether that, or else `tail`, does.

    answers: (how, text), as in `extract.Found`. tail: the end of the response, in which math-verify searches itself.
    """
    parsed = [gold for text in golds for gold in _gold(text)]
    keys = {key(gold) for gold in golds} - {""}
    if any(_equal(text, _answer(how, text), keys, parsed) for how, text in answers):
        return True, True
    decimals = [gold for text in golds if _DECIMAL_COMMA.fullmatch(text) for gold in _parsed(text, _TEXT)]
    return False, _equal(tail, _tail(tail), keys, parsed + decimals)


def _equal(text: str, parsed: list[Any], keys: set[str], golds: list[Any]) -> bool:
    if len(text) <= 300 and key(text) in keys:
        return True
    return bool(parsed and golds) and verify(
        golds, parsed, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=False
    )


@lru_cache(maxsize=64)
def _gold(gold: str) -> tuple[Any, ...]:
    """What math-verify reads in a gold: an answer in LaTeX or plain text, or a solution with the answer in it."""
    if "\\boxed" in gold:
        gold = strict_answer(gold).text or gold
    if is_prose(gold):
        return tuple(_parsed(normalised(gold), _TEXT))
    return tuple(_formula(gold)) or tuple(_parsed(normalised(gold), _TEXT))


def _answer(how: str, text: str) -> list[Any]:
    if how == "box" or not is_prose(text):
        return _formula(text)
    return _parsed(f"The answer is {normalised(text)}", _TEXT)


def _tail(tail: str) -> list[Any]:
    bare = len(tail) <= 300 and not is_prose(tail) and "\\boxed" not in tail
    return (_formula(tail) if bare else []) + _parsed(normalised(tail), _TEXT)


def _formula(text: str) -> list[Any]:
    return _parsed(f"\\boxed{{{normalised(text).replace('$', '')}}}", _LATEX)


def _parsed(text: str, targets: Any) -> list[Any]:
    found: list[Any] = parse(text, targets, parsing_timeout=None, raise_on_error=False)
    return found
