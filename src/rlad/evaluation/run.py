"""Evaluate a model on a task: what it scored on every problem, tables with intervals, and a file to keep them in."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlad.errors import RladError
from rlad.evaluation.metrics import accuracy_interval, average_interval, mean_at_k, paired_difference, pass_at_k
from rlad.files import whole_file
from rlad.tasks.base import Example, Task

VERSION = 1
AVERAGE = "average"


@dataclass(frozen=True)
class Problem:
    """What a model did on one problem; the lists have one entry per sample.

    problem: a hash of the prompt. difficulty: the row of the table that it counts in. values, correct, extracted: from
    the task's Score. tokens, truncated: from generation.
    """

    problem: str
    difficulty: str
    values: list[float]
    correct: list[bool]
    tokens: list[int]
    truncated: list[bool]
    extracted: list[str | None]
    responses: list[str]

    @property
    def accuracy(self) -> float:
        """The share of its samples that are correct (mean@k)."""
        return mean_at_k(self.correct)


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation. settings: how it was made, to be kept with the numbers."""

    task: str
    difficulty_name: str
    settings: dict[str, Any]
    problems: list[Problem]

    @property
    def accuracies(self) -> list[float]:
        """Accuracy of each problem, in order: what paired differences are taken of."""
        return [problem.accuracy for problem in self.problems]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each difficulty, and their average with equal weights; accuracies with their 95 % interval."""
        rows = [_row(name, problems) for name, problems in _by_difficulty(self.problems).items()]
        if len(rows) > 1:
            rows.append(_average_row(rows))
        return rows

    def table(self) -> str:
        """The rows as text, ready to be printed."""
        samples = int(self.settings["samples"])
        head = [
            self.difficulty_name,
            "problems",
            "accuracy" if samples == 1 else f"mean@{samples}",
            "95 % interval",
            "reward",
        ]
        head += [f"pass@{samples}"] * (samples > 1) + ["tokens", "cut off"]
        lines = [head]
        for row in self.rows():
            line = [row["difficulty"], str(row["problems"]), _percent(row["accuracy"])]
            line += [f"{_percent(row['low'])} to {_percent(row['high'])}", f"{row['reward']:.3f}"]
            line += [_percent(row["pass_at"][str(samples)])] * (samples > 1)
            lines.append([*line, f"{row['tokens']:.0f}", _percent(row["truncated"])])
        return _aligned(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "version": VERSION,
            "task": self.task,
            "difficulty_name": self.difficulty_name,
            "settings": self.settings,
            "summary": self.rows(),
            "problems": [asdict(problem) for problem in self.problems],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json()` to a file, which is there in full or not at all. Makes its folder."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Read what `save` wrote. Raises RladError for a file that is something else."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found["version"] != VERSION:
                raise RladError(
                    f"{path} is an evaluation of version {found['version']}; this rlad reads version {VERSION}"
                )
            problems = [Problem(**problem) for problem in found["problems"]]
            return cls(found["task"], found["difficulty_name"], found["settings"], problems)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RladError(f"{path} is not a result of rlad evaluate: {type(error).__name__}: {error}") from None


def evaluate(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    task: Task,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    batch_size: int = 32,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Generate `samples` responses to every example and score them; see `generate_responses` for the settings.

    Raises RladError for settings out of range, no examples, and what the task's scorer refuses.
    """
    from rlad.evaluation.generate import generate_responses

    if not examples:
        raise RladError("there are no examples to evaluate on")
    settings: dict[str, Any] = {
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "batch_size": batch_size,
    }
    generated = generate_responses(
        model,
        tokenizer,
        [example["prompt"] for example in examples],
        **settings,
        chat_template_kwargs=chat_template_kwargs,
        on_progress=on_progress,
    )
    problems = []
    for example, responses in zip(examples, generated, strict=True):
        scores = [task.score(response.text, example) for response in responses]
        problems.append(
            Problem(
                problem=problem_id(example),
                difficulty=str(example.get("difficulty", "all")),
                values=[float(score.value) for score in scores],
                correct=[bool(score.correct) for score in scores],
                tokens=[response.tokens for response in responses],
                truncated=[response.truncated for response in responses],
                extracted=[score.extracted for score in scores],
                responses=[response.text for response in responses],
            )
        )
    return Evaluation(task.name, getattr(task, "difficulty_name", "difficulty"), settings, problems)


def compare(before: Evaluation, after: Evaluation) -> list[dict[str, Any]]:
    """After minus before in accuracy, over the same problems: one row for each difficulty and one for all problems.

    A row has difficulty, problems, before, after, difference, low, high (the 95 % interval of the difference). Raises
    RladError where the two were not made on the same problems in the same order.
    """
    if [problem.problem for problem in before.problems] != [problem.problem for problem in after.problems]:
        raise RladError("these two evaluations are not of the same problems, so they cannot be compared in pairs")
    pairs = list(zip(before.problems, after.problems, strict=True))
    groups = {name: [pair for pair in pairs if pair[0].difficulty == name] for name in _by_difficulty(before.problems)}
    if len(groups) > 1:
        groups["all"] = pairs
    rows = []
    for name, group in groups.items():
        first, second = [pair[0].accuracy for pair in group], [pair[1].accuracy for pair in group]
        difference, low, high = paired_difference(first, second)
        rows.append(
            {
                "difficulty": name,
                "problems": len(group),
                "before": math.fsum(first) / len(group),
                "after": math.fsum(second) / len(group),
                "difference": difference,
                "low": max(low, -1.0),
                "high": min(high, 1.0),
            }
        )
    return rows


def problem_id(example: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for the example's prompt."""
    return hashlib.sha256(json.dumps(example["prompt"], sort_keys=True).encode()).hexdigest()[:16]


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON to a file, which is there in full or not at all (`rlad.files.whole_file`)."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with whole_file(path) as file:
        file.write(text.encode())


def _by_difficulty(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.difficulty, []).append(problem)
    # Numbers in their order, and before words.
    return dict(
        sorted(
            groups.items(),
            key=lambda item: (not item[0].isdecimal(), int(item[0]) if item[0].isdecimal() else 0, item[0]),
        )
    )


def _row(name: str, problems: Sequence[Problem]) -> dict[str, Any]:
    accuracy, low, high = accuracy_interval([problem.accuracy for problem in problems])
    counts = [(len(problem.correct), sum(problem.correct)) for problem in problems]
    samples = min(n for n, _ in counts)
    ks = sorted({1 << i for i in range(samples.bit_length())} | {samples})
    return {
        "difficulty": name,
        "problems": len(problems),
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "pass_at": {str(k): math.fsum(pass_at_k(n, c, k) for n, c in counts) / len(counts) for k in ks},
        "reward": _mean([value for problem in problems for value in problem.values]),
        "tokens": _mean([tokens for problem in problems for tokens in problem.tokens]),
        "truncated": _mean([cut for problem in problems for cut in problem.truncated]),
    }


def _average_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    accuracy, low, high = average_interval([(row["accuracy"], row["low"], row["high"]) for row in rows])
    return {
        "difficulty": AVERAGE,
        "problems": sum(row["problems"] for row in rows),
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "pass_at": {k: _mean([row["pass_at"][k] for row in rows]) for k in rows[0]["pass_at"]},
        **{name: _mean([row[name] for row in rows]) for name in ("reward", "tokens", "truncated")},
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
