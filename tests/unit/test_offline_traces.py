"""Which traces are kept, what is kept with them, and how a folder of them is gone on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlad.errors import RladError
from rlad.evaluation.generate import Response, Sampling
from rlad.evaluation.problems import PromptFormat, problem_id, response_seed
from rlad.evaluation.run import Settings
from rlad.offline import traces
from rlad.offline.traces import CAPPED, CUT, DUPLICATE, WRONG, load_traces, make_traces, reasons, without_repetitions
from rlad.records import Writer, parts, read_rows
from rlad.tasks import Score

ABOUT = {"teacher": "someone", "task": {"name": "parity"}}


def response(text: str, truncated: bool = False) -> Response:
    return Response(text, len(text), truncated)


def test_each_reason_in_its_order_and_the_cap_counts_what_is_kept() -> None:
    given = [
        (response("b", truncated=True), True, CUT),  # cut off comes before right or wrong
        (response("c"), False, WRONG),
        (response("a  b"), True, None),  # the first one that is kept
        (response(" a b\n"), True, DUPLICATE),  # the same but for white space
        (response("b"), True, None),  # the second; that it was cut off before makes it no duplicate
        (response("d"), True, CAPPED),  # two are kept already
        (response("d"), True, DUPLICATE),  # of one that would have been kept
        (response("c"), False, WRONG),  # and wrong comes before duplicate
    ]
    assert reasons([r for r, _, _ in given], [right for _, right, _ in given], 2) == [why for _, _, why in given]


@pytest.mark.parametrize(("cap", "kept"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_no_more_than_the_cap_and_the_earliest(cap: int, kept: int) -> None:
    found = reasons([response(text) for text in "xyzx"], [True] * 4, cap)
    assert [i for i, why in enumerate(found) if why is None] == list(range(kept))


class Parity:
    """Right where the response is even; every prompt a number."""

    name = "parity"

    def train(self) -> list[dict[str, Any]]:
        return problems(10)

    def evaluation(self, split: str = "test", count: int | None = None) -> list[dict[str, Any]]:
        return problems(10)

    def score(self, response: str, example: Mapping[str, Any]) -> Score:
        right = int(response) % 2 == 0
        return Score(float(right), right, response, "")


class Remainder(Parity):
    """Right where the response leaves the example's `gold` over after a division by `by`."""

    def __init__(self, by: int = 2) -> None:
        self.by = by

    def score(self, response: str, example: Mapping[str, Any]) -> Score:
        right = int(response) % self.by == example["gold"]
        return Score(float(right), right, response, "")


def problems(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": [{"role": "user", "content": str(i)}], "difficulty": i % 2} for i in range(first, first + count)]


class Words:
    """The part of a tokenizer that a raw prompt needs."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(text)]}


class Teacher:
    """A backend whose response is the seed's last digits; every tenth one is cut off. It counts what it was asked."""

    tokenizer = Words()

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked, self.stop_after = 0, stop_after

    def prepare(self, longest: int, max_new_tokens: int) -> None:
        pass

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[Response]:
        self.asked += len(seeds)
        if self.stop_after is not None and self.asked > self.stop_after:
            raise KeyboardInterrupt
        return [Response(str(seed % 8), 1 + seed % 5, seed % 10 == 0) for seed in seeds]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "PART", 4)


def make(folder: Path, teacher: Teacher, count: int = 10, **changed: Any) -> Any:
    options = {"samples": 6, "sampling": Sampling(max_new_tokens=9), "seed": 3, "batch_size": 5, "cap": 2, **changed}
    cap, about = options.pop("cap"), options.pop("about", ABOUT)
    examples = options.pop("examples", None) or problems(count)
    lines: list[str] = options.pop("lines", [])
    task = options.pop("task", Parity())
    settings = Settings(**options, prompt=PromptFormat("raw"))
    return make_traces(lambda: teacher, task, examples, folder, settings, cap, about, lines.append)


def rows(folder: Path) -> list[dict[str, Any]]:
    return list(read_rows(folder, "trace"))


