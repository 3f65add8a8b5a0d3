"""The words of a puzzle: who speaks, and how a statement reads in English."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlad.tasks.knights_knaves.puzzle import LEAVES, Statement

NAMES = tuple(
    "Abigail Ada Aiden Alexander Amelia Aria Aurora Ava Avery Benjamin Charlotte Chloe Clara Daniel David Elizabeth "
    "Ella Emily Emma Ethan Evelyn Felix Grace Harper Henry Hugo Iris Isabella Jack Jackson Jacob James Joseph Julian "
    "Liam Lily Logan Lucas Luke Mason Matthew Mia Michael Nina Noah Oliver Olivia Oscar Owen Penelope Riley Rose Ruby "
    "Samuel Scarlett Sebastian Simon Sofia Sophia Theo Victoria William Zoey".split()
)

_PLACES = (
    "On this island everyone is either a knight or a knave.",
    "You land on an island where only knights and knaves live.",
    "An island is home to knights and knaves, and to nobody else.",
    "Each inhabitant of a far island is a knight or a knave.",
    "A small and special island is inhabited by knights and knaves only.",
)
_RULES = (
    "A knight always tells the truth and a knave always lies.",
    "Knights never lie, and knaves never tell the truth.",
    "All that a knight says is true; all that a knave says is false.",
    "Knights tell the truth, while knaves lie, always.",
)
_MEETINGS = (
    "You meet {n} inhabitants: {people}.",
    "Here are {n} of them: {people}.",
    "You talk to {n} people: {people}.",
    "Before you stand {people}.",
)
_QUESTIONS = (
    "Who is a knight and who is a knave?",
    "Tell the knights from the knaves.",
    "So which of them are knights, and which are knaves?",
    "What is each of them, a knight or a knave?",
)
_VERBS = (
    "says said stated states claimed claims remarked noted declared asserted commented mentioned announced replied "
    "insisted observed added answered explained expressed whispered shouted".split()
)
# {n} the speaker, {v} a verb, {S} the statement as a sentence, {s} as a clause
_FRAMES = (
    '{n} {v}, "{S}".',
    '{n} {v}, "{S}."',
    '{n} {v}: "{S}".',
    '"{S}," {n} {v}.',
    '"{S}," {v} {n}.',
    '"{S}" - {n}.',
    'According to {n}, "{S}".',
    'In the words of {n}: "{S}".',
    'In {n}\'s words: "{S}".',
    'As {n} puts it, "{S}".',
    'You hear {n} saying, "{S}".',
    'A statement by {n}: "{S}".',
    "{n} {v} that {s}.",
    "{n} tells you that {s}.",
)


def quiz_text(names: Sequence[str], statements: Sequence[Statement], rng: random.Random) -> str:
    """The puzzle in English: the island, the people, one sentence for each statement, the question."""
    people = f"{', '.join(names[:-1])}, and {names[-1]}"
    intro = f"{rng.choice(_PLACES)} {rng.choice(_RULES)} {rng.choice(_MEETINGS).format(n=len(names), people=people)}"
    said = []
    for name, tree in zip(names, statements, strict=True):
        clause = statement_text(tree, names)
        frame = rng.choice(_FRAMES)
        said.append(frame.format(n=name, v=rng.choice(_VERBS), s=clause, S=clause[0].upper() + clause[1:]))
    return f"{intro} {' '.join(said)} {rng.choice(_QUESTIONS)}"


def statement_text(tree: Statement, names: Sequence[str]) -> str:
    """A statement in English, lower case at its start unless a name stands there; in parentheses where it is nested."""
    op = tree[0]
    if op in LEAVES:
        return f"{names[tree[1]]} is a {'knight' if op == 'telling-truth' else 'knave'}"
    if op == "not":
        if tree[1][0] in LEAVES:
            return f"{names[tree[1][1]]} is not a {'knight' if tree[1][0] == 'telling-truth' else 'knave'}"
        return f"it is not true that ({statement_text(tree[1], names)})"
    parts = [statement_text(t, names) if _plain(t) else f"({statement_text(t, names)})" for t in tree[1:]]
    if op == "->":
        return f"if {parts[0]} then {parts[1]}"
    if op == "<=>":
        return f"{parts[0]} if and only if {parts[1]}"
    return f" {op} ".join(parts)


def _plain(tree: Statement) -> bool:
    return tree[0] in LEAVES or (tree[0] == "not" and tree[1][0] in LEAVES)
