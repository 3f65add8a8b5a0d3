"""A Knights & Knaves puzzle beside a response: what it assumed, what it said of each person, where that is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlad.tasks.knights_knaves.puzzle import Statement, parse_statements
from rlad.tasks.knights_knaves.score import CLOSE, OPEN, THINK_END, claims
from rlad.tasks.knights_knaves.solve import truth_table
from rlad.tasks.knights_knaves.wording import statement_text

_LONGEST = 20_000  # characters of a response that are read
_ASSUMES = re.compile(r"^\s*(?:try|suppose|assume|let us assume|let's assume|if)\b(.{1,400})$", re.IGNORECASE)
_FIRST_CLAUSE = re.compile(r"[.;:]|\bthen\b", re.IGNORECASE)
_VERDICT = re.compile(r"^\s*(.{1,60}?)=(knight|knave):.{0,200}\b(ok|clash)\s*$")


@dataclass(frozen=True)
class Puzzle:
    """The puzzle of a group. said: for each person, "Zoey (a knight) says: ..."."""

    names: tuple[str, ...]
    solution: tuple[bool, ...]
    statements: tuple[Statement, ...] = ()
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """A response, person by person.

    answer: (name, role that it gives, role in truth), role None where it gives none that can be read.
    assumed: for each assignment that it tries, (the assignment, what it is in truth, what is wrong in its check).
    """

    answer: list[tuple[str, str | None, str]] = field(default_factory=list)
    assumed: list[tuple[str, str, str]] = field(default_factory=list)


def puzzle(columns: Mapping[str, Any]) -> Puzzle | None:
    """The puzzle of an example's columns; None where it is none."""
    names, solution = columns.get("names"), columns.get("solution")
    if not isinstance(names, list) or not isinstance(solution, list) or len(names) != len(solution) or not names:
        return None
    if not all(isinstance(name, str) and name for name in names) or not all(type(each) is bool for each in solution):
        return None
    try:
        statements = parse_statements(columns.get("statements"), len(names))
        said = [
            f"{name} ({_role(knight)}) says: {statement_text(tree, names)}"
            for name, knight, tree in zip(names, solution, statements, strict=True)
        ]
    except (ValueError, TypeError):
        return Puzzle(tuple(names), tuple(solution))
    return Puzzle(tuple(names), tuple(solution), statements, tuple(said))


def reading(of: Puzzle, response: str) -> Reading:
    """What a response says of the people of a puzzle. Never raises for a response."""
    text = response[-_LONGEST:]
    start = text.rfind(OPEN, 0, max(text.rfind(CLOSE), 0))
    said: dict[str, bool] = {}
    if start >= 0:
        said, _ = claims(text[start + len(OPEN) : text.find(CLOSE, start)].strip(), of.names)
    answer = [
        (name, _role(said[name]) if name in said else None, _role(knight))
        for name, knight in zip(of.names, of.solution, strict=True)
    ]
    return Reading(answer, _assumed(of, text.rpartition(THINK_END)[0] or text))


def _role(knight: bool) -> str:
    return "a knight" if knight else "a knave"


def _assumed(of: Puzzle, text: str) -> list[tuple[str, str, str]]:
    """The assignments that are tried, each on a line of its own that begins with try, suppose, assume or if."""
    found: list[tuple[dict[str, bool], list[tuple[str, bool]]]] = []
    for line in text.split("\n"):
        if (match := _ASSUMES.match(line)) and (world := _world(of.names, match[1])):
            found.append((world, []))
        elif found and (verdict := _VERDICT.match(line)):
            found[-1][1].append((verdict[1].strip(), verdict[3] == "ok"))
    return [
        (", ".join(f"{name} {_role(knight)}" for name, knight in world.items()), *_truth(of, world, checks))
        for world, checks in found
    ]


def _world(names: Sequence[str], text: str) -> dict[str, bool]:
    clause = text if "=" in text else _FIRST_CLAUSE.split(text)[0]
    found = {}
    for name in names:
        claim = re.search(rf"(?<!\w){re.escape(name)}(?:=| (?:is|were) an? )(knight|knave)\b", clause, re.IGNORECASE)
        if claim:
            found[name] = claim[1].lower() == "knight"
    return found


def _truth(of: Puzzle, world: Mapping[str, bool], checks: Sequence[tuple[str, bool]]) -> tuple[str, str]:
    """(what an assumed assignment is in truth, what the response got wrong when it checked it)."""
    differs = [name for name, knight in zip(of.names, of.solution, strict=True) if world.get(name, knight) != knight]
    if len(world) < len(of.names) or not of.statements:
        return (f"differs from the solution at {', '.join(differs)}" if differs else "agrees with the solution"), ""
    bits = sum(world[name] << i for i, name in enumerate(of.names))
    clashes = [
        name
        for i, (name, tree) in enumerate(zip(of.names, of.statements, strict=True))
        if bool(truth_table(tree, len(of.names)) >> bits & 1) != world[name]
    ]
    in_truth = "the solution" if not differs else f"clashes with what {', '.join(clashes)} says"
    wrong = [
        f"{name} is called {'ok' if ok else 'a clash'} and is {'a clash' if ok else 'ok'}"
        for name, ok in checks
        if name in of.names and ok == (name in clashes)
    ]
    return in_truth, "; ".join(wrong)