def test_every_trace_is_a_record_with_its_reason(tmp_path: Path) -> None:
    made = make(tmp_path, Teacher())
    found = rows(tmp_path)
    assert len(found) == 60 and list(parts(tmp_path)) == [0, 1, 2]
    ids = [problem_id(example) for example in problems(10)]
    assert [(row["problem"], row["sample"]) for row in found] == [(each, j) for each in ids for j in range(6)]
    for row in found:
        assert row["seed"] == response_seed(3, (row["problem"], 0), row["sample"])
        assert row["response"] == str(row["seed"] % 8) and row["length"] == 1 + row["seed"] % 5
        assert row["correct"] == (row["seed"] % 2 == 0) and row["truncated"] == (row["seed"] % 10 == 0)
        assert row["kept"] == (row["reason"] is None)
        assert row["kept"] <= (row["correct"] and not row["truncated"])
        assert row["teacher"] == "someone" and json.loads(row["settings"])["samples"] == 6
        assert json.loads(row["example"])["prompt"] == json.loads(row["prompt"])
    assert made.rows == [{name: row[name] for name in made.rows[0]} for row in found if row["kept"]]
    assert made.teacher_tokens == sum(row["length"] for row in found) and made.problems == 10
    assert sum(made.counts.values()) == 60 and set(made.counts) == {"kept", CUT, WRONG, DUPLICATE, CAPPED}
    assert made.counts["kept"] == len(made.rows) and made.counts[WRONG] == sum(row["reason"] == WRONG for row in found)
    for each in ids:  # no more than the cap, none twice
        kept = [row["response"] for row in made.rows if row["problem"] == each]
        assert len(kept) == len(set(kept)) <= 2


def test_a_stopped_run_goes_on_to_the_same_records_and_asks_for_no_finished_part_again(tmp_path: Path) -> None:
    make(tmp_path / "whole", Teacher())
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", Teacher(stop_after=30))  # a part is 24 responses: it stops within the second
    assert list(parts(tmp_path / "cut")) == [0]
    teacher, lines = Teacher(), list[str]()
    make(tmp_path / "cut", teacher, batch_size=7, lines=lines)  # how many at once changes no draw
    assert teacher.asked == 60 - 24 and len(lines) == 2
    whole, cut = rows(tmp_path / "whole"), rows(tmp_path / "cut")
    for row in (*whole, *cut):
        del row["settings"]  # batch_size stands in it
    assert whole == cut


def test_finished_traces_ask_no_teacher_and_the_first_problems_are_enough(tmp_path: Path) -> None:
    whole = make(tmp_path, Teacher())
    again = make_traces(
        lambda: pytest.fail("the teacher was loaded"), Parity(), problems(10), tmp_path,
        Settings(6, Sampling(max_new_tokens=9), 3, 5, PromptFormat("raw")), 2, ABOUT, print,
    )  # fmt: skip
    assert again == whole
    few = make(tmp_path, Teacher(stop_after=0), count=5)
    ids = [problem_id(example) for example in problems(5)]
    assert few.problems == 5 and few.rows == [row for row in whole.rows if row["problem"] in ids]


def test_more_problems_go_on_behind_the_first(tmp_path: Path) -> None:
    make(tmp_path / "grown", Teacher(), count=6)
    teacher = Teacher()
    grown = make(tmp_path / "grown", teacher, count=10)
    assert teacher.asked == 36  # the first part is whole; the second had half of its problems
    assert grown.rows == make(tmp_path / "whole", Teacher()).rows


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"samples": 5}, "samples was 6 and is 5"),
        ({"cap": 1}, "per_problem was 2 and is 1"),
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"sampling": Sampling(0.5, max_new_tokens=9)}, "temperature was 1.0 and is 0.5"),
        ({"sampling": Sampling(max_new_tokens=8)}, "max_new_tokens was 9 and is 8"),
        ({"about": {**ABOUT, "teacher": "another"}}, "teacher was 'someone' and is 'another'"),
        ({"about": {**ABOUT, "weights": "b"}}, "weights was 'a' and is 'b'"),
        ({"about": {**ABOUT, "backend": "vllm"}}, "backend was 'transformers' and is 'vllm'"),
        ({"about": {**ABOUT, "tokenizer": "other"}}, "tokenizer was 'one' and is 'other'"),
        ({"about": {**ABOUT, "dtype": "bfloat16"}}, "dtype was None and is 'bfloat16'"),
        ({"about": {**ABOUT, "task": {"name": "x"}}}, "task was {'name': 'parity'} and is {'name': 'x'}"),
        ({"examples": problems(10, first=5)}, "part-000000.parquet holds traces of other problems"),
    ],
)
def test_traces_that_were_made_otherwise_are_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    make(tmp_path, Teacher(), about={**ABOUT, "weights": "a", "backend": "transformers", "tokenizer": "one"})
    before = rows(tmp_path)
    with pytest.raises(RladError, match="choose another folder") as caught:
        make(tmp_path, Teacher(), **changed)
    assert said in str(caught.value)
    assert rows(tmp_path) == before


