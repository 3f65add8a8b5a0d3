"""Puzzles from rows of the official schema: JSON Lines, Parquet, or a dataset on the Hugging Face hub."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlad.errors import RladError
from rlad.tasks.custom import read_json_lines
from rlad.tasks.knights_knaves.puzzle import MAX_PEOPLE, Puzzle
from rlad.tasks.knights_knaves.solve import solutions

FIELDS = ("quiz", "names", "statements", "solution", "solution_text_format", "index")
SUFFIXES = (".jsonl", ".json", ".parquet")
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?::(.+))?")


def check_source(source: str, what: str) -> None:
    """Raise RladError unless `source` is a file of a known kind, or could be a hub dataset. Reads nothing."""
    path = Path(source)
    if path.is_dir():
        raise RladError(f"{what}: {source} is a folder; name a file in it, or a list of files")
    if path.exists():
        if path.suffix not in SUFFIXES:
            raise RladError(f"{what}: {source} must end in .jsonl (JSON Lines) or .parquet")
        return
    hub = _HUB.fullmatch(source)
    if hub is None or path.is_absolute() or source.startswith(".") or hub[1].endswith(SUFFIXES):
        raise RladError(f"{what}: there is no file {source} (a dataset on the hub: owner/name or owner/name:*.jsonl)")


def read_puzzles(source: str, split: str = "train") -> list[tuple[str, Puzzle]]:
    """(where it stands, puzzle) for every row of a file or of a hub dataset's files of `split`.

    Every row is checked, its solution too. Raises RladError that names the file and the line (row, for Parquet) at
    fault.
    """
    check_source(source, "data")
    files = [source] if Path(source).exists() else _hub_files(source, split)
    puzzles = [
        (where, checked_puzzle(row, where))
        for file in files
        for where, row in (_parquet(file) if file.endswith(".parquet") else _json_lines(file))
    ]
    if not puzzles:
        raise RladError(f"{source} holds no puzzles")
    return puzzles


def checked_puzzle(row: Mapping[str, Any], where: str) -> Puzzle:
    """The puzzle of a row. Raises RladError, starting with `where`, for a field that is missing or wrong."""
    for field, kind, kind_name in (("names", str, "strings"), ("solution", bool, "true and false")):
        values = row.get(field)
        if field in row and (not isinstance(values, list) or not all(isinstance(value, kind) for value in values)):
            raise RladError(f"{where}: {field} must be a list of {kind_name}, not {values!r:.200}")
    if type(row.get("index", 0)) is not int:
        raise RladError(f"{where}: index must be a whole number, not {row['index']!r:.200}")
    if not 2 <= len(row.get("names", "ab")) <= MAX_PEOPLE:
        raise RladError(f"{where}: a puzzle has 2 to {MAX_PEOPLE} people, not {len(row['names'])}")
    try:
        puzzle = Puzzle.from_row(row)
    except ValueError as error:
        raise RladError(f"{where}: {error}") from None
    if len({name.casefold() for name in puzzle.names}) != puzzle.n_people:
        raise RladError(f"{where}: names must differ by more than upper and lower case: {', '.join(puzzle.names)}")
    found = solutions(puzzle.statements)
    if found != [puzzle.solution]:
        problem = f"the puzzle has {len(found)} solutions" if len(found) != 1 else "solution does not solve the puzzle"
        raise RladError(f"{where}: {problem}; a row needs its one solution")
    text = row.get("solution_text_format")
    if text is not None and (not isinstance(text, str) or text.split() != puzzle.solution_text_format.split()):
        raise RladError(f"{where}: solution_text_format contradicts names and solution")
    return puzzle


def _json_lines(file: str) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{file}, line {number}", row) for number, row in read_json_lines(file)]


def _parquet(file: str) -> list[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as parquet

    try:
        there = parquet.read_schema(file).names
        rows = parquet.read_table(file, columns=[name for name in FIELDS if name in there]).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError, and so is what is no UTF-8
        raise RladError(f"cannot read {file}: {error}") from None
    return [(f"{file}, row {number}", row) for number, row in enumerate(rows, 1)]


def _hub_files(source: str, split: str) -> list[str]:
    """The files of a hub dataset that match its pattern, or else that lie in a folder named after the split."""
    hub = _HUB.fullmatch(source)
    assert hub is not None
    repository, pattern = hub[1], hub[2]
    from huggingface_hub import snapshot_download

    wanted = pattern or [f"*{suffix}" for suffix in SUFFIXES]
    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", allow_patterns=wanted))
    except Exception as error:  # the hub client has many ways to fail, and each of them means the same here
        raise RladError(f"cannot get the dataset {repository} from the hub: {error}") from error
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in SUFFIXES)
    found = [file for file in found if pattern is None or fnmatch.fnmatch(file, pattern)]
    if pattern is None:
        found = [file for file in found if split in Path(file).parts[:-1]] or found
    if not found:
        raise RladError(f"the dataset {source} has no .jsonl or .parquet file that matches")
    return [str(folder / file) for file in found]
