"""What makes the responses in a folder those of one evaluation, each of them there once."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlad import __version__
from rlad.errors import RladError
from rlad.evaluation.generate import Place
from rlad.tasks.base import Task

NEWER = ("rlad", "scorer")  # parts from before these were kept say nothing of them, and match
ANEW = "begin it anew with --restart, or in another folder"


def identity(task: Task, settings: Mapping[str, Any], about: Mapping[str, Any], examples: Sequence[str]) -> Any:
    """What must be the same in all parts, as JSON reads it: the settings, model and revision, the task, the examples
    (each as JSON), rlad's version and the task's scorer."""
    found = {**settings, **{name: about.get(name) for name in ("model", "revision")}, "task": task.name}
    found["problems"] = hashlib.sha256("\n".join(examples).encode()).hexdigest()[:16]
    return json.loads(json.dumps({**found, "rlad": __version__, "scorer": scorer(task)}))


def scorer(task: Task) -> str | None:
    """The name of a user's reward function or class of task, with 16 hexadecimal digits of its source file's SHA-256.

    None for rlad's own, of which the version is kept, and where there is no source file. What the file imports is not
    looked at.
    """
    found = getattr(task, "reward", None)
    found = inspect.unwrap(found) if callable(found) else type(task)
    while isinstance(found, functools.partial):
        found = inspect.unwrap(found.func)
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        found = type(found)
    if str(found.__module__).partition(".")[0] == "rlad":
        return None
    try:
        source = Path(inspect.getsourcefile(found) or "").read_bytes()
    except (TypeError, OSError):  # built in, or typed at a prompt
        return None
    return f"{found.__qualname__} {hashlib.sha256(source).hexdigest()[:16]}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A few words for each thing in which two identities differ."""
    same = {"problems": "the problems are others", "scorer": "the scorer is another, or its source file has changed"}
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return [
        same.get(name, f"{name} was {old.get(name)!r} and is {new.get(name)!r}")
        for name in names
        if name not in NEWER or (name in old and name in new)
    ]


def kept_identity(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The identity of all parts of a folder, or of a file; empty where they have none. Raises RladError where they
    differ."""
    from rlad.records import parts, read_about

    found: dict[str, Any] | None = None
    for each in parts(path).values() if Path(path).is_dir() else [path]:
        other = read_about(each).get("identity", {})
        if found is not None and (changed := differences(found, other)):
            raise RladError(f"{path} holds responses of two evaluations: {'; '.join(changed)}. Of neither: {ANEW}")
        found = {**(found or {}), **other}
    return found or {}


def check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises RladError where a folder's responses were made in another way."""
    if changed := differences(old, new):
        raise RladError(
            f"{folder} holds responses that were made in another way: {'; '.join(changed)}. Go on as it was, choose "
            "another folder, or begin anew with --restart"
        )


def places(rows: Iterable[Mapping[str, Any]], where: str | os.PathLike[str]) -> set[Place]:
    """The (order, sample) of response records. Raises RladError where one is there twice."""
    found: set[Place] = set()
    for row in rows:
        place = row["order"], row["sample"]
        if place in found:
            raise RladError(
                f"{where} has two responses for sample {place[1]} of problem {place[0]}, as where two processes wrote "
                f"to it: {ANEW}"
            )
        found.add(place)
    return found


def check_whole(rows: Sequence[Mapping[str, Any]], expected: int, where: str | os.PathLike[str]) -> None:
    """Raises RladError where these response records are not as many as expected, each of another place."""
    count = len(places(rows, where))
    if count < expected:
        raise RladError(f"{where} has {count} of {expected} responses: the command that began it will finish it")
    if count > expected:
        raise RladError(f"{where} has {count} responses, and its evaluation only {expected}: {ANEW}")
