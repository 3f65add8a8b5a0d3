"""The records of one update as one text: what the page unpacks when somebody opens the update.

    base64( deflate( length of the JSON, 4 bytes | JSON | token numbers, 4 bytes each | arrays | flags, 1 byte each ) )

All little-endian. The tokens are the prompts of the groups one after the other, then the responses. Each array has one
16-bit float for each response token, first all high bytes, then all low ones, which deflate better apart.
"""

from __future__ import annotations

import base64
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlad.report import knights, mathml
from rlad.report.tokens import Segments, Vocabulary, visible
from rlad.report.view import Group, Rollout, Step
from rlad.report.words import FILTERS

ARRAYS = "logps old_logps teacher_logps ref_logps anchor log_ratio entropy advantage contribution changed".split()
FLAGS = "mask clipped_low clipped_high clamped branch".split()  # bit 0, 1, ...
LONGEST_TEXT = 4_000  # characters of an answer or explanation in the page


class Words:
    """The tokens that a report shows, numbered by first use: the page holds each text once."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[int, int], int] = {}
        self.shown: list[list[Any]] = []

    def number(self, run: int, vocabulary: Vocabulary, token: int) -> int:
        """The number of a token of a run's vocabulary."""
        key = (run, token)
        if key not in self.numbers:
            self.numbers[key] = len(self.shown)
            self.shown.append([token, int(vocabulary.special(token)), vocabulary.segments(token)])
        return self.numbers[key]


def packed(step: Step, run: int, vocabulary: Vocabulary, words: Words) -> str:
    """An update, as the module says."""
    rollouts = [rollout for _, rollout in step.rollouts]
    tokens = [group.first["prompt_tokens"] for group in step.groups] + [each.tokens for each in rollouts]
    numbers = [words.number(run, vocabulary, token) for some in tokens for token in some]
    arrays = {name: _joined([each.arrays[name] for each in rollouts]) for name in ARRAYS}
    if np.array_equal(arrays["old_logps"], arrays["logps"], equal_nan=True):
        del arrays["old_logps"]  # the page takes the student's: most updates are the first on their rollouts
    arrays = {name: values for name, values in arrays.items() if np.isfinite(values).any()}
    flags = sum(
        (_joined([each.flags[name] for each in rollouts]).astype(np.uint8) << bit for bit, name in enumerate(FLAGS)),
        np.zeros(0, dtype=np.uint8) if not rollouts else np.uint8(0),
    )
    head = {
        "bounds": step.bounds,
        "arrays": list(arrays),
        "groups": [_group(group) for group in step.groups],
    }
    text = json.dumps(head, allow_nan=False, separators=(",", ":")).encode()
    raw = b"".join(
        [
            struct.pack("<I", len(text)),
            text,
            np.asarray(numbers, dtype="<u4").tobytes(),
            *(_half(values) for values in arrays.values()),
            np.asarray(flags, dtype=np.uint8).tobytes(),
        ]
    )
    return base64.b64encode(zlib.compress(raw, 9)).decode()


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _half(values: np.ndarray) -> bytes:
    with np.errstate(over="ignore"):
        half: np.ndarray = np.clip(values, -65504, 65504).astype("<f2").view(np.uint8)
    high, low = bytes(half[1::2]), bytes(half[0::2])
    return high + low


def _group(group: Group) -> dict[str, Any]:
    first = group.first
    right = group.right
    return {
        "n": group.number,
        "prompt": len(first["prompt_tokens"]),
        "text": first["prompt"],
        "math": mathml.with_math(first["prompt"]),
        "task": first["task"],
        "difficulty": first["difficulty"],
        "why": first["kept_why"],
        "dropped": first["dropped"],
        "reason": first["reason"],
        "flat": group.flat,
        "right": right,
        "gold": _answer(first["gold"]),
        "puzzle": list(group.puzzle.said) if group.puzzle else None,
        "rollouts": [_rollout(group, each) for each in group.rollouts],
    }


def _rollout(group: Group, rollout: Rollout) -> dict[str, Any]:
    row = rollout.row
    found = {
        "i": rollout.index,
        "length": len(rollout.tokens),
        "reward": finite(row["reward"]),
        "parts": {name: finite(value) for name, value in (row["reward_parts"] or {}).items()},
        "advantage": finite(row["advantage"]),
        "weight": finite(rollout.weight),
        "likes": finite(rollout.likes),
        "stop": row["stop"],
        "correct": row["correct"],
        "extracted": _answer(row["extracted"]),
        "explanation": _short(row["explanation"]),
        "marks": [name for name in FILTERS if name in rollout.marks],
    }
    if group.puzzle is not None:
        read = knights.reading(group.puzzle, row["response"])
        found["people"], found["assumed"] = read.answer, read.assumed
    return found


def finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def _short(text: str | None) -> str | None:
    if text is None or len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]} … ({len(text) - LONGEST_TEXT} characters more)"


def _answer(text: str | None) -> dict[str, Any] | None:
    """An answer as it is, with what is invisible marked, and as a formula where it is one."""
    if text is None:
        return None
    short = _short(text) or ""
    shown: Segments = visible(short)
    return {"shown": _merged(shown), "math": mathml.answer(text)}


def _merged(shown: Segments) -> list[tuple[str, str]]:
    """Spaces between words need no mark in an answer."""
    pieces: list[list[str]] = []
    for kind, text in shown:
        if kind == "w" and set(text) == {"\u00b7"}:
            kind, text = "", text.replace("\u00b7", " ")
        if pieces and pieces[-1][0] == kind:
            pieces[-1][1] += text
        else:
            pieces.append([kind, text])
    return [(kind, text) for kind, text in pieces]


def brief(step: Step) -> list[list[Any]]:
    """What the page knows of an update before it is opened: [group, why, flat, dropped, right, rollouts], and of each
    rollout [index, filters as bits, length, reward, advantage]."""
    bits = {name: 1 << place for place, name in enumerate(FILTERS)}
    return [
        [
            group.number,
            group.first["kept_why"],
            int(group.flat),
            group.first["reason"] if group.first["dropped"] else None,
            group.right,
            [
                [
                    each.index,
                    sum(bits[name] for name in each.marks),
                    len(each.tokens),
                    finite(round(each.row["reward"], 4)),
                    finite(round(each.row["advantage"], 4)),
                ]
                for each in group.rollouts
            ],
        ]
        for group in step.groups
    ]


def unpacked(text: str) -> tuple[dict[str, Any], np.ndarray, Mapping[str, np.ndarray], np.ndarray]:
    """(JSON, tokens, arrays, flags) of `packed`: what the page does, for tests and other readers."""
    raw = zlib.decompress(base64.b64decode(text))
    (size,) = struct.unpack_from("<I", raw)
    head = json.loads(raw[4 : 4 + size])
    count = sum(rollout["length"] for group in head["groups"] for rollout in group["rollouts"])
    total = count + sum(group["prompt"] for group in head["groups"])
    at = 4 + size
    tokens = np.frombuffer(raw, "<u4", total, at)
    at += 4 * total
    arrays = {}
    for name in head["arrays"]:
        high, low = (np.frombuffer(raw, np.uint8, count, at + place * count) for place in (0, 1))
        arrays[name] = np.stack([low, high], axis=1).reshape(-1).view("<f2").astype(float)
        at += 2 * count
    return head, tokens, arrays, np.frombuffer(raw, np.uint8, count, at)
