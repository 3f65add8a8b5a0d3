"""The reasoning the embedded pair is taught: try every assignment, check each statement, stop at the first clash.

    <think>
    Try Zoey=knight Oliver=knight
     Zoey=knight: Oliver=knight?no clash
    Try Zoey=knight Oliver=knave
     Zoey=knight: Oliver=knave?yes ok
     Oliver=knave: Oliver=knave?no iff Zoey=knight?no;yes clash
    ...
    </think><answer>(1) Zoey is a knave
    (2) Oliver is a knight</answer>

Each token is one small step: a name copied from the puzzle, a role looked up in the assumption, `?yes` or `?no` for a
part of the statement, `;yes` or `;no` for the whole where a connective joins parts, `ok` or `clash` for the comparison
with the speaker's role. So each can be right or wrong by itself, and a teacher can tell which one is.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from rlad.tasks.knights_knaves.puzzle import Puzzle, Statement

_WORD = {"and": "and", "or": "or", "->": "then", "<=>": "iff"}


class _Reasoner:
    """Writes one trace. With probability `noise` a step comes out wrong, and all that follows builds on the error."""

    def __init__(self, puzzle: Puzzle, noise: float, rng: random.Random) -> None:
        self.puzzle, self.noise, self.rng = puzzle, noise, rng
        self.world: tuple[bool, ...] = ()

    def step(self, value: bool) -> bool:
        return value != (self.noise > 0 and self.rng.random() < self.noise)

    def role(self, i: int) -> tuple[str, bool]:
        knight = self.world[i]
        return f" {self.puzzle.names[i]}={'knight' if knight else 'knave'}", knight

    def leaf(self, tree: Statement) -> tuple[str, bool]:
        """`Oliver=knave?no`: "is not a knave" is read as one claim, so no second step is needed."""
        claim = True
        while tree[0] == "not":
            claim, tree = not claim, tree[1]
        text, knight = self.role(tree[1])
        truth = self.step(knight == (claim == (tree[0] == "telling-truth")))
        return f"{text}?{'yes' if truth else 'no'}", truth

    def statement(self, tree: Statement) -> tuple[str, bool]:
        inner = tree
        while inner[0] == "not":
            inner = inner[1]
        if inner[0] in ("telling-truth", "lying"):
            return self.leaf(tree)
        if tree[0] == "not" or any(self._nested(t) for t in tree[1:]):
            raise ValueError("the embedded pair reasons about statements of depth 2 at most")
        parts = [self.leaf(t) for t in tree[1:]]
        truths = [truth for _, truth in parts]
        result = self.step(_joined(tree[0], truths))
        return f" {_WORD[tree[0]]}".join(text for text, _ in parts) + f";{'yes' if result else 'no'}", result

    @staticmethod
    def _nested(tree: Statement) -> bool:
        while tree[0] == "not":
            tree = tree[1]
        return tree[0] not in ("telling-truth", "lying")

    def write(self) -> tuple[str, tuple[bool, ...]]:
        names, lines = self.puzzle.names, []
        for self.world in itertools.product((True, False), repeat=len(names)):  # all knights first, all knaves last
            lines.append("Try" + "".join(self.role(i)[0] for i in range(len(names))))
            for i, tree in enumerate(self.puzzle.statements):
                speaker, knight = self.role(i)
                text, truth = self.statement(tree)
                fits = self.step(truth == knight)
                lines.append(f"{speaker}:{text} {'ok' if fits else 'clash'}")
                if not fits:
                    break
            else:
                break  # without an error one assignment fits; after one, the search may end at the last without a fit
        return "\n".join(lines), self.world


def _joined(op: str, truths: Sequence[bool]) -> bool:
    if op == "and":
        return all(truths)
    if op == "or":
        return any(truths)
    return (not truths[0]) or truths[1] if op == "->" else truths[0] == truths[1]


def trace(puzzle: Puzzle, noise: float = 0.0, rng: random.Random | None = None) -> str:
    """The response the pair is trained on: <think>, the search, </think>, <answer>, the assignment it ended at.

    noise: probability in [0, 1) that a step (a truth, a connective's result, a verdict) is wrong.
    Raises ValueError for statements nested deeper than depth 2.
    """
    reasoning, world = _Reasoner(puzzle, noise, rng or random.Random(0)).write()
    answer = "\n".join(
        f"({i}) {name} is a {'knight' if knight else 'knave'}"
        for i, (name, knight) in enumerate(zip(puzzle.names, world, strict=True), 1)
    )
    return f"<think>\n{reasoning}\n</think><answer>{answer}</answer>"
