"""The mathematics task: problems from data sets by name or from files, and a scorer around math-verify."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, ClassVar

from rlad.errors import RladError
from rlad.tasks.base import Example, Score
from rlad.tasks.math.grade import Verdict, gold_texts, grade_all
from rlad.tasks.math.pool import Limits
from rlad.tasks.math.sources import SOURCES, SUFFIXES, Asked, Loaded, Problem, fingerprint, load

logger = logging.getLogger(__name__)

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."  # Qwen2.5-Math's and Qwen3's
PROMPTS = ("boxed", "system", "plain")
SCORERS = ("strict", "lenient")
HELD_OUT = ("drop", "refuse")
LEAST_MEMORY = 256  # MiB: a worker has 60 after its imports
SHOWN = 2_000  # characters of an answer that a Score keeps
_HUB = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Math:
    r"""Mathematics. Each field is an option of the task in a recipe.

    data: what to train on: the name of a data set (see `sources.SOURCES`), of one on the hub ("owner/name") with the
        fields problem and answer, or the path of a JSON Lines or Parquet file of them; or a list of these; or a mapping
        from names to paths. A name can be followed by ":split" and "@revision".
    evaluation_data: likewise, what to evaluate on. Each is a row of the evaluation table.
    data_root: a folder of local copies; there <name>_<split> or <name>, as .jsonl or .parquet, stands for the hub.
    size: how many problems to train on, after shuffling. None: all. seed: of the shuffling. None: the file's order.
    validation: the share of the problems of `data` that are set aside for evaluation("validation"), by their text.
    held_out: what happens to a training problem that is in evaluation_data too: "drop" it, or "refuse" the data.
    prompt: "boxed", the problem and the instruction to reason and to box the answer; "system", the instruction as the
        system message; "plain", the problem alone.
    scorer: which of `grade.Verdict`'s readings counts: "strict" or "lenient". right, wrong: what they are worth.
    seconds, memory: the processor time in seconds, and the MiB, that grading an answer may take; more makes it wrong.
    workers: processes that grade. None: one for each core, up to 8.
    """

    data: Any = "math"
    evaluation_data: Any = "math500"
    data_root: str | None = None
    size: int | None = None
    seed: int | None = 0
    validation: float = 0.02
    held_out: str = "drop"
    prompt: str = "boxed"
    scorer: str = "strict"
    right: float = 1.0
    wrong: float = 0.0
    seconds: float = 3.0
    memory: int = 1024
    workers: int | None = None

    name: ClassVar[str] = "math"
    difficulty_name: ClassVar[str] = "benchmark"

    def __post_init__(self) -> None:
        for field, allowed in (("prompt", PROMPTS), ("scorer", SCORERS), ("held_out", HELD_OUT)):
            if getattr(self, field) not in allowed:
                raise RladError(f"task.{field} must be one of {', '.join(allowed)}, not {getattr(self, field)!r}")
        for field, least in (("size", 1), ("seed", 0), ("memory", LEAST_MEMORY), ("workers", 1)):
            value = getattr(self, field)
            if not (value is None and field != "memory") and (type(value) is not int or value < least):
                raise RladError(f"task.{field} must be a whole number of at least {least}, not {value!r}")
        for field in ("right", "wrong", "seconds", "validation"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
                raise RladError(f"task.{field} must be a number, not {value!r}")
        if not 0.01 <= self.seconds <= 3600:
            raise RladError(f"task.seconds must be from 0.01 to 3600, not {self.seconds}")
        if not 0 <= self.validation < 1:
            raise RladError(f"task.validation is a share, from 0 to below 1, not {self.validation}")
        if self.data_root is not None and not Path(self.data_root).is_dir():
            raise RladError(f"task.data_root: there is no folder {self.data_root}")
        self._asked("data")
        self._asked("evaluation_data")

    @property
    def is_local(self) -> bool:
        """Whether its problems are in files on this disk."""
        return all(one.path is not None for field in ("data", "evaluation_data") for one in self._asked(field))

    def problem_key(self, example: Mapping[str, Any]) -> str:
        """The same for a problem in another layout."""
        return fingerprint(str(example["problem"]))

    def train(self) -> list[Example]:
        """Training examples. Logs what was left out or corrected, and why (see `report`).

        Raises RladError for a row that cannot be read, and for held-out problems under held_out=refuse.
        """
        problems = [problem for problem in self._trainable() if not self._set_aside(problem)]
        if self.seed is not None:
            random.Random(self.seed).shuffle(problems)
        if not problems:
            raise RladError("task.data has no problems to train on: all of them are held out")
        if self.size is not None and self.size > len(problems):
            raise RladError(f"task.data has {len(problems)} problems to train on, fewer than task.size={self.size}")
        return [self._example(problem) for problem in problems[: self.size]]

    def evaluation(self, split: str = "test", count: int | None = None) -> list[Example]:
        """`count` examples of evaluation_data, or all, in turns of one from each data set.

        split "validation": of what is set aside from `data`, none of which is in evaluation_data.
        """
        if split not in ("test", "validation"):
            raise RladError(f"an evaluation split is test or validation, not {split!r}")
        if count is not None and count < 1:
            raise RladError(f"at least 1 problem is needed to evaluate, not {count}")
        if split == "validation":
            problems = [problem for problem in self._trainable() if self._set_aside(problem)]
            advice = "raise task.validation, the share of task.data that is set aside"
        else:
            problems, advice = self._loaded("evaluation_data").problems, "ask for fewer, or add task.evaluation_data"
        if not problems or (count is not None and count > len(problems)):
            few = f"there are {len(problems)} {split} problems, fewer than the {count or 1} asked for"
            raise RladError(f"{few}; {advice}")
        return [self._example(problem) for problem in islice(_interleaved(problems), count)]

    def score(self, response: str, example: Mapping[str, Any]) -> Score:
        """Score a response by the example's `answer`: a text, a number, or a list of them, any of which counts.

        `problem`, where the example has it, is searched for options that a letter can name.
        """
        return self.score_many([response], [example])[0]

    def score_many(self, responses: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> list[Score]:
        """What `score` returns for each response, graded in parallel."""
        golds = [_golds(example) for example in examples]
        problems = [str(example.get("problem") or "") for example in examples]
        limits = Limits(self.seconds, self.memory << 20, self.workers)
        verdicts = grade_all(responses, golds, problems, limits)
        return [self._score(verdict, gold) for verdict, gold in zip(verdicts, golds, strict=True)]

    def report(self) -> list[str]:
        """What a reader of results should know of the data: golds that were corrected, rows left out, overlaps."""
        evaluated = self._loaded("evaluation_data")
        return [*self._loaded("data").notes, *evaluated.notes, *_overlaps(evaluated.problems), *self._leaks()[1]]

    def _score(self, verdict: Verdict, golds: list[str]) -> Score:
        correct = verdict.strict if self.scorer == "strict" else verdict.lenient
        readings = f"strict {_word(verdict.strict)}, lenient {_word(verdict.lenient)}"
        reason = f"{readings}; gold {' or '.join(golds)[:200]}" if verdict.graded else "not graded: wrong"
        shown = None if verdict.extracted is None else verdict.extracted[:SHOWN]
        explanation = f"{reason}; {verdict.problem}" if verdict.problem else reason
        value = float(self.right if correct else self.wrong)
        return Score(value, correct, shown, explanation, verdict.extracted is not None)

    def _asked(self, field: str) -> list[Asked]:
        value = getattr(self, field)
        if isinstance(value, Mapping):
            pairs = list(value.items())
        elif isinstance(value, str):
            pairs = [(value, None)]
        else:
            pairs = [(each, None) for each in value] if isinstance(value, Sequence) else []
        if not pairs or not all(
            isinstance(name, str) and name and isinstance(path, str | None) for name, path in pairs
        ):
            what = "the name of a data set, a file, a list of them, or a mapping from names to files"
            raise RladError(f"task.{field} must be {what}, not {value!r}")
        asked = [_ask(name, path, field, self.data_root) for name, path in pairs]
        names = [one.name for one in asked]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice and field == "evaluation_data":
            raise RladError(f"task.{field} has {', '.join(twice)} twice; give files different names: {{name: path}}")
        return asked

    def _loaded(self, field: str) -> Loaded:
        loaded = load(self._asked(field))
        for note in loaded.notes:
            _warn(note)
        return loaded

    def _leaks(self) -> tuple[list[Problem], list[str]]:
        """(the problems of `data` that evaluation_data does not have, notes on the others)."""
        evaluated: dict[str, dict[str, Problem]] = {}  # by fingerprint, then by benchmark
        for one in self._loaded("evaluation_data").problems:
            evaluated.setdefault(fingerprint(one.text), {})[one.benchmark] = one
        kept: list[Problem] = []
        found: dict[str, list[str]] = {}
        for problem in self._loaded("data").problems:
            twins = evaluated.get(fingerprint(problem.text), {})
            for twin in twins.values():
                found.setdefault(twin.benchmark, []).append(f"{problem.where} is {twin.where}")
            if not twins:
                kept.append(problem)
        return kept, [
            f"{len(pairs)} training problem{'s are' if len(pairs) > 1 else ' is'} in {benchmark} too ({pairs[0]})"
            for benchmark, pairs in found.items()
        ]

    def _trainable(self) -> list[Problem]:
        kept, notes = self._leaks()
        if notes and self.held_out == "refuse":
            raise RladError(f"{'; '.join(notes)}; leave them out with task.held_out=drop, or train on other data")
        for note in notes:
            _warn(f"{note}; left out")
        return kept

    def _set_aside(self, problem: Problem) -> bool:
        return int(fingerprint(problem.text)[:8], 16) < self.validation * 2**32

    def _example(self, problem: Problem) -> Example:
        if self.prompt == "system":
            messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": problem.text}]
        else:
            text = f"{problem.text}\n\n{INSTRUCTION}" if self.prompt == "boxed" else problem.text
            messages = [{"role": "user", "content": text}]
        return {
            "prompt": messages,
            "difficulty": problem.benchmark,
            "answer": list(problem.golds),
            "problem": problem.text,
            "where": problem.where,
        }


@lru_cache(maxsize=1_000)
def _warn(note: str) -> None:
    """Log a note once: data are read several times in a run."""
    logger.warning("math: %s", note)


def _word(right: bool) -> str:
    return "right" if right else "wrong"


def _golds(example: Mapping[str, Any]) -> list[str]:
    if "answer" not in example:
        raise RladError("math needs answer to score a response; there is none")
    try:
        return gold_texts(example["answer"])
    except ValueError as error:
        raise RladError(str(error)) from None


def _ask(name: str, path: str | None, field: str, root: str | None) -> Asked:
    """The data set that a name, and a path where one is given, stand for. Raises RladError where there is none."""
    if path is None and name.endswith(SUFFIXES):
        name, path = Path(name).stem, name
    bare, _, revision = name.partition("@")
    bare, _, split = bare.partition(":")
    source = SOURCES.get(bare)
    if path is not None:
        if not path.endswith(SUFFIXES) or not Path(path).is_file():
            raise RladError(f"task.{field}: {path} is not a file that ends in .jsonl (JSON Lines) or .parquet")
        return Asked(name, "", path, source)
    usual = None if source is None else source.train if field == "data" else source.test
    if source is None and _HUB.fullmatch(bare):
        return Asked(bare, split or ("train" if field == "data" else "test"), None, None, bare, revision or None)
    if source is None:
        raise RladError(f"task.{field}: there is no data set or file {bare}; there are {', '.join(SOURCES)}")
    if not split and usual is None:
        other = source.test if field == "data" else source.train
        use = "training" if field == "data" else "evaluation"
        raise RladError(f"task.{field}: {bare} is not meant for {use}; if you mean it, write {bare}:{other}")
    split = split or usual or ""
    return Asked(bare, split, _local_copy(root, bare, split), source, None, revision or source.revision)


def _local_copy(root: str | None, name: str, split: str) -> str | None:
    if root is None:
        return None
    files = [Path(root) / f"{stem}{suffix}" for stem in (f"{name}_{split}", name) for suffix in SUFFIXES]
    found = next((str(file) for file in files if file.is_file()), None)
    if found is None:
        raise RladError(f"task.data_root: {root} has no {name}_{split}.jsonl, {name}.jsonl, or the same as .parquet")
    return found


def _overlaps(problems: Sequence[Problem]) -> list[str]:
    """What evaluation data sets have in common, as MATH-500 and the test split of MATH that it is a part of."""
    of: dict[str, set[str]] = {}
    for problem in problems:
        of.setdefault(problem.benchmark, set()).add(fingerprint(problem.text))
    names = list(of)
    return [
        f"{len(of[one] & of[other])} problems are both in {one} and in {other}: an average counts them twice"
        for i, one in enumerate(names)
        for other in names[i + 1 :]
        if of[one] & of[other]
    ]


def _interleaved(problems: Iterable[Problem]) -> Iterator[Problem]:
    """One of each benchmark in turn, so that every beginning of it is as even as it can be."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.benchmark, []).append(problem)
    return (problem for turn in zip_longest(*groups.values()) for problem in turn if problem is not None)
