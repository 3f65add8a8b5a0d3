"""How much of the wrong teacher's verdict gets through: `python recipes/studies/verdicts.py` (after teachers.yaml).

The wrong teacher (teachers.py) exchanges the words for the two roles in its answers. Of the recorded rollouts of each
run beside it, this prints by step the share of those words, as the student wrote them, that the teacher would have
written too. Before training there is none. Recorded groups are chosen (docs/report.md), not drawn.
"""

from __future__ import annotations

from pathlib import Path

from teachers import FOLDER, ROLES, load

from rlad.records import read_rows

AGREES = -1.0  # nats: the teacher gives such a word a probability of nearly 1, or of e^-15


def shares(folder: Path, words: set[int]) -> dict[int, tuple[int, int]]:
    """step -> (words of a verdict that the teacher agrees with, all words of a verdict)."""
    found: dict[int, tuple[int, int]] = {}
    for row in read_rows(folder, "rollout", ["step", "tokens", "teacher_logps"]):
        known = zip(row["tokens"], row["teacher_logps"] or [], strict=False)
        agreed = [value > AGREES for token, value in known if token in words and value == value]  # NaN: no value
        some, of = found.get(row["step"], (0, 0))
        found[row["step"]] = (some + sum(agreed), of + len(agreed))
    return found


def main() -> None:
    """A line a run."""
    _, tokenizer = load("embedded:student")
    words = {tokenizer.encode(word, add_special_tokens=False)[0] for word in ROLES}
    for folder in sorted(FOLDER.glob("*-wrong-seed*/records")):
        counts = sorted(shares(folder, words).items())
        steps = ", ".join(f"{step}: {some / of:.0%}" for step, (some, of) in counts if of)
        print(f"{folder.parent.name}: {steps}")


if __name__ == "__main__":
    main()
