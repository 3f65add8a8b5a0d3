"""`rlad grade`: one verdict a line for responses that come in on standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlad.errors import RladError

if TYPE_CHECKING:
    from rlad.tasks import Task


def grade(
    task: Annotated[str, typer.Argument(help="Whose scorer to use: knights_knaves, or your own.", show_default=False)],
    scorer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of the task's scorers.", show_default="the task's own")
    ] = None,
) -> int:
    """Score responses: JSON Lines in, JSON Lines out, one line for each line, in order.

    A line in: {"response": "...", "names": [...], "solution": [...]}. A line out: {"value", "correct", "extracted",
    "explanation"}, or {"error"} for a line that cannot be scored; the exit status is then 1.
    """
    from rlad.tasks import load_task

    scoring = load_task({"name": task} if scorer is None else {"name": task, "scorer": scorer})
    bad = 0
    for number, verdict in enumerate(verdicts(scoring, sys.stdin.buffer), 1):
        if "error" in verdict:
            bad += 1
            print(f"line {number}: {verdict['error']}", file=sys.stderr)
        print(json.dumps(verdict), flush=True)
    if bad:
        print(f"{bad} line{'s' if bad > 1 else ''} could not be scored", file=sys.stderr)
    return 1 if bad else 0


def verdicts(task: Task, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The verdict on each line as it comes: the fields of rlad.tasks.Score, or `error`."""
    for line in lines:
        try:
            row = _row(line)
            score = task.score(row["response"], row)
        except KeyError as error:
            yield {"error": f"the field {error} is missing"}
        except (ValueError, TypeError, RladError) as error:
            yield {"error": " ".join(str(error).split()) or type(error).__name__}
        else:
            yield {
                "value": score.value,
                "correct": score.correct,
                "extracted": score.extracted,
                "explanation": score.explanation,
            }


def _row(line: bytes) -> dict[str, Any]:
    """The object on a line. Raises ValueError for anything else, and where its `response` is no text."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON in UTF-8: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("response"), str):
        raise ValueError('a line is a JSON object with a text in "response"')
    return row
