"""`rlad grade`: one verdict a line for responses that come in on standard input."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator
from io import BufferedReader
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from rlad.errors import RladError

if TYPE_CHECKING:
    from rlad.tasks import Score, Task

READ = 1 << 20  # bytes that are read at once, at most


def grade(
    task: Annotated[
        str, typer.Argument(help="Whose scorer to use: knights_knaves, math, or your own.", show_default=False)
    ],
    scorer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of the task's scorers.", show_default="the task's own")
    ] = None,
) -> int:
    """Score responses: JSON Lines in, JSON Lines out, one line for each line that is not blank, in order.

    A line in: {"response": "...", "names": [...], "solution": [...]} for knights_knaves, {"response": "...", "answer":
    "..."} for math. For the scorer logic-rl a line whose prompt ended in <think> says "prompt_ends_with_think_tag":
    true. A line out: {"value", "correct", "extracted", "explanation"}, or {"error"} for a line that cannot be scored;
    the exit status is then 1. Lines that come together are scored together.
    """
    from rlad.tasks import load_task

    if sys.stdin is None or sys.stdout is None:
        raise RladError("responses come in on standard input and verdicts go out on standard output: one is closed")
    scoring = load_task({"name": task} if scorer is None else {"name": task, "scorer": scorer})
    bad = 0
    for number, verdict in verdicts(scoring, cast(BufferedReader, sys.stdin.buffer)):
        if "error" in verdict:
            bad += 1
            print(f"line {number}: {verdict['error']}", file=sys.stderr)
        print(json.dumps(verdict), flush=True)
    if bad:
        print(f"{bad} line{'s' if bad > 1 else ''} could not be scored", file=sys.stderr)
    return 1 if bad else 0


def verdicts(task: Task, stream: BufferedReader) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, verdict) of each line as it comes: the fields of rlad.tasks.Score, or `error`."""
    before = 0
    for lines in _arrivals(stream):
        if before == 0:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        rows = {number: _row_or_error(line) for number, line in enumerate(lines, before + 1) if line.strip()}
        before += len(lines)
        found = iter(_verdicts(task, [row for row in rows.values() if not isinstance(row, str)]))
        for number, row in rows.items():
            yield number, {"error": row} if isinstance(row, str) else next(found)


def _arrivals(stream: BufferedReader) -> Iterator[list[bytes]]:
    """The lines that are there already, without waiting for more once there is one."""
    rest: list[bytes] = []
    while data := stream.read1(READ):
        first, *lines = data.split(b"\n")
        rest.append(first)
        if lines:
            *whole, last = [b"".join(rest), *lines]
            rest = [last]
            yield whole
    if any(rest):
        yield [b"".join(rest)]


def _verdicts(task: Task, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The verdict on each row: of all together where the task can, else of one after the other."""
    from rlad.tasks import score_all

    if len(rows) > 1 and hasattr(task, "score_many"):
        try:
            return [_fields(score) for score in score_all(task, [row["response"] for row in rows], rows)]
        except Exception:
            pass  # one of them is wrong: find out which
    return [_verdict(task, row) for row in rows]


def _verdict(task: Task, row: dict[str, Any]) -> dict[str, Any]:
    from rlad.tasks.base import checked

    try:
        return _fields(checked(task, task.score(row["response"], row)))
    except KeyError as error:
        return {"error": f"the field {error} is missing"}
    except Exception as error:  # a user's scorer can raise anything
        said = " ".join(str(error).split())
        expected = isinstance(error, (ValueError, TypeError, RladError))
        return {"error": said if said and expected else f"{type(error).__name__}: {said}".removesuffix(": ")}


def _fields(score: Score) -> dict[str, Any]:
    """A score as JSON has it, whatever a user's scorer has put in."""
    extracted = None if score.extracted is None else str(score.extracted)
    return {
        "value": float(score.value),
        "correct": bool(score.correct),
        "extracted": extracted,
        "explanation": str(score.explanation),
    }


def _row_or_error(line: bytes) -> dict[str, Any] | str:
    try:
        return _row(line)
    except ValueError as error:
        return " ".join(str(error).split())


def _row(line: bytes) -> dict[str, Any]:
    """The object on a line. Raises ValueError for anything else, and where its `response` is no text."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON in UTF-8: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("response"), str):
        raise ValueError('a line is a JSON object with a text in "response"')
    return row
