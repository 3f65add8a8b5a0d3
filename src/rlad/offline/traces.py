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
from rlad.records import Writer, part, parts, read_about, read_rows, write
from rlad.tasks.base import Example, Score, Task, score_all

KIND = "trace"
PART = 256  # problems in a part: what a kill can cost
CUT, WRONG, DUPLICATE, CAPPED = "cut off", "wrong", "duplicate", "over the cap"
FREE = ("batch_size",)  # changes no draw (rlad.evaluation.generate)
WEIGHTS, BACKEND = "weights", "backend"  # a hash of the teacher's weights; what generates with them
LATER = (WEIGHTS, BACKEND, "tokenizer")  # traces made before these were kept lack them, and are taken as they are


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
    and a later call goes on behind the last one; with more examples too, as long as the first ones are the same. What
    is there is scored again, since a problem's answer or the scorer may be another by now; the responses stay.

    Raises RladError where the folder holds traces that were made in another way, or for other problems.
    """
    settings.sampling.check(settings.samples, settings.batch_size)
    identity = json.loads(json.dumps({**about, **settings.to_json(), "per_problem": per_problem}))
    examples = without_repetitions(examples)
    ids = [problem_id(example) for example in examples]
    missing = _missing(Path(folder), ids, identity)
    _score_again(task, examples, Path(folder), missing, per_problem, say)
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
    free = {*FREE, *(name for name in LATER if name not in old or name not in new)}
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
    responses = [[found[i, j] for j in range(settings.samples)] for i in range(len(examples))]
    made = {
        "teacher": str(identity["teacher"]),
        "revision": identity.get("revision"),
        "settings": json.dumps(identity),
    }
    rows = []
    for i, verdicts in enumerate(_judged(task, examples, responses, per_problem)):
        for j, verdict in enumerate(verdicts):
            response = responses[i][j]
            said = {"response": response.text, "length": response.tokens, "truncated": response.truncated}
            drawn = {"problem": ids[i], "sample": j, "seed": seeds((i, j)), "prompt": json.dumps(examples[i]["prompt"])}
            rows.append(verdict | said | made | drawn)
    return rows


def _score_again(
    task: Task,
    examples: Sequence[Example],
    folder: Path,
    missing: Sequence[int],
    per_problem: int,
    say: Callable[[str], None],
) -> None:
    """Write anew the parts that hold another verdict than the task's of today, and say of how many traces.

    missing: the numbers of the parts that are to be made, and are left alone here.
    """
    traces: Counter[str] = Counter()
    for number in [each for each in range(-(-len(examples) // PART)) if each not in missing]:
        rows = list(read_rows(part(folder, number), KIND))
        stale = _stale(task, examples[number * PART : (number + 1) * PART], rows, per_problem, traces)
        if stale:
            about = read_about(part(folder, number))
            about = {name: value for name, value in about.items() if name not in ("kind", "version")}
            write(part(folder, number), KIND, [row | stale.get(i, {}) for i, row in enumerate(rows)], about)
    if traces["stale"]:
        say(
            f"traces: {traces['stale']} of {traces['all']} were scored by other columns of their problem, or another "
            f"scorer, and have been scored again: {traces['kept']} kept, {traces['kept before']} before"
        )


def _stale(
    task: Task, examples: Sequence[Example], rows: Sequence[Mapping[str, Any]], per_problem: int, traces: Counter[str]
) -> dict[int, dict[str, Any]]:
    """The columns to replace, by the place of their row; rows of other problems stay. Counts in `traces`."""
    places: dict[str, list[int]] = {problem_id(example): [] for example in examples}
    for i, row in enumerate(rows):
        places.get(row["problem"], []).append(i)
    responses = [
        [Response(rows[i]["response"], rows[i]["length"], rows[i]["truncated"]) for i in mine]
        for mine in places.values()
    ]
    found = {}
    judged = _judged(task, examples, responses, per_problem)
    for mine, verdicts in zip(places.values(), judged, strict=True):
        for i, verdict in zip(mine, verdicts, strict=True):
            traces.update({"all": 1, "kept": int(verdict["kept"]), "kept before": int(rows[i]["kept"])})
            if any(verdict[name] != rows[i][name] for name in ("value", "correct", "reason", "example")):
                found[i] = verdict
    traces["stale"] += len(found)
    return found


def _judged(
    task: Task, examples: Sequence[Example], responses: Sequence[Sequence[Response]], per_problem: int
) -> list[list[dict[str, Any]]]:
    """What the task makes of responses[i] to examples[i], as columns of their records."""
    places = [(i, j) for i, mine in enumerate(responses) for j in range(len(mine))]
    scores = score_all(task, [responses[i][j].text for i, j in places], [examples[i] for i, _ in places])
    scored = dict(zip(places, scores, strict=True))
    judged = []
    for i, (example, mine) in enumerate(zip(examples, responses, strict=True)):
        verdicts = [scored[i, j] for j in range(len(mine))]
        why = reasons(mine, [verdict.correct for verdict in verdicts], per_problem)
        judged.append([_verdict(task, example, *each) for each in zip(verdicts, why, strict=True)])
    return judged


def _verdict(task: Task, example: Example, score: Score, reason: str | None) -> dict[str, Any]:
    return {
        "task": task.name,
        "difficulty": str(example.get("difficulty", "all")),
        "value": float(score.value),
        "correct": bool(score.correct),
        "extracted": score.extracted,
        "kept": reason is None,
        "reason": reason,
        "example": json.dumps(example, default=str),
    }
