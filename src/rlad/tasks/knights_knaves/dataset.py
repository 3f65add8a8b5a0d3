"""The Knights & Knaves task: puzzles from the generator, or from files of the official schema, as examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, ClassVar

from rlad.errors import RladError
from rlad.tasks.base import Example, Score
from rlad.tasks.knights_knaves.generate import generate, official_test_fingerprints
from rlad.tasks.knights_knaves.puzzle import MAX_PEOPLE, Puzzle, fingerprint, parse_statements
from rlad.tasks.knights_knaves.rows import check_source, read_puzzles
from rlad.tasks.knights_knaves.score import SCORERS, score

# Logic-RL's instruction (arXiv 2502.14768, its published data), to the letter, with its double space and missing one.
LOGIC_RL_INSTRUCTION = (
    "You are a helpful assistant. The assistant first thinks about the reasoning process in the mind and then provides "
    "the user with the answer. The reasoning process and answer are enclosed within <think> </think> and<answer> "
    "</answer> tags, respectively, i.e., <think> reasoning process here </think><answer> answer here </answer>.  Now "
    "the user asks you to solve a logical reasoning problem. After thinking, when you finally reach a conclusion, "
    "clearly state the identity of each character within <answer> </answer> tags. i.e., <answer> (1) Zoey is a "
    "knight\n(2) ... </answer>.\n"
)
PROMPTS = ("plain", "logic-rl")
HELD_OUT = ("refuse", "drop")
DEFAULT_PEOPLE = (2, 3, 4)
DEFAULT_EVALUATION = 100  # puzzles for each number of people, as in the official test files


@dataclass(frozen=True)
class KnightsKnaves:
    """Knights & Knaves. Each field is an option of the task in a recipe.

    people: numbers of people: 3, [2, 3, 4], "2-8" or "2,4-6". None: 2 to 4 from the generator, all that a file holds.
    size: training puzzles from the generator, spread evenly over `people`. seed: theirs.
    evaluation_seed: that of the evaluation puzzles; apart from `seed`, so that runs are compared on the same puzzles.
    depth, width: of generated statements, see `generate`.
    data: a file (JSON Lines or Parquet) of official rows to train on in place of the generator, a list of files, or a
        dataset on the Hugging Face hub, as "owner/name" or "owner/name:pattern/of/files*.jsonl".
    evaluation_data: likewise, what split "test" is of in place of the generator; split "validation" is the generator's.
    held_out: what happens to a training row that is an official test puzzle or stands in evaluation_data, whatever its
        names and order: "refuse" the file, or "drop" the row.
    scorer: see `score`. prompt: "plain", the quiz alone, or "logic-rl", Logic-RL's instruction before it.
    prompt_ends_with_think: set it where the chat template itself opens <think>; read by the scorer "logic-rl", from the
        column `prompt_ends_with_think_tag` of an example, or from here where an example has none.
    """

    people: Any = None
    size: int = 4_000
    seed: int = 0
    evaluation_seed: int = 0
    depth: int = 2
    width: int = 2
    data: str | Sequence[str] | None = None
    evaluation_data: str | Sequence[str] | None = None
    held_out: str = "refuse"
    scorer: str = "strict"
    prompt: str = "plain"
    prompt_ends_with_think: bool = False

    name: ClassVar[str] = "knights_knaves"
    difficulty_name: ClassVar[str] = "people"

    def __post_init__(self) -> None:
        for field in ("size", "seed", "evaluation_seed", "depth", "width"):
            if type(getattr(self, field)) is not int:
                raise RladError(f"task.{field} must be a whole number, not {getattr(self, field)!r}")
        if self.size < 1:
            raise RladError(f"task.size must be at least 1, not {self.size}")
        for field, allowed in (("scorer", tuple(SCORERS)), ("prompt", PROMPTS), ("held_out", HELD_OUT)):
            if getattr(self, field) not in allowed:
                raise RladError(f"task.{field} must be one of {', '.join(allowed)}, not {getattr(self, field)!r}")
        if not isinstance(self.prompt_ends_with_think, bool):
            raise RladError(f"task.prompt_ends_with_think must be true or false, not {self.prompt_ends_with_think!r}")
        object.__setattr__(self, "people", None if self.people is None else parse_people(self.people))
        for n in self.people or DEFAULT_PEOPLE:
            generate(n, 0, self.seed, depth=self.depth, width=self.width)  # refuses depth and width out of range
        for field in ("data", "evaluation_data"):
            for source in _sources(getattr(self, field), field):
                check_source(source, f"task.{field}")

    @property
    def is_local(self) -> bool:
        """Whether its puzzles are generated, or in files on this disk."""
        sources = (*_sources(self.data, "data"), *_sources(self.evaluation_data, "evaluation_data"))
        return all(Path(source).exists() for source in sources)

    def problem_key(self, example: Mapping[str, Any]) -> str:
        """The same for a puzzle with other names, or in another order."""
        return fingerprint(parse_statements(example["statements"], len(example["names"])))

    def train(self) -> list[Example]:
        """Training examples. Raises RladError for a bad row, and for held-out rows unless they are dropped."""
        if self.data is None:
            held_out = {fingerprint(puzzle.statements) for puzzle in self._evaluation_rows()}
            return self._examples(self._generated("train", self.size, self.seed, held_out))
        return self._examples(self._training_rows())

    def evaluation(self, split: str = "test", count: int | None = None) -> list[Example]:
        """`count` examples, spread evenly over the numbers of people; None: 100 for each, or all of evaluation_data.

        split "test": of evaluation_data where that is set, else from the generator. "validation": from the generator,
        whether it is set or not, so that what a run is chosen by is not what it is judged by. From the generator they
        belong to `split`, none is in `data` or evaluation_data (up to names and order), and from 3 people on all
        differ.
        """
        if split not in ("test", "validation"):
            raise RladError(f"an evaluation split is test or validation, not {split!r}")
        if count is not None and count < 1:
            raise RladError(f"at least 1 puzzle is needed to evaluate, not {count}")
        rows = self._evaluation_rows()
        if split == "validation" or self.evaluation_data is None:
            known = [*rows, *([] if self.data is None else self._training_rows())]
            without = {fingerprint(puzzle.statements) for puzzle in known}
            total = DEFAULT_EVALUATION * len(self.people or DEFAULT_PEOPLE) if count is None else count
            return self._examples(self._generated(split, total, self.evaluation_seed, without, distinct=True))
        if count is not None and count > len(rows):
            raise RladError(f"task.evaluation_data has {len(rows)} puzzles, fewer than the {count} asked for")
        return self._examples(islice(_interleaved(_by_people(rows).values()), count))

    def score(self, response: str, example: Mapping[str, Any]) -> Score:
        """Score a response by the example's `names` and `solution`.

        Its `prompt_ends_with_think_tag` says whether its prompt ended in <think>; without it the task's option does.
        """
        missing = [field for field in ("names", "solution") if field not in example]
        if missing:
            raise RladError(f"knights_knaves needs {' and '.join(missing)} to score a response; there is none")
        think = example.get("prompt_ends_with_think_tag", self.prompt_ends_with_think)
        return score(response, example["names"], example["solution"], self.scorer, prompt_ends_with_think=bool(think))

    def _generated(self, split: str, total: int, seed: int, without: set[str], distinct: bool = False) -> list[Puzzle]:
        people = self.people or DEFAULT_PEOPLE
        groups = []
        for k, n in enumerate(people):
            count = total // len(people) + (k < total % len(people))
            groups.append(self._generated_without(n, count, seed, split, without, distinct))
        return list(_interleaved(groups))

    def _generated_without(
        self, n: int, count: int, seed: int, split: str, without: set[str], distinct: bool
    ) -> list[Puzzle]:
        # Of 2 people there are too few puzzles to be distinct (59 in the test split at the default depth and width, see
        # tests/unit/test_kk_puzzles.py): there the same puzzle can return with other names and words.
        distinct = distinct and n > 2
        asked = count
        while asked <= 20 * count + 1_000:
            made = generate(n, asked, seed, split, self.depth, self.width, distinct)
            kept = [puzzle for puzzle in made if not without or fingerprint(puzzle.statements) not in without]
            if len(kept) >= count:
                return kept[:count]
            asked += max(count - len(kept), asked // 4)
        raise RladError(
            f"nearly every {split} puzzle of {n} people is held out or trained on; choose more people, depth or width"
        )

    def _training_rows(self) -> list[Puzzle]:
        held_out = official_test_fingerprints()
        evaluated = {fingerprint(puzzle.statements) for puzzle in self._evaluation_rows()}
        kept, found = [], []
        for where, puzzle in self._read(self.data, "data", "train"):
            mark = fingerprint(puzzle.statements)
            if mark in held_out or mark in evaluated:
                found.append(
                    f"{where}: {'an official test puzzle' if mark in held_out else 'a puzzle of evaluation_data'}"
                )
            else:
                kept.append(puzzle)
        if found and self.held_out == "refuse":
            rows = "that row" if len(found) == 1 else f"the {len(found)} such rows"
            raise RladError(
                f"{found[0]} (up to names and order); train on other data, or leave out {rows} with task.held_out=drop"
            )
        if not kept:
            raise RladError(f"task.data has no puzzles to train on{': all of them are held out' if found else ''}")
        return kept

    def _evaluation_rows(self) -> list[Puzzle]:
        if self.evaluation_data is None:
            return []
        return [puzzle for _, puzzle in self._read(self.evaluation_data, "evaluation_data", "test")]

    def _read(self, sources: str | Sequence[str] | None, field: str, split: str) -> list[tuple[str, Puzzle]]:
        read = [row for source in _sources(sources, field) for row in read_puzzles(source, split)]
        present = {puzzle.n_people for _, puzzle in read}
        absent = [str(n) for n in self.people or () if n not in present]
        if absent:
            has = ", ".join(str(n) for n in sorted(present)) or "none"
            raise RladError(f"task.{field} has no puzzle of {' or '.join(absent)} people, only of {has}")
        return [(where, puzzle) for where, puzzle in read if not self.people or puzzle.n_people in self.people]

    def _examples(self, puzzles: Iterable[Puzzle]) -> list[Example]:
        return [self._example(puzzle) for puzzle in puzzles]

    def _example(self, puzzle: Puzzle) -> Example:
        if self.prompt == "plain":
            messages = [{"role": "user", "content": puzzle.quiz}]
        else:
            messages = [
                {"role": "system", "content": LOGIC_RL_INSTRUCTION},
                {"role": "user", "content": f"{puzzle.quiz}\n"},
            ]
        return {
            "prompt": messages,
            "difficulty": puzzle.n_people,
            "names": list(puzzle.names),
            "solution": list(puzzle.solution),
            "statements": repr(puzzle.statements),
            "index": puzzle.index,
            "prompt_ends_with_think_tag": self.prompt_ends_with_think,
        }


def parse_people(value: Any) -> tuple[int, ...]:
    """Numbers of people, sorted, each once: from 3, [2, 3, 4], "2-8" or "2,4-6". Raises RladError for anything else."""
    advice = f'people must be numbers from 2 to {MAX_PEOPLE}, like 3, [2, 3, 4], "2-8" or "2,4-6", not {value!r}'
    if isinstance(value, str):
        numbers: set[int] = set()
        for part in value.split(","):
            bounds = re.fullmatch(r"\s*(\d{1,2})\s*(?:-\s*(\d{1,2})\s*)?", part)
            if bounds is None or (bounds[2] and int(bounds[1]) > int(bounds[2])):
                raise RladError(advice)
            numbers.update(range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1))
    elif type(value) is int:
        numbers = {value}
    elif isinstance(value, Sequence) and all(type(n) is int for n in value):
        numbers = set(value)
    else:
        raise RladError(advice)
    if not numbers or min(numbers) < 2 or max(numbers) > MAX_PEOPLE:
        raise RladError(advice)
    return tuple(sorted(numbers))


def _sources(value: Any, field: str) -> list[str]:
    sources = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(sources, Sequence) or not all(isinstance(source, str) and source for source in sources):
        raise RladError(f"task.{field} must be a file, a hub dataset (owner/name), or a list of them, not {value!r}")
    if value is not None and not sources:
        raise RladError(f"task.{field} is an empty list; leave it out to use the generator")
    return list(sources)


def _by_people(puzzles: Iterable[Puzzle]) -> dict[int, list[Puzzle]]:
    groups: dict[int, list[Puzzle]] = {}
    for puzzle in puzzles:
        groups.setdefault(puzzle.n_people, []).append(puzzle)
    return dict(sorted(groups.items()))


def _interleaved(groups: Iterable[Sequence[Puzzle]]) -> Iterable[Puzzle]:
    """One of each group in turn, so that every beginning of it is as even as it can be."""
    return (puzzle for turn in zip_longest(*groups) for puzzle in turn if puzzle is not None)