@pytest.mark.parametrize("name", ["weights", "backend", "tokenizer"])
def test_traces_made_before_this_was_kept_are_taken_and_later_ones_of_the_folder_are_not(
    tmp_path: Path, name: str
) -> None:
    old = make(tmp_path, Teacher(), count=8)
    assert make(tmp_path, Teacher(stop_after=0), count=8, about={**ABOUT, name: "a"}) == old
    make(tmp_path, Teacher(), count=12, about={**ABOUT, name: "a"})
    with pytest.raises(RladError, match=f"{name} was 'a' and is 'b'"):
        make(tmp_path, Teacher(), count=12, about={**ABOUT, name: "b"})


def golds(*values: int) -> list[dict[str, Any]]:
    return [example | {"gold": gold} for example, gold in zip(problems(len(values)), values, strict=True)]


@pytest.mark.parametrize(
    ("changed", "touched"),
    [
        ({"examples": golds(0, 0, 0, 0, 0, 1)}, 6),  # the gold of the last problem, in the second part, is corrected
        ({"task": Remainder(by=4), "examples": golds(0, 0, 0, 0, 0, 0)}, None),  # same columns, another scorer
    ],
)
def test_traces_that_are_there_have_the_verdict_of_todays_gold_and_scorer(
    tmp_path: Path, changed: dict[str, Any], touched: int | None
) -> None:
    made = {"task": Remainder(), "examples": golds(0, 0, 0, 0, 0, 0)}
    first = make(tmp_path / "old", Teacher(), **made)
    before, lines = rows(tmp_path / "old"), list[str]()
    again = make(tmp_path / "old", Teacher(stop_after=0), lines=lines, **(made | changed))
    fresh = make(tmp_path / "fresh", Teacher(), **(made | changed))
    assert again.rows == fresh.rows and again.counts == fresh.counts
    after = rows(tmp_path / "old")
    assert after == rows(tmp_path / "fresh")
    assert [row["response"] for row in after] == [row["response"] for row in before]  # the teacher's words stay
    differing = sum(new != old for new, old in zip(after, before, strict=True))
    kept = [sum(row["kept"] for row in each) for each in (after, before)]
    assert {new["correct"] - old["correct"] for new, old in zip(after, before, strict=True)} > {-1}
    assert touched in (None, differing) and again.rows != first.rows
    assert lines == [
        f"traces: {differing} of 36 were scored by other columns of their problem, or another scorer, and have been "
        f"scored again: {kept[0]} kept, {kept[1]} before"
    ]


def test_verdicts_that_still_hold_leave_the_files_and_those_of_problems_not_asked_for_as_they_are(
    tmp_path: Path,
) -> None:
    made = {"task": Remainder(), "examples": golds(0, 0, 0, 0, 0, 0)}
    make(tmp_path, Teacher(), **made)
    files, before, lines = [path.read_bytes() for path in parts(tmp_path).values()], rows(tmp_path), list[str]()
    make(tmp_path, Teacher(stop_after=0), lines=lines, **made)
    assert not lines and files == [path.read_bytes() for path in parts(tmp_path).values()]
    make(tmp_path, Teacher(stop_after=0), lines=lines, task=Remainder(), examples=golds(0, 0, 0, 0, 1))
    assert len(lines) == 1 and [path.read_bytes() for path in parts(tmp_path).values()][:1] == files[:1]
    after = rows(tmp_path)
    assert after[:24] + after[30:] == before[:24] + before[30:] and after[24:30] != before[24:30]
    make(tmp_path, Teacher(stop_after=0), **made)  # the folder is still known to be made in the same way
    assert rows(tmp_path) == before


def test_a_problem_is_asked_once() -> None:
    first, second = problems(2)
    assert without_repetitions([first, second, dict(first), second]) == [first, second]


def test_nothing_fit_to_train_on_is_an_error_that_says_why(tmp_path: Path) -> None:
    class Odd(Teacher):
        def sample(self, prompts: Any, seeds: Any, sampling: Any) -> list[Response]:
            return [Response("1", 1, i == 0) for i, _ in enumerate(seeds)]

    with pytest.raises(RladError, match=r"fit to be trained on \(\d+ cut off, \d+ wrong\)"):
        make(tmp_path, Odd())
    with pytest.raises(RladError, match="has no records"):
        load_traces(tmp_path / "nothing" if (tmp_path / "nothing").mkdir() is None else tmp_path)


def test_traces_of_other_tools_may_leave_out_how_long_they_are(tmp_path: Path) -> None:
    row = {"problem": "p", "prompt": "[]", "response": "r", "teacher": "t", "settings": "{}", "sample": 0}
    row |= {"value": 1.0, "correct": True, "kept": True, "difficulty": "all"}
    Writer(tmp_path, "trace").append([row])
    assert load_traces(tmp_path).teacher_tokens is None
    assert str(load_traces(tmp_path)) == "1 traces of 1 problems, 1 kept"
