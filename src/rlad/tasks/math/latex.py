"""Answers as text: written one way, compared as text, and read as a letter. Nothing here parses mathematics."""

# ruff: noqa: RUF001  # signs that look like others are what this file is about

from __future__ import annotations

import re
import unicodedata

_SIGNS = {
    "°": r"^\circ ",
    "º": r"^\circ ",
    "√": r"\sqrt ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "×": r"\times ",
    "⋅": r"\cdot ",
    "·": r"\cdot ",
    "÷": r"\div ",
    "±": r"\pm ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "∈": r"\in ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∅": r"\emptyset ",
    "−": "-",
    "–": "-",
    "—": "-",
    "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}",
    "\u3000": " ",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
    "\u200b": "",
    "\ufeff": "",
    **{chr(place): chr(place - 0xFEE0) for place in range(0xFF01, 0xFF5F)},  # the wide forms of ASCII
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_THIN = r"(?:\\[,;:! ]|\\thinspace|~| )"
_THOUSANDS = re.compile(rf"(?<![\d.,])\d{{1,3}}(?:{_THIN}\d{{3}})+(?![\d])")
_MIXED = re.compile(r"(?<![\d.,/])(?<!\d )(\d{1,6}) +([1-9]\d{0,5})/([1-9]\d{0,5})(?![\d./])")
_OF_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc))\s*(?:\\left)?(\()?\s*(\d{1,4}(?:\.\d{1,6})?)\s*"
    r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))\s*(?(2)(?:\\right)?\))"
)
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d{1,30}(?:\.\d{1,30})?)[eE]([+-]?\d{1,6})(?![\w.])")
_SQRT = re.compile(r"(?<![\\A-Za-z])sqrt\s*(?:\(([^()]{1,100})\)|(?=[{\d]))")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it|sf)|mbox|operatorname)\s*\{([^{}]*)\}")
_LAYOUT = re.compile(
    r"\\(?:(?:left|right|displaystyle)(?![a-zA-Z])|[,;:!]|[bB]igg?[lr]?(?![a-zA-Z])|[()\[\]])|\$|\\(?=\s)"
)
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_SPACE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")
_LETTER = re.compile(r"\(?\s*([A-J])\s*[.):]?\s*")
_WORDS = re.compile(r"[A-Za-z]{2,}[,:]?\s+[A-Za-z]{2,}")


def normalised(text: str, currency: bool = False) -> str:
    r"""`text` with LaTeX in the place of other signs (° is ^\circ), ASCII digits, and no spaces inside a number;
    without dollar signs that are escaped, unless `currency` is wanted."""
    if not text.isascii():
        text = "".join(c if c.isascii() else _SIGNS[c] if c in _SIGNS else _digit(c) for c in text)
        text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
        text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda found: f"_{{{found[0].translate(_SUBSCRIPTS)}}}", text)
    text = text.replace("\0", "").replace("~", " ")
    text = text if currency else text.replace("\\$", "")
    text = _SQRT.sub(lambda found: f"\\sqrt{{{found[1]}}}" if found[1] else "\\sqrt", text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _OF_DEGREES.sub(r"\1(\\frac{\3\\pi}{180})", text)
    text = _THOUSANDS.sub(lambda found: re.sub(_THIN, "", found[0]), text)
    return _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)


def _digit(character: str) -> str:
    value = unicodedata.decimal(character, None)
    return character if value is None else str(value)


def without_text(text: str) -> str:
    r"""A text without \text{...} and the like, but with what stands in them."""
    return _TEXT_COMMAND.sub(r"\1", text)


def key(text: str) -> str:
    r"""What two ways to write one answer have in common as texts: without layout, \text and spaces that do not matter.

    Equal keys mean equal answers; different ones mean nothing.
    """
    text = without_text(_FRACTION.sub(r"\\frac", normalised(text)))
    text = _SPACE.sub("", _LAYOUT.sub("", text).strip()).rstrip(".")
    return text.casefold() if re.fullmatch(r"[A-Za-z][A-Za-z ]+", text) else text


def letter(text: str) -> str | None:
    r"""The letter that an answer is, as "B", "(B)", "B." or "\text{(B)}"; None for anything else."""
    found = _LETTER.fullmatch(_LAYOUT.sub("", _TEXT_COMMAND.sub(r"\1", text[:60])).strip()) if len(text) <= 60 else None
    return found[1] if found else None


def is_prose(text: str) -> bool:
    r"""Whether there are two words in a row outside \text{...}, or mathematics between delimiters."""
    delimited = text.replace("\\$", "").count("$") > 1 or r"\(" in text or r"\[" in text
    return delimited or _WORDS.search(_TEXT_COMMAND.sub("", text)) is not None
