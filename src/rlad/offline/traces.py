"""Traces: a teacher's responses to a task's problems, scored, with those that are worth training on marked as kept."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlad.errors import RladError
from rlad.evaluation.generate import Backend, Response, generate_batches
from rlad.evaluation.problems import problem_id, response_seed
from rlad.evaluation.run import Settings
from rlad.records import Writer, part, parts, read_about, read_rows
from rlad.tasks.base import Example, Score, Task, score_all

KIND = "trace"
PART = 256  # problems in a part: what a kill can cost
CUT, WRONG, DUPLICATE, CAPPED = "cut off", "wrong", "duplicate", "over the cap"
FREE = ("batch_size",)  # changes no draw (rlad.evaluation.generate)
WEIGHTS = "weights"  # a hash of the teacher's; traces made before it was kept have none, and are taken as they are


@dataclass(frozen=True)
class Traces:
    """What a folder of traces holds of some problems.

    rows: the kept records, in the order of the problems. problems: how many were asked. counts: how many traces were
    kept, and how many left out for which reason. teacher_tokens: generated for all of them; None where unknown.
    """

    folder: Path
    rows: list[dict[str, Any]]
    problems: int
    counts: dict[str, int]
    teacher_tokens: int | None

    def __str__(self) -> str:
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.counts.items() if reason != "kept")
        tokens = "" if self.teacher_tokens is None else f"; {self.teacher_tokens:,} teacher tokens"
        return (
            f"{sum(self.counts.values())} traces of {self.problems} problems, {len(self.rows)} kept"
            f"{f' ({left_out})' if left_out else ''}{tokens}"
        )


def make_traces(
    open_backend: Callable[[], Backend],
    task: Task,
    examples: Sequence[Example],
    folder: str | Path,
    settings: Settings,
    per_problem: int,
    about: Mapping[str, Any],
    say: Callable[[str], None],
) -> Traces:
    """Sample `settings.samples` responses to every example and keep those that `reasons` has nothing against.

    open_backend: the teacher; called only where there is something left to do. about: what else the traces depend on
    (teacher, revision, task), kept with them. A part of the folder is written for every PART problems, in their order,
    and a later call goes on behind the last one; with more examples too, as long as the first ones are the same.

    Raises RladError where the folder holds traces that were made in another way, or for other problems.
    """
    settings.sampling.check(settings.samples, settings.batch_size)
    identity = json.loads(json.dumps({**about, **settings.to_json(), "per_problem": per_problem}))
    examples = without_repetitions(examples)
    ids = [problem_id(example) for example in examples]
    missing = _missing(Path(folder), ids, identity)
    if missing:
        backend, started = open_backend(), time.monotonic()
        writer = Writer(folder, KIND, {"identity": identity, "command": f"rlad sft: {task.name}"})
        for count, number in enumerate(missing, 1):
            chunk = examples[number * PART : (number + 1) * PART]
            rows = _sample(backend, task, chunk, settings, per_problem, identity)
            writer.append(rows, number)
            left = (time.monotonic() - started) / count * (len(missing) - count)
            kept, tokens = sum(row["kept"] for row in rows), sum(row["length"] for row in rows)
            done = min((number + 1) * PART, len(examples))
            say(
                f"traces: {done:6} of {len(examples)} problems; of the last {len(rows)} traces {kept} kept, "
                f"{tokens:,} tokens; {left:3.0f} s left"
            )
    return load_traces(folder, ids)


def load_traces(folder: str | Path, ids: Iterable[str] | None = None) -> Traces:
    """The traces in a folder (or one Parquet file); of these problems alone, where `ids` names them.

    Raises RladError where there are none, or none of them is kept.
    """
    wanted = None if ids is None else set(ids)
    counts: Counter[str] = Counter()
    rows, problems = [], set()
    tokens: int | None = 0
    for row in read_rows(folder, KIND, ("problem", "prompt", "response", "length", "kept", "reason")):
        if wanted is not None and row["problem"] not in wanted:
            continue
        problems.add(row["problem"])
        counts["kept" if row["kept"] else row["reason"] or "not kept"] += 1
        tokens = None if tokens is None or row["length"] is None else tokens + row["length"]
        if row["kept"]:
            rows.append(row)
    if not rows:
        said = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        raise RladError(
            f"no trace in {folder} is fit to be trained on ({said or 'there is none'}): sample more, longer ones, or "
            "choose another teacher"
        )
    return Traces(Path(folder), rows, len(problems), dict(counts), tokens)


def reasons(responses: Sequence[Response], correct: Sequence[bool], per_problem: int) -> list[str | None]:
    """Why each response to one problem is left out; None where it is kept.

    CUT: it has no end. WRONG: by the task's score. DUPLICATE: of an earlier one that is neither, white space aside.
    CAPPED: `per_problem` earlier ones are kept. The earliest are kept, because those are a fair sample of the teacher.
    """
    seen: set[str] = set()
    found: list[str | None] = []
    for response, right in zip(responses, correct, strict=True):
        text = " ".join(response.text.split())
        if response.truncated:
            found.append(CUT)
        elif not right:
            found.append(WRONG)
        elif text in seen:
            found.append(DUPLICATE)
        else:
            found.append(None if len(seen) < per_problem else CAPPED)
            seen.add(text)
    return found


def without_repetitions(examples: Sequence[Example]) -> list[Example]:
    """The examples without those whose prompt has been there before: a problem is asked once."""
    return list({problem_id(example): example for example in reversed(examples)}.values())[::-1]


def _missing(folder: Path, ids: Sequence[str], identity: Mapping[str, Any]) -> list[int]:
    """The numbers of the parts that have to be made. Raises RladError for a folder with something else in it."""
    there = parts(folder)
    for path in there.values():
        _check_same(folder, read_about(path).get("identity", {}), identity)
    missing = []
    for number in range(-(-len(ids) // PART)):
        wanted = list(ids[number * PART : (number + 1) * PART])
        found = _problems(part(folder, number)) if number in there else []
        if found[: len(wanted)] == wanted:
            continue
        if found != wanted[: len(found)]:
            raise RladError(f"{there[number]} holds traces of other problems: choose another folder")
        missing.append(number)
    return missing


def _check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises RladError that names what traces of the folder were made with and these would not be."""
    free = FREE if WEIGHTS in old and WEIGHTS in new else (*FREE, WEIGHTS)
    changed = sorted(name for name in old.keys() | new.keys() if name not in free and old.get(name) != new.get(name))
    if changed:
        said = "; ".join(f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in changed)
        raise RladError(
            f"{folder} holds traces that were made in another way: {said}. Go on as it was, or choose another folder"
        )


