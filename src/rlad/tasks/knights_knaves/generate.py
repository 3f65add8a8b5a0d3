"""Puzzles with exactly one solution, in splits that no seed can make overlap.

A puzzle's split is a function of its identity alone (a bucket of its SHA-256), so two generators with any seeds, sizes
or options agree on where it belongs. The official test puzzles belong to no split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources

from rlad.errors import RladError
from rlad.tasks.knights_knaves.puzzle import MAX_PEOPLE, Puzzle, Statement, fingerprint
from rlad.tasks.knights_knaves.solve import consistent_worlds
from rlad.tasks.knights_knaves.wording import NAMES, quiz_text

SPLITS = ("train", "validation", "test")
MAX_TRIES = 20_000  # in a row without a puzzle: 2 people with few shapes can run dry, and that is said, not waited for


@lru_cache(maxsize=1)
def official_test_fingerprints() -> frozenset[str]:
    """Fingerprints of the official test puzzles (2, 3, 4, 6 and 8 people), shipped with the package."""
    text = resources.files("rlad.tasks.knights_knaves").joinpath("official_test_fingerprints.txt").read_text("ascii")
    return frozenset(line for line in text.split() if line)


def split_of(mark: str) -> str:
    """The split of a puzzle with this fingerprint: "official-test", or one of SPLITS in the ratio 5 : 1 : 2."""
    if mark in official_test_fingerprints():
        return "official-test"
    return (*("train",) * 5, "validation", "test", "test")[int(mark[:8], 16) % 8]


def generate(
    n_people: int, count: int, seed: int, split: str = "train", depth: int = 2, width: int = 2, distinct: bool = False
) -> list[Puzzle]:
    """`count` puzzles of `n_people` people from one split, each with exactly one solution; fixed by the arguments.

    depth: the deepest statement (1 is "X is a knight", 2 joins or negates those). With 1 alone no puzzle has one
    solution: every statement stays as true as its speaker when all roles are swapped. width: most operands of "and" and
    "or". distinct: no identity twice. Raises RladError for arguments out of range, or where there are too few puzzles.
    """
    if not 2 <= n_people <= MAX_PEOPLE:
        raise RladError(f"people must be from 2 to {MAX_PEOPLE}, not {n_people}")
    if split not in SPLITS:
        raise RladError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if not 2 <= depth <= 5 or not 2 <= width <= 6:
        raise RladError(f"depth must be from 2 to 5 and width from 2 to 6, not {depth} and {width}")
    if count < 0:
        raise RladError(f"count must not be negative, not {count}")
    puzzles = _stream(
        n_people, random.Random(f"{seed}/{n_people}/{split}/{depth}/{width}"), split, depth, width, distinct
    )
    return [next(puzzles) for _ in range(count)]


def _stream(n_people: int, rng: random.Random, split: str, depth: int, width: int, distinct: bool) -> Iterator[Puzzle]:
    index, tries, seen = 0, 0, set[str]()
    while True:
        tries += 1
        if tries > MAX_TRIES:
            raise RladError(
                f"found only {index} {'distinct ' if distinct else ''}puzzles of {n_people} people in the {split} "
                f"split at depth {depth} and width {width}; ask for fewer, or for more people, depth or width"
            )
        statements = tuple(_statement(rng, i, n_people, depth, width) for i in range(n_people))
        worlds = consistent_worlds(statements)
        if worlds == 0 or worlds & (worlds - 1):
            continue
        mark = fingerprint(statements)
        if split_of(mark) != split or (distinct and mark in seen):
            continue
        if distinct:
            seen.add(mark)
        world = worlds.bit_length() - 1
        names = tuple(rng.sample(NAMES, n_people))
        solution = tuple(bool(world >> i & 1) for i in range(n_people))
        yield Puzzle(names, statements, solution, quiz_text(names, statements, rng), index)
        index, tries = index + 1, 0


def _statement(rng: random.Random, speaker: int, n_people: int, depth: int, width: int) -> Statement:
    """What `speaker` says: never of themselves alone ("I am a knight" tells nothing, "I am a knave" nobody can say)."""
    while True:
        tree = _tree(rng, n_people, depth, width)
        inner = tree
        while inner[0] == "not":
            inner = inner[1]
        if inner[0] not in ("telling-truth", "lying") or inner[1] != speaker:
            return tree


def _tree(rng: random.Random, n_people: int, depth: int, width: int) -> Statement:
    kind = rng.randrange(6) if depth > 1 else 0
    if kind == 0:
        return ("telling-truth" if rng.random() < 0.5 else "lying", rng.randrange(n_people))
    if kind == 1:
        return ("not", _tree(rng, n_people, depth - 1, width))
    op = ("and", "or", "->", "<=>")[kind - 2]
    operands: list[Statement] = []
    most = min(width, 2 * n_people)  # operands differ, and of leaves there are no more
    for _ in range(2 if kind > 3 or width == 2 else rng.randint(2, most)):
        operand = _tree(rng, n_people, depth - 1, width)
        while operand in operands:
            operand = _tree(rng, n_people, depth - 1, width)
        operands.append(operand)
    return (op, *operands)
