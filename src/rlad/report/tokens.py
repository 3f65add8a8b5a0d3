"""What a token looks like: white space and invisible characters marked, special tokens as they are, bytes as bytes."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

# How a piece of a token is to be read: as it stands, as a mark of white space, as the name of what cannot be shown.
PLAIN, SPACE, NAMED = "", "w", "e"
Segments = list[tuple[str, str]]
_SPACES = {" ": "\u00b7", "\n": "\u23ce", "\t": "\u21e5"}


class Vocabulary:
    """Token ids to what they look like. Without a tokenizer.json (None) every token is its number."""

    def __init__(self, path: Path | None) -> None:
        self._tokenizer: Any = None
        self._bytes = False
        self._special: set[int] = set()
        if path is not None and path.is_file():
            from tokenizers import Tokenizer

            try:
                self._tokenizer = Tokenizer.from_file(str(path))
            except Exception:  # a broken file costs the texts, not the report; the library raises bare Exception
                return
            self._bytes = '"ByteLevel"' in json.dumps(json.loads(self._tokenizer.to_str()).get("decoder"))
            self._special = set(self._tokenizer.get_added_tokens_decoder())

    def special(self, token: int) -> bool:
        """Whether it is one of the tokens that no text is split into."""
        return token in self._special

    def segments(self, token: int) -> Segments:
        """The pieces of a token, each (how to read it, text). Text never holds what could hide or turn other text."""
        written = None if self._tokenizer is None else self._tokenizer.id_to_token(token)
        if written is None:
            return [(NAMED, f"#{token}")]
        if token in self._special:
            return visible(written)
        if self._bytes:
            return _of_bytes(bytes(_BYTES.get(character, 0x3F) for character in written))
        if len(written) == 6 and written.startswith("<0x") and written.endswith(">"):
            return _of_bytes(bytes([int(written[3:5], 16)]))
        return visible(written.replace("\u2581", " "))

    def text(self, tokens: Iterable[int]) -> str:
        """The tokens one after the other, as they look."""
        return "".join(piece for token in tokens for _, piece in self.segments(token))


def visible(text: str) -> Segments:
    """A text in pieces: what can be shown, marks for white space, and names (U+202E) for everything invisible."""
    pieces: list[list[str]] = []
    for character in text:
        kind, shown = _shown(character)
        if pieces and pieces[-1][0] == kind:
            pieces[-1][1] += shown
        else:
            pieces.append([kind, shown])
    return [(kind, shown) for kind, shown in pieces]


def on_one_line(text: object) -> str:
    """A text on one line, without what a terminal would obey. Spaces are not marked."""
    return "".join(piece.replace("\u00b7", " ") if kind == SPACE else piece for kind, piece in visible(str(text)))


@lru_cache(maxsize=4096)
def _shown(character: str) -> tuple[str, str]:
    if character in _SPACES:
        return SPACE, _SPACES[character]
    # C: control, format (bidi, zero width), surrogate, private, unassigned. Z: separators of other kinds.
    if unicodedata.category(character)[0] in "CZ":
        return NAMED, f"\u27e8U+{ord(character):04X}\u27e9"
    return PLAIN, character


def _of_bytes(raw: bytes) -> Segments:
    """Bytes of a token: text where they are whole characters, else their numbers."""
    try:
        return visible(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return [(NAMED, "".join(f"\u27e8{byte:02X}\u27e9" for byte in raw))]


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes with (GPT-2): printable ones stand for themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in set(plain))
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()
