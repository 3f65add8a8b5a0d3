"""Mathematics data sets by name: where each is, at which revision, and which of its fields are problem and answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlad.errors import RladError
from rlad.tasks.custom import read_json_lines
from rlad.tasks.math.extract import last_box, strict_answer
from rlad.tasks.math.grade import LONGEST_GOLD, MOST_GOLDS, gold_texts, json_golds
from rlad.tasks.math.latex import key

SUFFIXES = (".jsonl", ".json", ".parquet")
MOST_UNUSABLE = 0.05  # share of a source's rows; where more are unusable, the file is not what it is taken for
# What is left of \frac, \text, \right and the like where a file was written without escaping the backslash.
_CORRUPT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]|\t(?:ext|imes|heta|an\b|riangle)|\r(?:ight|m\b|ho\b)")

# The four wrong golds of rawsh/2024_AMC12 (2024 AMC 12B, problems 14, 15, 18 and 25): a word of the problem, since
# others may have the same gold rightly; why it is wrong; what is right.
AMC24_CORRECTIONS = {
    "5": ("remainders", "x^100 mod 125 is 0 or 1", "2"),
    r"\log_2 \frac{7}{\sqrt{3}}": ("triangle", "the area is (2 log 3 - log 7) / 2", r"\log_2 \frac{3}{\sqrt{7}}"),
    "320": ("Fibonacci", "the first ten Lucas numbers sum to 319", "319"),
    "247": ("Pablo", "the probability is 243/1024", "243"),
}


@dataclass(frozen=True)
class Source:
    """A data set on the hub. problem, answer: its fields. read: the golds in the latter. train, test: its splits."""

    repository: str
    revision: str
    problem: str
    answer: str
    read: Callable[[Any], list[str]] = gold_texts
    config: str | None = None
    train: str | None = None
    test: str | None = None


def after_hashes(text: Any) -> list[str]:
    """The gold of a GSM8K solution, which ends in "#### 42". Raises ValueError where there is none."""
    if not isinstance(text, str) or "####" not in text:
        raise ValueError(f"the solution has no '#### answer': {text!r:.200}")
    return gold_texts(text.rpartition("####")[2].strip().replace(",", ""))


def boxed_golds(solution: Any) -> list[str]:
    r"""The gold of a MATH solution: its last \boxed. Raises ValueError where there is none.

    In 17 of its 12,500 solutions the last is one of a list, or one of two forms of the answer: the list counts too.
    """
    if not isinstance(solution, str):
        raise ValueError(f"the solution must be a text, not {solution!r:.200}")
    last, run = last_box(solution), strict_answer(solution).text
    return gold_texts(list(dict.fromkeys(text for text in (last, run) if text)) or "")


# Revisions as several public projects pin them in 2026; the hub itself was out of reach when this was written.
SOURCES = {
    "gsm8k": Source(
        "openai/gsm8k",
        "740312add88f781978c0658806c59bc2815b9866",
        "question",
        "answer",
        after_hashes,
        config="main",
        train="train",
        test="test",
    ),
    "math": Source(
        "DigitalLearningGmbH/MATH-lighteval",
        "0530c78699ea5e8eb5530600900e1f328b48acad",
        "problem",
        "solution",
        boxed_golds,
        train="train",
        test="test",
    ),
    "math500": Source(
        "HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "problem", "answer", test="test"
    ),
    "amc23": Source("math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057", "question", "answer", test="test"),
    "amc24": Source("rawsh/2024_AMC12", "47b35303156a75cdfc6fcca694db66905d5b2033", "problem", "answer", test="train"),
    "aime24": Source(
        "HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", "problem", "answer", test="train"
    ),
    "aime25": Source("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "problem", "answer", test="test"),
    "skywork-or1": Source(
        "Skywork/Skywork-OR1-RL-Data",
        "1cdedc52e0e2db85fdf252f9be682e63a5a38c33",
        "prompt",
        "reward_model.ground_truth",
        json_golds,
        train="math",
    ),
    "deepmath": Source(
        "zwhe99/DeepMath-103K", "5cf055d1fe3d7a2eb19719ac020211469736ae44", "question", "final_answer", train="train"
    ),
}


@dataclass(frozen=True)
class Problem:
    """A problem, the golds any of which counts, and where it is from. benchmark: the name of its data set."""

    text: str
    golds: tuple[str, ...]
    benchmark: str
    where: str


@dataclass(frozen=True)
class Asked:
    """A data set that an option asks for. path: a local copy. source: None for the user's own file or hub data set."""

    name: str
    split: str
    path: str | None = None
    source: Source | None = None
    repository: str | None = None
    revision: str | None = None


@dataclass
class Loaded:
    """The problems of data sets, and what a reader of results should know of them."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def fingerprint(problem: str) -> str:
    """A digest of a problem's text that does not see layout, punctuation, case, or \\dfrac in the place of \\frac."""
    text = re.sub(r"\\[dt]frac", r"\\frac", problem)
    text = re.sub(r"\\(?:left|right|displaystyle|[,;:!])", "", text).casefold()
    return hashlib.blake2b("".join(c for c in text if c.isalnum()).encode(), digest_size=16).hexdigest()


