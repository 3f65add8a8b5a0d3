"""All solutions of a puzzle, by truth tables held in the bits of an integer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from rlad.tasks.knights_knaves.puzzle import Statement


@lru_cache(maxsize=32)
def _tables(n_people: int) -> tuple[int, tuple[int, ...]]:
    """(all ones, table of each person): bit w of person i's table is 1 where i is a knight in world w (bit i of w)."""
    worlds = 1 << n_people
    full = (1 << worlds) - 1
    # worlds where bit i is set: blocks of 2^i zeros and 2^i ones, repeated
    return full, tuple(full // ((1 << (1 << i)) + 1) << (1 << i) for i in range(n_people))


def truth_table(tree: Statement, n_people: int) -> int:
    """Bit w is 1 where the statement is true in world w (person i is a knight in w when bit i of w is 1)."""
    full, person = _tables(n_people)
    return _table(tree, full, person)


def _table(tree: Statement, full: int, person: Sequence[int]) -> int:
    op = tree[0]
    if op == "telling-truth":
        return person[tree[1]]
    if op == "lying":
        return full ^ person[tree[1]]
    first = _table(tree[1], full, person)
    if op == "not":
        return full ^ first
    if op == "->":
        return (full ^ first) | _table(tree[2], full, person)
    if op == "<=>":
        return full ^ first ^ _table(tree[2], full, person)
    for operand in tree[2:]:
        value = _table(operand, full, person)
        first = first & value if op == "and" else first | value
    return first


def consistent_worlds(statements: Sequence[Statement]) -> int:
    """Bit w is 1 where world w is a solution: each person is a knight exactly when their statement is true."""
    full, person = _tables(len(statements))
    worlds = full
    for i, tree in enumerate(statements):
        worlds &= full ^ person[i] ^ _table(tree, full, person)
        if not worlds:
            break
    return worlds


def solutions(statements: Sequence[Statement]) -> list[tuple[bool, ...]]:
    """Every assignment (True for a knight) that makes each person a knight exactly when their statement is true."""
    worlds, found = consistent_worlds(statements), []
    while worlds:
        w = (worlds & -worlds).bit_length() - 1
        found.append(tuple(bool(w >> i & 1) for i in range(len(statements))))
        worlds &= worlds - 1
    return found