def _problems(path: Path) -> list[str]:
    return list(dict.fromkeys(row["problem"] for row in read_rows(path, KIND, ("problem",))))


def _sample(
    backend: Backend,
    task: Task,
    examples: Sequence[Example],
    settings: Settings,
    per_problem: int,
    identity: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The records of one part."""
    ids = [problem_id(example) for example in examples]
    prompts = [settings.prompt.ids(backend.tokenizer, example["prompt"]) for example in examples]

    def seeds(place: tuple[int, int]) -> int:
        return response_seed(settings.seed, (ids[place[0]], 0), place[1])

    found: dict[tuple[int, int], Response] = {}
    for batch in generate_batches(backend, prompts, settings.samples, seeds, settings.sampling, settings.batch_size):
        found |= dict(batch)
    places = sorted(found)
    scores = score_all(task, [found[place].text for place in places], [examples[i] for i, _ in places])
    scored = dict(zip(places, scores, strict=True))
    rows = []
    for i, example in enumerate(examples):
        mine = [(i, j) for j in range(settings.samples)]
        why = reasons([found[place] for place in mine], [scored[place].correct for place in mine], per_problem)
        for place, reason in zip(mine, why, strict=True):
            row = _row(task, example, found[place], scored[place], reason)
            made = {"teacher": str(identity["teacher"]), "revision": identity.get("revision")}
            drawn = {"problem": ids[i], "sample": place[1], "seed": seeds(place), "settings": json.dumps(identity)}
            rows.append(row | made | drawn)
    return rows


def _row(task: Task, example: Example, response: Response, score: Score, reason: str | None) -> dict[str, Any]:
    return {
        "task": task.name,
        "difficulty": str(example.get("difficulty", "all")),
        "prompt": json.dumps(example["prompt"]),
        "response": response.text,
        "length": response.tokens,
        "truncated": response.truncated,
        "value": float(score.value),
        "correct": bool(score.correct),
        "extracted": score.extracted,
        "kept": reason is None,
        "reason": reason,
        "example": json.dumps(example, default=str),
    }
