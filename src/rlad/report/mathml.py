"""LaTeX in a text as MathML, made here so that the page needs no library. Trees, not markup: the page builds elements.

A tree is a text, or [tag, attributes, children]. Only tags and attributes of the lists below pass: a text comes from a
model, and what it makes of the library's output is not trusted.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

TAGS = frozenset(
    "math mrow mi mn mo mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mtable mtr mtd mstyle "
    "mpadded mphantom menclose".split()
)
ATTRIBUTES = frozenset(
    "display mathvariant stretchy fence separator form lspace rspace width height depth minsize maxsize accent "
    "linethickness columnalign displaystyle scriptlevel movablelimits notation".split()
)
Tree = Any
_LONGEST = 2_000
_PIECES = re.compile(
    r"\$\$(.{1,2000}?)\$\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)|(?<![\\$])\$([^$\n]{1,500}?)(?<!\\)\$(?!\d)",
    re.DOTALL,
)
_FORMULA = re.compile(r"\\[a-zA-Z]{2,}|[\^_]\s*[{\w]|\\\(")


def with_math(text: str | None) -> list[str | dict[str, Tree]] | None:
    """A text in pieces, formulas between dollars or \\( \\) as {"tex": ..., "tree": ...}; None where it has none."""
    if not text or ("$" not in text and "\\(" not in text and "\\[" not in text):
        return None
    pieces: list[str | dict[str, Tree]] = []
    at = 0
    for match in _PIECES.finditer(text):
        tree = formula(next(each for each in match.groups() if each is not None))
        if tree is not None:
            pieces += [text[at : match.start()], {"tex": match[0], "tree": tree}]
            at = match.end()
    return [*pieces, text[at:]] if pieces else None


def answer(text: str | None) -> list[str | dict[str, Tree]] | None:
    """An answer, which is a formula as a whole where it looks like one; None where there is nothing to render."""
    if not text or len(text) > _LONGEST:
        return None
    if "$" in text or not _FORMULA.search(text):
        return with_math(text)
    tree = formula(text)
    return None if tree is None else [{"tex": text, "tree": tree}]


@lru_cache(maxsize=2048)
def formula(tex: str) -> Tree | None:
    """The tree of a formula; None where it cannot be converted, or not safely."""
    if len(tex) > _LONGEST:
        return None
    from latex2mathml.converter import convert_to_element

    try:
        return _tree(convert_to_element(tex.strip()), 0)
    except Exception:  # the library raises what it meets; the raw text is always shown
        return None


def _tree(element: ElementTree.Element, depth: int) -> Tree:
    tag = element.tag.rpartition("}")[2]
    if tag not in TAGS or depth > 60:
        raise ValueError(f"no element for formulas: {tag}")
    children: list[Tree] = [_text(element.text)] if element.text else []
    for child in element:
        children.append(_tree(child, depth + 1))
        if child.tail and child.tail.strip():
            children.append(_text(child.tail))
    return [tag, {name: value for name, value in element.attrib.items() if name in ATTRIBUTES}, children]


def _text(text: str) -> str:
    """latex2mathml writes some signs as character references."""
    return re.sub(
        r"&#x([0-9A-Fa-f]{1,6});", lambda match: chr(int(match[1], 16)) if int(match[1], 16) < 0x110000 else "?", text
    )
