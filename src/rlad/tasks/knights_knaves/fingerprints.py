"""Make a list of fingerprints: `python -m rlad.tasks.knights_knaves.fingerprints FILES... > list.txt`.

`official_test_fingerprints.txt`, beside this file, is the list of the official test files of 2, 3, 4, 6 and 8 people
(K-and-K/knights-and-knaves, `test/people*_num100.jsonl`): 64 hexadecimal digits a line, sorted, each once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rlad.errors import RladError
from rlad.tasks.knights_knaves.puzzle import fingerprint
from rlad.tasks.knights_knaves.rows import read_puzzles


def fingerprint_list(files: Iterable[str]) -> list[str]:
    """The fingerprints of all puzzles in files of the official schema, sorted, each once."""
    return sorted({fingerprint(puzzle.statements) for file in files for _, puzzle in read_puzzles(file)})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m rlad.tasks.knights_knaves.fingerprints FILES... (JSON Lines or Parquet)")
    try:
        print("\n".join(fingerprint_list(sys.argv[1:])))
    except RladError as error:
        sys.exit(f"error: {error}")
