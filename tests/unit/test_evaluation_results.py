"""Rows of the table: rates with their intervals, and what is not known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from rlad.errors import RladError
from rlad.evaluation.metrics import accuracy_interval, average_interval, pass_at_k
from rlad.evaluation.results import Evaluation
from rlad.evaluation.store import Store, set_aside
from rlad.tasks import Score


def row(order: int, sample: int, correct: bool, **others: Any) -> dict[str, Any]:
    defaults = {
        "task": "t", "problem": f"p{order}", "difficulty": "2" if order < 3 else "3", "tokens": 10 * (sample + 1),
        "truncated": sample == 1, "value": float(correct), "extracted": None, "format_ok": True, "response": "r",
    }  # fmt: skip
    return {**defaults, "order": order, "sample": sample, "correct": correct, **others}


# right of 4 samples, for each of 3 + 2 problems
RIGHT = [0, 1, 3, 2, 4]
ROWS = [row(i, j, j < right, format_ok=i != 0) for i, right in enumerate(RIGHT) for j in range(4)]


def made(rows: list[dict[str, Any]] = ROWS, **settings: Any) -> Evaluation:
    return Evaluation.from_rows(rows, "t", "people", {"samples": 4, **settings})


def test_rows_in_any_order_make_the_same_evaluation() -> None:
    assert made(ROWS[::-1]) == made() == made(sorted(ROWS, key=lambda each: (each["sample"], -each["order"])))
    assert [sum(problem.correct) for problem in made().problems] == RIGHT
    assert made().problems[1].correct == [True, False, False, False]
    assert made().problems[0].tokens == [10, 20, 30, 40]


def test_pass_at_k_has_the_interval_of_its_own_estimates() -> None:
    two, three, average = made(pass_at=[1, 2, 4]).rows()
    for k in (1, 2, 4):
        estimates = [pass_at_k(4, right, k) for right in RIGHT[:3]]
        mean, low, high = accuracy_interval(estimates)
        assert two["pass_at"][str(k)] == pytest.approx(mean)
        assert two["pass_at_intervals"][str(k)] == [low, high]
        halves = [(row["pass_at"][str(k)], *row["pass_at_intervals"][str(k)]) for row in (two, three)]
        assert average["pass_at_intervals"][str(k)] == pytest.approx(list(average_interval(halves)[1:]))
    assert two["pass_at_intervals"]["1"] == [two["low"], two["high"]]  # pass@1 is mean@k
    # of 3 problems 0, 1 and 3 of 4 are right: pass@2 = (0 + 1/2 + 1) / 3
    assert two["pass_at"]["2"] == pytest.approx(0.5)


def test_rates_beside_the_accuracy() -> None:
    two, three, average = made().rows()
    assert (two["format_ok"], three["format_ok"], average["format_ok"]) == (
        pytest.approx(2 / 3),
        1.0,
        pytest.approx(5 / 6),
    )
    assert (two["tokens"], two["truncated"]) == (25, 0.25)
    assert list(two["pass_at_intervals"]) == ["4"] and list(two["pass_at"]) == ["1", "2", "4"]


def test_what_is_not_known_is_not_averaged() -> None:
    some = [{**each, "tokens": None, "format_ok": None} if each["order"] < 3 else each for each in ROWS]
    two, three, average = made(some).rows()
    assert (two["tokens"], three["tokens"], average["tokens"]) == (None, 25, None)
    assert (two["format_ok"], average["format_ok"]) == (None, None)
    assert made(some).table().splitlines()[1].split()[-4:] == ["-", "25.0", "%", "-"]
    part = [{**each, "tokens": None} if each["sample"] else each for each in ROWS]
    assert made(part).rows()[0]["tokens"] == 10  # of those that are known


def test_the_table_shows_the_k_that_are_asked_for() -> None:
    head = made().with_pass_at([4, 2, 2]).table().splitlines()[0]
    assert [word for word in head.split() if "@" in word] == ["mean@4", "pass@2", "pass@4"]
    assert [word for word in made().with_pass_at([1]).table().split() if "@" in word] == ["mean@4"]
    for ks, says in (([8], "pass@8 needs at least 8 samples of each problem, not 4"), ([0], "k from 1 on")):
        with pytest.raises(RladError, match=says):
            made().with_pass_at(ks)


def test_problems_with_different_numbers_of_samples() -> None:
    """As a file of responses may have: each problem counts once, and pass@k goes up to the fewest."""
    uneven = made([each for each in ROWS if each["order"] != 1 or each["sample"] < 2])
    two = uneven.rows()[0]
    assert uneven.samples == 2 and list(two["pass_at"]) == ["1", "2"]
    # 0 of 4, 1 of 2, 3 of 4
    assert two["accuracy"] == pytest.approx((0 + 0.5 + 0.75) / 3)
    assert two["pass_at"]["2"] == pytest.approx((0 + 1 + 1) / 3)
    assert math.isfinite(two["low"])


def test_the_reward_is_a_mean_over_problems_as_the_accuracy_is() -> None:
    # one problem right in 1 of 1 sample, another wrong in 3 of 3: of the responses 1 / 4
    uneven = made([row(0, 0, True), *(row(1, j, False) for j in range(3))]).rows()[0]
    assert (uneven["accuracy"], uneven["reward"]) == (0.5, 0.5)
    assert uneven["tokens"] == pytest.approx((10 + 10 + 20 + 30) / 4)  # of responses


def test_a_difficulty_of_null_is_none() -> None:
    task: Any = SimpleNamespace(name="made")
    answer: Any = SimpleNamespace(text="r", tokens=1, truncated=False)
    for examples in ([{"prompt": [], "difficulty": None}], [{"prompt": []}]):
        store = Store(task, examples, {})
        store.add([(0, 0)], [answer], [Score(1.0, True, None, "")])
        assert [each["difficulty"] for each in store.evaluation().rows()] == ["all"]
    with pytest.raises(RladError, match="some examples have a difficulty and some have none: give one to each, or to"):
        Store(task, [{"prompt": [], "difficulty": each} for each in (None, "2")], {})


def test_names_from_data_tell_the_terminal_nothing() -> None:
    table = made([row(0, 0, True, difficulty="\x1b[31mred\n two")]).table()
    assert "\x1b" not in table and len(table.splitlines()) == 2 and " two" in table


@pytest.mark.parametrize("name", ["all", "average"])
def test_a_difficulty_called_like_a_total_is_refused(name: str) -> None:
    examples = [{"prompt": [], "difficulty": each} for each in (name, "2")]
    with pytest.raises(RladError, match=f"called '{name}'.*give it another name"):
        Store(SimpleNamespace(name="made"), examples, {})  # type: ignore[arg-type]
    Store(SimpleNamespace(name="made"), examples[:1], {})  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", [".", "..", "/"])
def test_a_folder_that_is_not_the_records_own_is_not_set_aside(folder: str) -> None:
    with pytest.raises(RladError, match="cannot be set aside: keep the records in a folder of their own"):
        set_aside(folder)
