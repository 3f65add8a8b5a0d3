"""The mathematics task: data sets by name in the layouts that they have, what is wrong with them, and no leaks."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from math import factorial, log2, sqrt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from rlad.cli.main import main
from rlad.errors import RladError
from rlad.tasks import Task, load_task, score_all
from rlad.tasks.math.dataset import INSTRUCTION, Math, _warn
from rlad.tasks.math.pool import close_pools
from rlad.tasks.math.sources import SOURCES, Asked, fingerprint, load


@pytest.fixture(scope="module", autouse=True)
def workers() -> Iterator[None]:
    yield
    close_pools()


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(count: int, word: str = "apples") -> list[dict[str, Any]]:
    return [{"problem": f"What is {i} {word} and {i} more?", "answer": str(2 * i)} for i in range(count)]


@pytest.fixture
def task(tmp_path: Path) -> Math:
    """40 problems to train on, of which 3 are among the 10 to evaluate on."""
    data = lines(tmp_path / "mine.jsonl", rows(40))
    held = lines(tmp_path / "held.jsonl", [*rows(7, "pears"), *rows(3)])
    return Math(data=data, evaluation_data=held, workers=2, validation=0.2)


def problems(examples: list[dict[str, Any]]) -> list[str]:
    return [example["problem"] for example in examples]


def test_it_is_a_task_and_can_be_sent_to_another_process(task: Math) -> None:
    assert isinstance(task, Task)
    assert pickle.loads(pickle.dumps(task)) == task
    assert load_task({"name": "math", "data": task.data, "evaluation_data": task.evaluation_data}).name == "math"


def test_train_validation_and_test_have_nothing_in_common(task: Math) -> None:
    train, validation, test = (
        set(problems(each)) for each in (task.train(), task.evaluation("validation"), task.evaluation())
    )
    assert len(train) + len(validation) == 37 and len(test) == 10 and validation
    assert not train & validation and not train & test and not validation & test


def test_what_is_set_aside_depends_on_the_text_alone(task: Math, tmp_path: Path) -> None:
    aside = set(problems(task.evaluation("validation")))
    backwards = lines(tmp_path / "backwards.jsonl", rows(40)[::-1])
    other = replace(task, data=backwards, seed=7, size=5)
    assert set(problems(other.evaluation("validation"))) == aside
    assert not set(problems(other.train())) & aside


def test_order_and_size(task: Math) -> None:
    assert problems(replace(task, seed=None, validation=0.0).train()) == [row["problem"] for row in rows(40)[3:]]
    shuffled = problems(task.train())
    assert shuffled == problems(task.train()) != problems(replace(task, seed=1).train())
    assert problems(replace(task, size=5).train()) == shuffled[:5]
    with pytest.raises(RladError, match=r"fewer than task\.size=100"):
        replace(task, size=100).train()


def test_an_overlap_is_dropped_and_reported_or_refused(task: Math, caplog: pytest.LogCaptureFixture) -> None:
    _warn.cache_clear()
    task.train()
    assert [record.getMessage() for record in caplog.records if "held" in record.getMessage()] == [
        f"math: {task.report()[-1]}; left out"
    ]
    assert task.report() == [
        f"3 training problems are in held too ({task.data}, line 1 is {task.evaluation_data}, line 8)"
    ]
    for call in (
        replace(task, held_out="refuse").train,
        lambda: replace(task, held_out="refuse").evaluation("validation"),
    ):
        with pytest.raises(RladError, match="3 training problems are in held too"):
            call()


def test_an_overlap_is_seen_through_layout(task: Math, tmp_path: Path) -> None:
    data = lines(
        tmp_path / "data.jsonl",
        [{"problem": r"Let  $\dfrac{A}{2}=\left(3\right)$. Find A!", "answer": "6"}] * 1 + rows(9),
    )
    held = lines(tmp_path / "test.jsonl", [{"problem": r"let $\frac{a}{2} = (3)$; find $a$", "answer": "6"}])
    assert len(Math(data=data, evaluation_data=held, validation=0.0).train()) == 9
    assert fingerprint("1/2") != fingerprint("1/3")


def test_an_evaluation_has_a_row_for_each_data_set_and_begins_evenly(tmp_path: Path) -> None:
    one, two = lines(tmp_path / "one.jsonl", rows(5)), lines(tmp_path / "two.jsonl", rows(3, "pears"))
    task = Math(evaluation_data=[one, two])
    assert [example["difficulty"] for example in task.evaluation(count=4)] == ["one", "two", "one", "two"]
    assert Counter(example["difficulty"] for example in task.evaluation()) == {"one": 5, "two": 3}
    named = Math(evaluation_data={"easy": one, "aime24": two})
    assert Counter(example["difficulty"] for example in named.evaluation()) == {"easy": 5, "aime24": 3}
    with pytest.raises(RladError, match="8 test problems, fewer than the 9"):
        task.evaluation(count=9)


def test_data_sets_that_share_problems_are_reported(tmp_path: Path) -> None:
    one, two = lines(tmp_path / "one.jsonl", rows(5)), lines(tmp_path / "two.jsonl", rows(3))
    data = lines(tmp_path / "data.jsonl", rows(4, "plums"))
    task = Math(data=data, evaluation_data=[one, two])
    assert task.report() == ["3 problems are both in one and in two: an average counts them twice"]


def test_prompts(task: Math) -> None:
    (boxed, system, plain) = (
        replace(task, prompt=name).evaluation(count=1)[0] for name in ("boxed", "system", "plain")
    )
    text = "What is 0 pears and 0 more?"
    assert boxed["prompt"] == [{"role": "user", "content": f"{text}\n\n{INSTRUCTION}"}]
    assert system["prompt"] == [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]
    assert plain["prompt"] == [{"role": "user", "content": text}]
    assert boxed["answer"] == ["0"] and boxed["problem"] == text
    assert boxed.keys() == system.keys() == task.train()[0].keys()


def test_scores_are_graded_together_and_say_both_readings(task: Math) -> None:
    example = {"answer": ["4", "5"]}
    responses = ["\\boxed{4}", "\\boxed{3}", "it is 5", ""]
    strict = score_all(replace(task, right=2.0, wrong=-1.0), responses, [example] * 4)
    assert [score.value for score in strict] == [2.0, -1.0, -1.0, -1.0]
    assert [score.correct for score in strict] == [True, False, False, False]
    assert [score.extracted for score in strict] == ["4", "3", None, None]
    assert [score.format_ok for score in strict] == [True, True, False, False]
    assert strict[0].explanation == "strict right, lenient right; gold 4 or 5"
    assert strict[2].explanation == "strict wrong, lenient right; gold 4 or 5; there is no \\boxed and no 'answer is'"
    lenient = replace(task, scorer="lenient")
    assert [score.correct for score in score_all(lenient, responses, [example] * 4)] == [True, False, True, False]
    assert lenient.score(responses[2], example) == score_all(lenient, responses, [example] * 4)[2]


def test_an_answer_that_blows_up_says_so(task: Math) -> None:
    score = replace(task, seconds=0.3).score("\\boxed{9^{9^{9^{9}}}}", {"answer": "1"})
    assert (score.value, score.correct) == (0.0, False)
    assert score.explanation == "not graded: wrong; grading took more than 0.3 s of processor time"


def test_an_example_without_an_answer_is_an_error(task: Math) -> None:
    for example in ({}, {"answer": None}, {"answer": []}, {"answer": float("nan")}):
        with pytest.raises(RladError, match="answer"):
            task.score("\\boxed{1}", example)


def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, split: str, made: list[dict[str, Any]]) -> None:
    """Let a folder in the hub's layout, with a Parquet file in the data set's own schema, stand for the data set."""
    folder = tmp_path / name
    config = SOURCES[name].config or "default"
    (folder / config).mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(made), folder / config / "rows.parquet")
    files = f"  data_files:\n  - split: {split}\n    path: {config}/*.parquet\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n{files}---\n")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], repository=str(folder), revision=""))


HUB: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "gsm8k": ("train", {"question": "P", "answer": "He has 1,200 <<1200=1200>>.\n#### 1,200"}, ["1200"]),
    "math": (
        "train",
        {
            "problem": "P",
            "level": "Level 1",
            "solution": r"First \boxed{1}. So $\boxed{\frac{1}{2}}$.",
            "type": "Algebra",
        },
        [r"\frac{1}{2}"],
    ),
    "math500": ("test", {"problem": "P", "solution": r"\boxed{7}", "answer": "7", "unique_id": "u"}, ["7"]),
    "amc23": ("test", {"id": 0, "question": "P", "answer": 27.0, "url": "u"}, ["27"]),
    "amc24": ("train", {"problem": "P", "answer": "5"}, ["5"]),
    "aime24": ("train", {"id": 60, "problem": "P", "solution": "s", "answer": "204", "year": "2024"}, ["204"]),
    "aime25": ("test", {"problem": "P", "answer": r"336^\circ", "id": "0"}, [r"336^\circ"]),
    "skywork-or1": (
        "math",
        {
            "data_source": "train-math-x",
            "prompt": [{"role": "user", "content": "P"}],
            "ability": "math",
            "reward_model": {"ground_truth": '["\\\\frac{1}{2}", "0.5"]', "style": "rule"},
            "extra_info": {"index": 0, "model_difficulty": {"m": 3}},
        },
        [r"\frac{1}{2}", "0.5"],
    ),
    "deepmath": (
        "train",
        {"question": "P", "final_answer": "0", "difficulty": 4.5, "topic": "t", "r1_solution_1": r"\boxed{9}"},
        ["0"],
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_the_hubs_layout_of_each_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert HUB.keys() == SOURCES.keys()
    split, row, golds = HUB[name]
    hub(tmp_path, monkeypatch, name, split, [row])
    (example,) = Math(evaluation_data=f"{name}:{split}").evaluation()
    assert (example["problem"], example["answer"], example["difficulty"]) == ("P", golds, name)
    usual = {SOURCES[name].train, SOURCES[name].test}
    assert split in usual


def test_revisions_are_pinned_and_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(len(source.revision) == 40 for source in SOURCES.values())
    calls: list[tuple[Any, ...]] = []

    def load_dataset(repository: str, config: str | None, split: str, revision: str | None) -> Any:
        calls.append((repository, config, split, revision))
        return [{"question": "P", "problem": "P", "answer": "#### 1"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    Math(evaluation_data="gsm8k").evaluation()
    Math(evaluation_data="gsm8k:train@abc").evaluation()
    Math(evaluation_data="owner/name@v1").evaluation()
    assert calls == [
        ("openai/gsm8k", "main", "test", SOURCES["gsm8k"].revision),
        ("openai/gsm8k", "main", "train", "abc"),
        ("owner/name", None, "test", "v1"),
    ]


def test_a_hub_that_cannot_be_reached_is_an_error_with_advice() -> None:
    with pytest.raises(RladError, match=r"cannot get openai/gsm8k from the hub .*task\.data_root"):
        Math(data="gsm8k", evaluation_data="gsm8k").train()


def test_a_local_copy_may_have_the_hubs_layout_or_problem_and_answer(tmp_path: Path) -> None:
    lines(tmp_path / "gsm8k_test.jsonl", [{"question": "R", "answer": "x\n#### 42"}])
    lines(tmp_path / "amc23.jsonl", [{"problem": "Q", "answer": 27.0}])
    parquet.write_table(pa.Table.from_pylist([HUB["skywork-or1"][1]]), tmp_path / "skywork-or1.parquet")
    task = Math(data_root=str(tmp_path), data="skywork-or1", evaluation_data=["gsm8k", "amc23"], validation=0.0)
    assert [example["answer"] for example in task.evaluation()] == [["42"], ["27"]]
    assert task.train()[0]["answer"] == [r"\frac{1}{2}", "0.5"]
    with pytest.raises(RladError, match=r"has no math500_test\.jsonl"):
        Math(data_root=str(tmp_path), data="skywork-or1")


def test_rows_that_cannot_be_used_are_left_out_and_counted(tmp_path: Path) -> None:
    bad = [
        {"problem": "\text{P}", "answer": "1"},
        {"problem": "P", "answer": ""},
        {"problem": "P", "answer": "\x0crac12"},
    ]
    path = lines(tmp_path / "data.jsonl", [*rows(97), *bad])
    task = Math(evaluation_data=path)
    assert len(task.evaluation()) == 97
    (note,) = [note for note in task._loaded("evaluation_data").notes]
    assert note.startswith("data: 3 of 100 rows are left out") and "line 98: the LaTeX is corrupt" in note
    with pytest.raises(RladError, match="6 of 13 rows cannot be used"):
        Math(evaluation_data=lines(tmp_path / "worse.jsonl", [*rows(7), *bad, *bad])).evaluation()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"problem": "P"}, "a row needs 'problem' and 'answer'; it has problem"),
        ({"text": "P", "answer": "1"}, "it has text, answer"),
        ({"problem": "", "answer": "1"}, "the problem is empty"),
        ({"problem": "P", "answer": {}}, "an answer is a text"),
        ({"problem": "P", "answer": ["1"] * 100}, "at most 32"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(RladError, match=words) as raised:
        Math(evaluation_data=lines(tmp_path / "data.jsonl", [row])).evaluation()
    assert "data.jsonl, line 1" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": "maths"}, "there is no data set or file maths"),
        ({"data": "aime24"}, "not meant for training; if you mean it, write aime24:train"),
        ({"evaluation_data": "deepmath"}, "not meant for evaluation"),
        ({"evaluation_data": ["aime24", "aime24"]}, "aime24 twice"),
        ({"data": "nowhere.jsonl"}, "is not a file"),
        ({"data": []}, "must be the name of a data set"),
        ({"data": {"a": 1}}, "must be the name of a data set"),
        ({"data": 3}, "must be the name of a data set"),
        ({"data_root": "/nowhere"}, "there is no folder"),
        ({"scorer": "loose"}, "strict, lenient"),
        ({"prompt": "x"}, "boxed, system, plain"),
        ({"held_out": "keep"}, "drop, refuse"),
        ({"size": 0}, "at least 1"),
        ({"memory": None}, "at least 256"),
        ({"workers": True}, "at least 1"),
        ({"right": "1"}, "must be a number"),
        ({"seconds": 0}, "from 0.01 to 3600"),
        ({"validation": 1}, "a share"),
    ],
)
def test_a_users_mistake_is_an_error_before_anything_is_read(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RladError, match=words):
        Math(**options)


def test_no_validation_is_an_error_with_advice(task: Math) -> None:
    with pytest.raises(RladError, match=r"raise task\.validation"):
        replace(task, validation=0.0).evaluation("validation")
    with pytest.raises(RladError, match="test or validation"):
        task.evaluation("train")


def test_the_amc24_corrections() -> None:
    """Each by brute force or in closed form, apart from the text of the problems."""
    assert len({pow(x, 100, 125) for x in range(125)}) == 2
    lucas = [1, 3]
    while len(lucas) < 10:
        lucas.append(lucas[-1] + lucas[-2])
    assert sum(lucas) == 319
    ways = 0  # of 6 balls a are red and striped, b red and dotted, c blue and striped, d blue and dotted
    for a in range(7):
        for b in range(7 - a):
            for c in range(7 - a - b):
                d = 6 - a - b - c
                if 6 * a == (a + b) * (a + c):
                    ways += factorial(6) // (factorial(a) * factorial(b) * factorial(c) * factorial(d))
    assert Fraction(ways, 4**6) == Fraction(243, 1024)
    # Triangle (log 1, log 2), (log 3, log 4), (log 7, log 8) to base 2, by the shoelace formula.
    (x1, y1), (x2, y2), (x3, y3) = ((log2(a), log2(b)) for a, b in ((1, 2), (3, 4), (7, 8)))
    assert abs(x1 * (y2 - y3) + x2 * (y3 - y1) + x3 * (y1 - y2)) / 2 == pytest.approx(log2(3 / sqrt(7)))


def test_wrong_golds_of_amc24_are_corrected_in_either_layout(test_data: Path, tmp_path: Path) -> None:
    path = test_data / "math" / "amc24.jsonl"
    mine = [json.loads(line) for line in path.read_text().splitlines()]
    upstream = lines(tmp_path / "amc24.jsonl", [{"problem": row["problem"], "answer": row["answer"]} for row in mine])
    golds = [[row.get("answer_corrected", row["answer"])] for row in mine]
    for file in (str(path), upstream):
        task = Math(evaluation_data={"amc24": file})
        assert [example["answer"] for example in task.evaluation()] == golds
        assert sum("is wrong" in note for note in task._loaded("evaluation_data").notes) == 4


def test_real_data_sets(test_data: Path) -> None:
    """Sizes of the splits, MATH-500 in MATH's test split, the one problem of MATH-500 that MATH trains on."""
    root = str(test_data / "math")
    names = ["aime24", "aime25", "amc23", "amc24", "math500", "math", "gsm8k"]
    task = Math(data=["math", "gsm8k"], data_root=root, evaluation_data=names, validation=0.0)
    counts = Counter(example["difficulty"] for example in task.evaluation())
    assert counts == {"aime24": 30, "aime25": 30, "amc23": 40, "amc24": 45, "math500": 500, "math": 5000, "gsm8k": 1319}
    notes = task.report()
    assert "500 problems are both in math500 and in math: an average counts them twice" in notes
    assert sum(note.startswith("1 training problem is in math500 too") for note in notes) == 1
    assert sum(note.startswith("math: 3 of 7500 rows are left out") for note in notes) == 1
    degrees = [row for row in Math(data_root=root, evaluation_data="aime25").evaluation() if "336" in row["answer"][0]]
    assert len(degrees) == 1 and task.score("\\boxed{336^\\circ}", degrees[0]).correct


