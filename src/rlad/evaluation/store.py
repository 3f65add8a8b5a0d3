"""Where the responses of an evaluation go: a folder of records that a killed evaluation goes on from, or memory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlad.errors import RladError
from rlad.evaluation.generate import Place
from rlad.evaluation.identity import check_same, check_whole, identity, kept_identity, places
from rlad.evaluation.problems import keys, problem_id, response_seed
from rlad.evaluation.results import ALL, AVERAGE, COLUMNS, Evaluation
from rlad.files import FileLock
from rlad.tasks.base import Example, Score, Task

LOCK = ".lock"  # in a folder of records, which one process writes to


class Store:
    """Response records, as they come.

    folder: one part of it is written for each batch. None: they are kept in memory. The store is alone with it until
        `close`, until it is gone or until the process ends.
    settings: how the responses are made. What is `free` of them may be another when an evaluation goes on, because it
        changes no draw; anything else must be what it was.
    about: model, revision and command, kept with the records.

    Raises RladError for a folder that holds something else, or records that were made in another way, or that another
    process writes to.
    """

    free = frozenset(("batch_size", "records"))

    def __init__(
        self,
        task: Task,
        examples: Sequence[Example],
        settings: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
        folder: str | Path | None = None,
        responses: int | None = None,
    ) -> None:
        if not examples:
            raise RladError("there are no examples to evaluate on")
        self.task, self.examples, self.settings, self.about = task, examples, dict(settings), dict(about or {})
        self.responses = len(examples) * self.settings.get("samples", 1) if responses is None else responses
        self.difficulty_name = getattr(task, "difficulty_name", "difficulty")
        names = {_difficulty(example) for example in examples}
        if len(names) > 1 and (taken := names & {AVERAGE, ALL}):
            if any(example.get("difficulty") is None for example in examples):
                raise RladError("some examples have a difficulty and some have none: give one to each, or to none")
            raise RladError(
                f"a difficulty of the examples is called {min(taken)!r}, as the row of the table that sums up the "
                "others: give it another name"
            )
        self._keys = keys([problem_id(example) for example in examples])
        self._columns = [json.dumps(example, default=str) for example in examples]
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None
        self._lock: FileLock | None = None
        if folder is not None:
            self._open(Path(folder))

    def _open(self, folder: Path) -> None:
        from rlad.records import Writer

        settings = {name: value for name, value in self.settings.items() if name not in self.free}
        self._identity = identity(self.task, settings, self.about, self._columns)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RladError(f"cannot keep records in {folder}: {error}") from error
        self._lock = _locked(folder)
        try:
            self._check_same(folder)
        except BaseException:
            self.close()
            raise
        extra = {"responses": self.responses, "difficulty_name": self.difficulty_name}
        about = {**self.about, **extra, "settings": self.settings, "identity": self._identity}
        self._writer = Writer(folder, "response", about)

    def _check_same(self, folder: Path) -> None:
        from rlad.records import parts

        if parts(folder):
            check_same(folder, kept_identity(folder), self._identity)

    def close(self) -> None:
        """Leave the folder to others: nothing can be added from here on, what is there can still be read."""
        if self._lock is not None:
            self._lock.release()

    @property
    def folder(self) -> Path | None:
        """Where the records are; None: in memory."""
        return None if self._writer is None else Path(self._writer.folder)

    def done(self) -> set[Place]:
        """The (problem, sample) that are there already. Raises RladError where one is there twice."""
        return places(self.rows(("order", "sample")), self._where)

    def seed(self, place: Place) -> int:
        """What this response is drawn from."""
        return response_seed(self.settings["seed"], self._keys[place[0]], place[1])

    def add(self, places: Sequence[Place], responses: Sequence[Any], scores: Sequence[Score]) -> None:
        """Keep scored responses: objects with text, tokens and truncated. Raises RladError where the folder is another
        one than it was."""
        settings = json.dumps(self.settings)
        rows = [
            self._row(place, response, score, settings)
            for place, response, score in zip(places, responses, scores, strict=True)
        ]
        if self._writer is None:
            self._rows += rows
            return
        if self._lock is not None and not self._lock.held:
            raise RladError(
                f"{self.folder} was renamed or removed while this evaluation wrote to it, so it ends here: what it had "
                "is where that folder is now"
            )
        self._writer.append(rows)

    def _row(self, place: Place, response: Any, score: Score, settings: str) -> dict[str, Any]:
        i, j = place
        example = self.examples[i]
        return {
            "task": self.task.name,
            "split": self.settings.get("split"),
            "problem": self._keys[i][0],
            "order": i,
            "difficulty": _difficulty(example),
            "sample": j,
            "seed": self.seed(place) if "seed" in self.settings else None,
            "prompt": json.dumps(example["prompt"]),
            "response": response.text,
            "tokens": response.tokens,
            "truncated": response.truncated,
            "value": float(score.value),
            "correct": bool(score.correct),
            "extracted": score.extracted,
            "explanation": score.explanation,
            "format_ok": getattr(score, "format_ok", None),
            "example": self._columns[i],
            "model": str(self.about.get("model", "")),
            "revision": self.about.get("revision"),
            "command": self.about.get("command"),
            "settings": settings,
        }

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Mapping[str, Any]]:
        """The records, in the order in which they came."""
        from rlad.records import parts, read_rows

        if self._writer is None:
            yield from self._rows
        elif parts(self._writer.folder):
            yield from read_rows(self._writer.folder, "response", columns)

    def evaluation(self) -> Evaluation:
        """What the records say. Responses are in it where there is no folder that keeps them.

        Raises RladError where they are not those of this evaluation, each of them once.
        """
        settings = self.settings
        if self.folder is not None:
            settings = {**settings, "records": str(self.folder)}
            self._check_same(self.folder)
        rows = list(self.rows(COLUMNS))
        check_whole(rows, self.responses, self._where)
        return Evaluation.from_rows(rows, self.task.name, self.difficulty_name, settings)

    @property
    def _where(self) -> str | Path:
        return self.folder or "the evaluation"


def _difficulty(example: Example) -> str:
    """The row of the table that it counts in."""
    found = example.get("difficulty")
    return ALL if found is None else str(found)


def _locked(folder: Path) -> FileLock | None:
    """Alone with a folder; None where its lock cannot be opened, as in one that can only be read.

    Raises RladError where another process writes to it.
    """
    try:
        return FileLock(folder / LOCK, wait=False)
    except BlockingIOError:
        raise RladError(
            f"{folder} is being written to by another evaluation: wait for its end, stop it, or choose another folder"
        ) from None
    except OSError:
        return None


def set_aside(folder: str | Path) -> Path | None:
    """Rename a folder that is to be made anew, with the time behind its name; None where there is none.

    Raises RladError where it cannot be renamed, or another process writes to it.
    """
    there = Path(folder)
    if not there.exists():
        return None
    if there.name in ("", ".."):  # the working directory, or one above it
        raise RladError(f"{folder} cannot be set aside: keep the records in a folder of their own")
    if (there / LOCK).is_file() and (lock := _locked(there)):
        lock.release()  # before the renaming: some systems rename no folder with an open file
    aside = there.with_name(f"{there.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        there.rename(aside)
    except OSError as error:
        raise RladError(f"{folder} cannot be set aside: {error}") from error
    return aside
