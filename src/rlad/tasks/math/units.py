"""Numbers with a currency or a unit, and texts that cannot mean one answer although math-verify takes them for it.

math-verify knows units inside \\text{...} and some symbols. In plain words it reads products of letters, it drops the
base of a numeral, and a list of one value twice is a set of one. Nothing here parses mathematics.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from rlad.tasks.math.latex import key, normalised, without_text

LONGEST = 120  # characters of a number with its unit

_ALIASES = {
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "lb": "lb lbs",
    "oz": "oz ounce ounces",
    "mL": "mL ml milliliter milliliters millilitre millilitres",
    "L": "L liter liters litre litres",
    "dollar": "dollar dollars USD",
    "cent": "cent cents",
    "euro": "euro euros EUR",
    "GBP": "GBP",
    "rupee": "Rs rupee rupees INR",
    "yen": "yen JPY",
}
UNITS: dict[str, tuple[str, ...]] = {alias: (name,) for name, aliases in _ALIASES.items() for alias in aliases.split()}
UNITS |= {"mph": ("mi", "h"), "kmh": ("km", "h"), "kph": ("km", "h")}
_SIGNS = {"$": "dollar", "€": "euro", "£": "GBP", "¥": "yen", "₹": "rupee"}
# Words that say another number than the one they stand behind. (Of a percentage math-verify knows more.)
_CHANGES = frozenset(
    "and or to plus minus over mod modulo choose factorial squared cubed power half halves third thirds quarter "
    "quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths "
    "hundredth hundredths thousandth thousandths dozen dozens hundred hundreds thousand thousands million millions "
    "billion billions trillion trillions percent pct percents pi sqrt log ln sin cos tan exp infinity infty below "
    "under two three four five six seven eight nine ten".split()
)
_LITTLE = frozenset("a an at by in of on per".split())  # words of fewer than three letters
_NUMBER = re.compile(
    r"([+-]?\s*(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*\\frac\s*\{\d+\}\s*\{\d+\}|\s*/\s*\d+)?|[+-]?\s*\\frac\s*\{\d+\}\s*\{\d+\})"
)
_BARE = re.compile(r"\s*[+-]?[\d.,]+\s*")
_PREFIX = re.compile(r"\s*([+-]?)\s*(?:\\?([$€£¥₹])|(Rs|USD|EUR|GBP|INR|JPY)\b\.?)\s*")
_PIECE = re.compile(r"\s+|[A-Za-z]+|\^\s*\{?\s*-?\d\s*\}?|[/.-]|\\cdot(?![a-zA-Z])|\\?[$€£¥₹]")
_DOLLAR = re.compile(r"(?<!\\)\$")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))\s*(?:[CF]\b)?")
_BASED = re.compile(r"[0-9A-F]+_(?:\{\s*(\d{1,3})\s*\}|(\d))")
_WORD = re.compile(r"[A-Za-z]+(?:[ -][A-Za-z]+)*")
_SHORT = frozenset("no yes odd all any one two six ten".split())  # words, where other short ones are products


@dataclass(frozen=True)
class Measure:
    """A number and what it counts. units: those that are known, by one name each. sure: no unit can be a variable."""

    number: str
    units: tuple[str, ...]
    sure: bool


@lru_cache(maxsize=256)
def measure(text: str) -> Measure | None:
    """What a number with a currency, a unit or plain words says; None for a bare number and for anything else."""
    if len(text) > LONGEST or _BARE.fullmatch(text):
        return None
    if len(_DOLLAR.findall(text)) > 1:  # around a formula: no currency
        text = _DOLLAR.sub(" ", text)
    wrapped = "\\text" in text or "\\mathrm" in text
    plain = _DEGREES.sub(" degrees", without_text(normalised(text, currency=True)))
    plain = re.sub(r"\\[,;:! ]", " ", plain).replace("{,}", ",").strip(" .")
    units: list[str] = []
    sign = ""
    if prefix := _PREFIX.match(plain):
        sign, units = prefix[1], [_SIGNS[prefix[2]] if prefix[2] else UNITS[prefix[3]][0]]
        plain = plain[prefix.end() :]
    number = _NUMBER.match(plain)
    if number is None:
        return None
    behind = _units(plain[number.end() :])
    if behind is None or not (units or plain[number.end() :].strip()):
        return None
    sure = wrapped or not any(len(word) < 2 for word in re.findall("[A-Za-z]+", plain[number.end() :]))
    return Measure(sign + number[1].strip(), (*units, *behind), sure)


def _units(text: str) -> list[str] | None:
    """The known units in what stands behind a number; None where it is neither units nor plain words."""
    pieces, at = [], 0
    while at < len(text):
        match = _PIECE.match(text, at)
        if match is None:
            return None
        pieces.append(match[0].strip())
        at = match.end()
    found: list[str] = []
    known = False
    for place, piece in enumerate(pieces):
        if piece.startswith("^") and not known:
            return None  # a power of a variable
        if piece.lstrip("\\") in _SIGNS:
            found.append(_SIGNS[piece.lstrip("\\")])
        if piece.isalpha():
            known = piece in UNITS
            touches = place == 0  # "5cm": a product, unless it is a unit
            little = len(piece) < 3 and piece not in _LITTLE
            if not known and (touches or little or piece.lower() in _CHANGES):
                return None
            found += UNITS.get(piece, ())
    return found


def contradicts(gold: str, text: str) -> bool:
    """Whether a text says something else than the gold, though math-verify may call the two equal: other units, another
    base, a list of one value twice, a word of the same letters."""
    if text == gold or len(text) > LONGEST or len(gold) > LONGEST:
        return False
    return _other_unit(gold, text) or _other_base(gold, text) or _repeats(gold, text) or _other_word(gold, text)


def _other_unit(gold: str, text: str) -> bool:
    ours = measure(gold)
    theirs = measure(text) if ours is not None else None
    if ours is None or theirs is None:
        return False
    return any(one != other for one, other in zip(ours.units, theirs.units, strict=False))


def _other_base(gold: str, text: str) -> bool:
    """A text without a base is taken to be in the gold's: the problem says in which to answer. The other way round only
    base 10 is."""
    theirs = _bases(text)
    if not theirs:
        return False
    ours = _bases(gold)
    return not (theirs & ours if ours else theirs == {10} or not re.fullmatch(r"\d+", key(gold)))


def _bases(text: str) -> set[int]:
    if "_" not in text and text.isascii():  # a lowered digit is no ASCII
        return set()
    return {int(found[1] or found[2]) for found in _BASED.finditer(key(text))}


def _repeats(gold: str, text: str) -> bool:
    if "," in gold or "," not in text or re.search(r"[(\[{]", text):
        return False
    return len({key(item) for item in text.split(",")}) == 1


def _other_word(gold: str, text: str) -> bool:
    if any(character.isdigit() for character in gold):
        return False
    ours, theirs = key(gold), key(text)
    if not _WORD.fullmatch(ours) or not _WORD.fullmatch(theirs):
        return False
    spelt, other = (re.sub("[ -]", "", each).casefold() for each in (ours, theirs))
    is_word = "\\text" in gold or len(spelt) > 3 or spelt in _SHORT
    return is_word and len(spelt) > 1 and spelt != other
