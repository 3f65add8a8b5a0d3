"""A Knights & Knaves puzzle, its official row schema, and its identity.

Statements are trees, as in the official data (arXiv 2410.23123): `("telling-truth", i)`, `("lying", i)`, `("not", t)`,
`("and", t, u, ...)`, `("or", t, u, ...)`, `("->", t, u)`, `("<=>", t, u)`, with people counted from 0.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Statement = tuple[Any, ...]
LEAVES = {"telling-truth": "T", "lying": "L"}
# operator -> (short code, fewest operands, most operands or None, does the order of operands matter)
OPERATORS: dict[str, tuple[str, int, int | None, bool]] = {
    "not": ("!", 1, 1, True),
    "and": ("&", 2, None, False),
    "or": ("|", 2, None, False),
    "->": (">", 2, 2, True),
    "<=>": ("=", 2, 2, False),
}
MAX_DEPTH = 50  # of a tree read from a file: far above any puzzle, far below Python's recursion limit
MAX_PEOPLE = 12


@dataclass(frozen=True)
class Puzzle:
    """One puzzle. `statements[i]` is what person i says; `solution[i]` is True when person i is a knight."""

    names: tuple[str, ...]
    statements: tuple[Statement, ...]
    solution: tuple[bool, ...]
    quiz: str
    index: int = 0

    @property
    def n_people(self) -> int:
        """The number of people."""
        return len(self.names)

    @property
    def solution_text_format(self) -> str:
        """The answer as the official data writes it: one line per person, "(1) Zoey is a knight"."""
        return "\n".join(
            f"({i}) {name} is a {'knight' if knight else 'knave'}"
            for i, (name, knight) in enumerate(zip(self.names, self.solution, strict=True), 1)
        )

    def row(self) -> dict[str, Any]:
        """The puzzle in the official schema, ready for JSON."""
        return {
            "quiz": self.quiz,
            "names": list(self.names),
            "statements": repr(self.statements),
            "solution": list(self.solution),
            "solution_text_format": self.solution_text_format,
            "index": self.index,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Puzzle:
        """Read a row of the official schema. Raises ValueError that names the field which is missing or wrong."""
        for field in ("quiz", "names", "statements", "solution"):
            if field not in row:
                raise ValueError(f"a puzzle row needs the field {field!r}; it has {sorted(row)}")
        names, solution = tuple(row["names"]), tuple(row["solution"])
        if not names or not all(isinstance(name, str) and name and name == name.strip() for name in names):
            raise ValueError(
                f"names must be a list of strings, none empty or with space around it, not {row['names']!r}"
            )
        if len(solution) != len(names):
            raise ValueError(f"{len(names)} names but {len(solution)} entries in solution")
        if len(set(names)) != len(names):
            raise ValueError(f"names must differ from each other: {list(names)}")
        if not isinstance(row["quiz"], str):
            raise ValueError(f"quiz must be a string, not {type(row['quiz']).__name__}")
        statements = parse_statements(row["statements"], len(names))
        return cls(names, statements, tuple(bool(s) for s in solution), row["quiz"], int(row.get("index", 0)))


def parse_statements(statements: Any, n_people: int) -> tuple[Statement, ...]:
    """Statement trees from the official `statements` field (the repr of a tuple; a nested list is read too).

    Only literals are evaluated. Raises ValueError for anything that is not `n_people` well-formed trees.
    """
    if isinstance(statements, str):
        if len(statements) > 100_000:
            raise ValueError(f"statements is {len(statements)} characters long; that is no puzzle")
        try:
            statements = ast.literal_eval(statements)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f"statements is not the repr of a tuple of statements: {error}") from None
    if not isinstance(statements, (tuple, list)) or len(statements) != n_people:
        raise ValueError(f"statements must hold one statement for each of the {n_people} people")
    return tuple(_checked(tree, n_people, MAX_DEPTH) for tree in statements)


def _checked(tree: Any, n_people: int, depth: int) -> Statement:
    if not isinstance(tree, (tuple, list)) or not tree or not isinstance(tree[0], str):
        raise ValueError(f"not a statement: {str(tree)[:80]}")
    if depth == 0:
        raise ValueError(f"a statement is nested deeper than {MAX_DEPTH}")
    op, *operands = tree
    if op in LEAVES:
        if len(operands) != 1 or type(operands[0]) is not int or not 0 <= operands[0] < n_people:
            raise ValueError(f"{op!r} needs the number of one of the {n_people} people, from 0, not {operands}")
        return (op, operands[0])
    if op not in OPERATORS:
        raise ValueError(f"unknown statement {op!r}; known are {[*LEAVES, *OPERATORS]}")
    _, fewest, most, _ = OPERATORS[op]
    if len(operands) < fewest or (most is not None and len(operands) > most):
        raise ValueError(
            f"{op!r} takes {fewest if fewest == most else f'at least {fewest}'} operands, not {len(operands)}"
        )
    return (op, *(_checked(operand, n_people, depth - 1) for operand in operands))


def _write(tree: Statement, label: Sequence[str]) -> str:
    """The tree as a short string in which person i is called label[i] and the operands of and, or, <=> are sorted."""
    op = tree[0]
    if op in LEAVES:
        return LEAVES[op] + label[tree[1]]
    code, _, _, ordered = OPERATORS[op]
    operands = [_write(operand, label) for operand in tree[1:]]
    return f"{code}({','.join(operands if ordered else sorted(operands))})"


def _people_in(tree: Statement) -> set[int]:
    if tree[0] in LEAVES:
        return {tree[1]}
    return set().union(*(_people_in(operand) for operand in tree[1:]))


def _refine(statements: Sequence[Statement], mentions: Sequence[Sequence[int]], color: list[int]) -> list[int]:
    """Split colour classes until what a person says, and how others speak of them, tells no two of a class apart.

    Colour refinement (Weisfeiler & Leman, 1968): the result does not depend on the order of the people.
    """
    n = len(statements)
    classes = len(set(color))
    while classes < n:
        label = [f"{c}." for c in color]
        said = [f"{label[i]}{_write(statements[i], label)}" for i in range(n)]
        signature = []
        for i in range(n):
            plain = label[i]
            label[i] = "*"
            about = sorted(f"{label[j]}{_write(statements[j], label)}" for j in mentions[i])
            label[i] = plain
            signature.append((color[i], said[i], about))
        order = {s: k for k, s in enumerate(sorted({(c, w, tuple(a)) for c, w, a in signature}))}
        color = [order[c, w, tuple(a)] for c, w, a in signature]
        if len(order) == classes:
            break
        classes = len(order)
    return color


def _labelled(statements: Sequence[Statement], color: Sequence[int]) -> str:
    """The puzzle written with its people in the order of their colours, which all differ.

    People are called by their place, not by their colour: colours can have gaps, and two puzzles could share a text.
    """
    place = sorted(range(len(color)), key=color.__getitem__)
    label = [""] * len(color)
    for k, i in enumerate(place):
        label[i] = str(k)
    return ";".join(_write(statements[i], label) for i in place)


def _single_out(
    statements: Sequence[Statement], mentions: Sequence[Sequence[int]], color: list[int], i: int
) -> list[int]:
    marked = [2 * c + 1 for c in color]
    marked[i] -= 1
    return _refine(statements, mentions, marked)


def _greedy(statements: Sequence[Statement], mentions: Sequence[Sequence[int]], color: list[int]) -> str:
    """The puzzle as written when ties are broken by taking the first person each time."""
    while (cell := _first_tie(color)) is not None:
        color = _single_out(statements, mentions, color, cell[0])
    return _labelled(statements, color)


def _first_tie(color: Sequence[int]) -> list[int] | None:
    cells: dict[int, list[int]] = {}
    for i, c in enumerate(color):
        cells.setdefault(c, []).append(i)
    return next((cells[c] for c in sorted(cells) if len(cells[c]) > 1), None)


def _canonical(statements: Sequence[Statement], mentions: Sequence[Sequence[int]], color: list[int]) -> str:
    cell = _first_tie(color)
    if cell is None:
        return _labelled(statements, color)
    best: str | None = None
    seen: set[str] = set()
    for i in cell:
        branch = _single_out(statements, mentions, color, i)
        # Two people of a cell whose greedy descents write the same text are exchanged by a symmetry of the puzzle:
        # the second branch can only repeat the first. This is what keeps symmetric puzzles from costing n!.
        leaf = _greedy(statements, mentions, branch)
        if leaf in seen:
            continue
        seen.add(leaf)
        written = _canonical(statements, mentions, branch)
        best = written if best is None else min(best, written)
    assert best is not None
    return best


def identity(statements: Sequence[Statement]) -> str:
    """A text equal for two puzzles exactly when they are the same up to permuting the people and the operands of
    and, or, <=>. Names and wording play no part. Colour refinement with ties broken one person at a time, not n!."""
    people = [_people_in(tree) for tree in statements]
    mentions = [[j for j, said in enumerate(people) if i in said] for i in range(len(statements))]
    return f"{len(statements)}|" + _canonical(
        statements, mentions, _refine(statements, mentions, [0] * len(statements))
    )


def fingerprint(statements: Sequence[Statement]) -> str:
    """SHA-256 of the identity, in hexadecimal."""
    return hashlib.sha256(identity(statements).encode()).hexdigest()