def test_golds_of_real_data_sets_are_right_by_themselves(test_data: Path) -> None:
    """What the grader cannot recognise as its own gold would be a problem that no answer solves."""
    root = str(test_data / "math")
    task = Math(data_root=root, evaluation_data=["aime24", "aime25", "amc23", "amc24", "math500"], seconds=20.0)
    examples = task.evaluation()
    scores = score_all(task, [f"\\boxed{{{example['answer'][0]}}}" for example in examples], examples)
    assert [example["where"] for example, score in zip(examples, scores, strict=True) if not score.correct] == []


def test_rlad_grade_math(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import io
    import sys

    sent = [
        {"response": "\\boxed{4}", "answer": "4"},
        {"response": "no answer given"},
        {"response": "\\boxed{27}", "answer": 27.0},
        {"response": "it is 5", "answer": ["4", "5"]},
        {"response": "\\boxed{B}", "answer": "8", "problem": "Is it (A) 7 (B) 8 (C) 9"},
    ]
    data = "".join(json.dumps(row) + "\n" for row in sent).encode()
    for scorer, right in (("strict", [True, None, True, False, True]), ("lenient", [True, None, True, True, True])):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main(["grade", "math", "--scorer", scorer]) == 1
        out, err = capsys.readouterr()
        assert [json.loads(line).get("correct") for line in out.splitlines()] == right
        assert err.startswith("line 2: math needs answer")


def test_a_column_that_nobody_needs_may_hold_what_python_has_no_value_for(tmp_path: Path) -> None:
    far = pa.array([2**60], pa.timestamp("ms"))
    parquet.write_table(pa.table({"problem": ["1+1"], "answer": ["2"], "made": far}), tmp_path / "own.parquet")
    (problem,) = load([Asked("own", "test", str(tmp_path / "own.parquet"))]).problems
    assert (problem.text, problem.golds) == ("1+1", ("2",))


def test_a_problem_with_two_answers_is_noted(tmp_path: Path) -> None:
    rows = [("1+1", "2"), ("1+2", "3"), ("1+1", "$2$"), ("1+2", "4")]
    text = "".join(json.dumps({"problem": problem, "answer": answer}) + "\n" for problem, answer in rows)
    (tmp_path / "own.jsonl").write_text(text)
    loaded = load([Asked("own", "test", str(tmp_path / "own.jsonl"))])
    (note,) = loaded.notes
    assert "line 4: a problem that was there before has another answer (4 here and 3 in" in note
