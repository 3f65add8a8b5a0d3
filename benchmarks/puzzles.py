"""Knights & Knaves puzzles a second: `python benchmarks/puzzles.py`. One core, the check for one solution included.

Each number of people is timed over at least a second, so that the first, slower puzzles do not count for much. The
last column is relative to 2 people, which does not depend on the machine.
"""

from __future__ import annotations

import time

from rlad.tasks.knights_knaves.generate import generate


def rate(people: int) -> float:
    """Puzzles a second, in calls of 500 with a new seed each."""
    made, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < 1:
        made += len(generate(people, 500, seed=made))
    return made / seconds


def main() -> None:
    """Command line."""
    two = None
    print("people  puzzles/s  over 2 people")
    for people in (2, 3, 4, 6, 8, 12):
        found = rate(people)
        two = found if two is None else two
        print(f"{people:6}  {found:9,.0f}  {found / two:13.2f}")


if __name__ == "__main__":
    main()
