"""The answer in a response, and the options in a problem: by searching, in time linear in the length of the text.

A response comes from a model and can be anything of any length. So boxes and anchors are found with `str.find` and
`str.rfind`, and every regular expression here runs on a piece of bounded length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

THINK_END = "</think>"
BOXES = ("\\boxed", "\\fbox")
ANCHORS = ("answer is", "answer:", "answer**:", "####")
LONGEST = 2_000  # characters of an answer; what is longer is not read
TAIL = 6_000  # characters of a response that the lenient reading sees
MOST_BOXES = 16  # of a run of boxes that are read as one answer

_JOINED = re.compile(r"(?:[\s$,;.&]|\\[,;!()\[\]]|\\\\|\\q?quad\b|\\(?:text|mbox)\s*\{\s*(?:,|and|or)?\s*\}|and|or)*")
_SEPARATES = re.compile(r"[,;]|and|or")
_OPTION = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf|textrm|rm|bf)\s*\{\s*)?\(\s*([A-J])\s*\)\s*\}?|(?:^|\n)[ \t]*([A-J])[.):](?=\s)"
)
_LAYOUT = re.compile(r"\\(?:qquad|quad|\\|newline|hspace\{[^{}]{0,20}\}|hfill|;|,|!|:|\s)|~|[\s$]")


@dataclass(frozen=True)
class Found:
    """An answer that was found. how: "box" or "anchor". text: what stands there. problem: why there is none."""

    text: str | None
    how: str = ""
    problem: str = ""


def strict_answer(response: str) -> Found:
    """The answer of a response: its last \\boxed, or else what follows its last "answer is", "answer:" or "####".

    Only what follows </think> is read, where there is one. Boxes that are joined by a comma, "and" or "or" are one
    answer. A last \\boxed that is not closed, or is empty or longer than LONGEST, is none: nothing before it counts.
    """
    start = response.rfind(THINK_END)
    text = response if start < 0 else response[start + len(THINK_END) :]
    place, opener = max((text.rfind(opener), opener) for opener in BOXES)
    if place >= 0:
        return _boxed(text, place, opener)
    place, anchor = _last_anchor(text)
    if place < 0:
        return Found(None, problem="there is no \\boxed and no 'answer is'")
    line = _line_after(text, place + len(anchor))
    return Found(line, "anchor") if line else Found(None, problem=f"nothing follows the last {anchor!r}")


def lenient_text(response: str) -> str:
    """What math-verify's own search sees: the end of the response, after </think> where something follows it."""
    tail = response[-TAIL:]
    _, _, after = tail.rpartition(THINK_END)
    return after if after.strip() else tail


def last_box(text: str) -> str | None:
    """The content of the last \\boxed alone; None where there is none that is closed and holds something."""
    place, opener = max((text.rfind(opener), opener) for opener in BOXES)
    content = _content(text, place + len(opener), len(text))[0] if place >= 0 else None
    return content.strip() or None if content else None


def _boxed(text: str, place: int, opener: str) -> Found:
    content, end = _content(text, place + len(opener), len(text))
    if content is None:
        return Found(None, problem="the last \\boxed is not closed, or is too long" if end < 0 else "")
    if not content.strip():
        return Found(None, problem="the last \\boxed is empty")
    boxes = [content.strip()]
    for _ in range(MOST_BOXES - 1):
        before = text.rfind(opener, 0, place)
        if before < 0:
            break
        content, end = _content(text, before + len(opener), place)
        if content is None or not content.strip() or not _joined(text[end:place]):
            break
        boxes.insert(0, content.strip())
        place = before
    answer = ", ".join(dict.fromkeys(boxes))
    return Found(answer, "box") if len(answer) <= LONGEST else Found(None, problem="the answer is too long")


def _joined(gap: str) -> bool:
    """Whether nothing but a comma, "and" or "or", and layout, stands between two boxes."""
    return len(gap) <= 60 and _JOINED.fullmatch(gap) is not None and _SEPARATES.search(gap) is not None


def _content(text: str, start: int, limit: int) -> tuple[str | None, int]:
    """(what the braces from `start` on hold, where they end); without braces, the word that follows. None: not closed.

    Reads at most LONGEST characters.
    """
    limit = min(limit, start + LONGEST)
    while start < limit and text[start] in " \t":
        start += 1
    if start >= limit:
        return None, -1
    if text[start] != "{":
        end = start
        while end < limit and not text[end].isspace() and text[end] not in "$.,;":
            end += 1
        return text[start:end], end
    depth, at = 0, start
    while at < limit:
        character = text[at]
        if character == "\\":
            at += 1  # the next character is escaped
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : at], at + 1
        at += 1
    return None, -1


def _last_anchor(text: str) -> tuple[int, str]:
    # `lower` can change the length of a text ("\u0130" becomes two characters), and places would be off.
    lower = text.lower() if text.isascii() else "".join(c.lower() if c.isascii() else c for c in text)
    return max((lower.rfind(anchor), anchor) for anchor in ANCHORS)


def _line_after(text: str, start: int) -> str:
    """The first line with something on it from `start` on, without marks of layout around it."""
    piece = text[start : start + LONGEST].lstrip(" \t\r\n:*_")
    return piece.partition("\n")[0].strip(" \t\r*_").removesuffix(".").rstrip(" *_")


def options(problem: str) -> dict[str, str]:
    """The options that a problem lists, by letter: {} unless they are A, B, C and so on, each once, in order."""
    tail = problem[-LONGEST:]
    found = [(match[1] or match[2], match.start(), match.end()) for match in _OPTION.finditer(tail)]
    if len(found) < 3 or [letter for letter, _, _ in found] != list("ABCDEFGHIJ"[: len(found)]):
        return {}
    ends = [start for _, start, _ in found[1:]] + [len(tail)]
    texts = [_trimmed(tail[after:end]) for (_, _, after), end in zip(found, ends, strict=True)]
    return {letter: text for (letter, _, _), text in zip(found, texts, strict=True)} if all(texts) else {}


def _trimmed(text: str) -> str:
    """Without spaces of any kind around, LaTeX's too."""
    text = text.strip()
    while match := _LAYOUT.match(text):
        text = text[match.end() :]
    while True:
        cut = re.sub(r"(?:\\(?:qquad|quad|newline|hfill|\\|[;,!:])|[\s$~,;])$", "", text[-LONGEST:])
        if cut == text:
            return text
        text = cut