def load(asked: Iterable[Asked]) -> Loaded:
    """The problems of all that is asked for. Raises RladError that names the row at fault."""
    loaded = Loaded()
    for one in asked:
        rows = _file_rows(one.path, _columns(one)) if one.path else _hub_rows(one)
        unusable = []
        first: dict[str, Problem] = {}
        count = 0
        for where, row in rows:
            count += 1
            try:
                problem = _problem(row, one, where, loaded.notes)
                loaded.problems.append(problem)
                earlier = first.setdefault(problem.text, problem)
                if not {*map(key, problem.golds)} & {*map(key, earlier.golds)}:
                    said = f"{', '.join(problem.golds)} here and {', '.join(earlier.golds)} in {earlier.where}"
                    loaded.notes.append(f"{where}: a problem that was there before has another answer ({said:.200})")
            except ValueError as error:
                unusable.append(f"{where}: {error}")
        if not count:
            raise RladError(f"{one.path or one.name} holds no problems")
        if len(unusable) > MOST_UNUSABLE * count:
            raise RladError(f"{len(unusable)} of {count} rows cannot be used; {unusable[0]}")
        if unusable:
            loaded.notes.append(f"{one.name}: {len(unusable)} of {count} rows are left out; {unusable[0]}")
    return loaded


def _columns(asked: Asked) -> set[str]:
    """The columns of a file that a problem can be read from."""
    own = (asked.source.problem, asked.source.answer) if asked.source else ()
    return {"problem", "question", "answer", "answer_corrected", *(name.partition(".")[0] for name in own)}


def _problem(row: Mapping[str, Any], asked: Asked, where: str, notes: list[str]) -> Problem:
    """The problem of a row. Raises ValueError for a row that cannot be used, RladError for columns that are missing."""
    source = asked.source
    if source and _has(row, source.problem) and _has(row, source.answer):
        text, value, read = _get(row, source.problem), _get(row, source.answer), source.read
    else:
        name = next((name for name in ("problem", "question") if name in row), None)
        if name is None or "answer" not in row:
            raise RladError(f"{where}: a row needs 'problem' and 'answer'; it has {', '.join(row) or 'nothing'}")
        text, value, read = row[name], row["answer"], gold_texts
    if isinstance(text, list):  # chat messages
        text = text[-1].get("content") if text and isinstance(text[-1], Mapping) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the problem is empty")
    golds = read(value)
    word, reason, right = AMC24_CORRECTIONS.get(golds[0], ("", "", "")) if asked.name == "amc24" else ("", "", "")
    if row.get("answer_corrected") is not None:
        golds = gold_texts(row["answer_corrected"])
        notes.append(f"{where}: the gold {value} is wrong; {golds[0]} is taken")
    elif word and word in text:
        golds = [right]
        notes.append(f"{where}: the gold {value} is wrong ({reason}); {right} is taken")
    if len(golds) > MOST_GOLDS or any(len(gold) > LONGEST_GOLD for gold in golds):
        raise ValueError(f"an answer has at most {MOST_GOLDS} forms of at most {LONGEST_GOLD} characters")
    # As they stand in the row too: white space is cut off golds, and a form feed that was \\f is white space.
    written = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
    for part in (text, *golds, *(written if read is gold_texts else [])):
        if found := _CORRUPT.search(part):
            raise ValueError(f"the LaTeX is corrupt: {part[max(0, found.start() - 20) : found.end() + 20]!r}")
    return Problem(text.strip(), tuple(golds), asked.name, where)


def _has(row: Mapping[str, Any], path: str) -> bool:
    head, _, rest = path.partition(".")
    return head in row and (not rest or (isinstance(row[head], Mapping) and _has(row[head], rest)))


def _get(row: Mapping[str, Any], path: str) -> Any:
    head, _, rest = path.partition(".")
    return _get(row[head], rest) if rest else row[head]


def _file_rows(path: str, columns: Collection[str]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if not path.endswith(".parquet"):
        return [(f"{path}, line {number}", row) for number, row in read_json_lines(path)]
    import pyarrow.parquet as parquet

    try:
        there = parquet.read_schema(path).names
        needed = [name for name in there if name in columns]
        # Another column may hold what Python has no value for. Of too few to use, all are named in the error.
        rows = parquet.read_table(path, columns=needed if len(needed) > 1 else there).to_pylist()
    except (OSError, ValueError, OverflowError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise RladError(f"cannot read {path}: {error}") from None
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, 1)]


def _hub_rows(asked: Asked) -> Iterable[tuple[str, Mapping[str, Any]]]:
    import datasets

    repository = asked.source.repository if asked.source else asked.repository
    config = asked.source.config if asked.source else None
    try:
        rows = datasets.load_dataset(repository, config, split=asked.split, revision=asked.revision)
    except Exception as error:  # the hub client has many ways to fail, and each of them means the same here
        advice = "name a local copy with task.data_root, or as {name: path}"
        raise RladError(f"cannot get {repository} from the hub ({type(error).__name__}: {error}); {advice}") from error
    return ((f"{repository}, row {number}", row) for number, row in enumerate(rows, 1))
