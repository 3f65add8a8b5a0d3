"""Tables and charts from cells that are made by hand: every number is worked out in a comment."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from rlad.compare import charts, numbers, tables
from rlad.compare.cells import Finished
from rlad.compare.numbers import BEFORE, Group

T2 = 4.302652729911275  # Student's t, 0.975, 2 degrees of freedom
T1 = 12.706204736432095  # and 1


def cell(
    seed: int, after: float, before: float | None = 0.25, right: list[int] | None = None, samples: int = 1, **more: Any
) -> Finished:
    """Two difficulties; the accuracy of all is `after`, that of 2 and 3 people one tenth above and below."""
    rows = [("2", 0.1), ("3", -0.1), ("average", 0.0), ("all", 0.0)]
    gain = [
        {"difficulty": name, "problems": 2, "after": after + d} | ({} if before is None else {"before": before + d})
        for name, d in rows
    ]
    data: dict[str, Any] = {"version": 1, "recipe": {"seed": seed}, "gain": gain, "curve": [], **more}
    if right is not None:
        data["problems"] = {"digest": "x", "samples": samples, "after": right, "before": [0] * len(right)}
    return Finished(Path(f"{seed}.json"), data)


def group(label: str, *cells: Finished, wanted: int = 3, **chosen: Any) -> Group:
    return Group(label, cells, wanted, chosen)


def test_means_and_intervals_over_seeds() -> None:
    # .4, .5, .6: mean .5, sd .1, half width T2 * .1 / sqrt 3
    rows = numbers.accuracy_rows([group("rlad", cell(1, 0.4), cell(2, 0.5), cell(3, 0.6, before=0.31), alpha=0.3)])
    half = T2 * 0.1 / math.sqrt(3)
    student, rlad = rows
    assert rlad["label"] == "rlad alpha=0.3" and rlad["seeds"] == 3
    assert rlad["accuracy"] == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert rlad["by_difficulty"]["2"][0] == pytest.approx(0.6) and rlad["by_difficulty"]["3"][0] == pytest.approx(0.4)
    assert list(rlad["by_difficulty"]) == ["2", "3"]  # no totals among the difficulties
    # Gains, seed by seed: .15, .25, .29: mean .23
    assert rlad["gain"][0] == pytest.approx(0.23)
    # The student, once a seed: (.25 + .25 + .31) / 3 = .27
    assert student["label"] == BEFORE and student["seeds"] == 3 and student["accuracy"][0] == pytest.approx(0.27)
    assert student["gain"] is None


def test_the_student_counts_once_a_seed() -> None:
    groups = [group("a", cell(1, 0.5), cell(2, 0.5)), group("b", cell(1, 0.6), cell(2, 0.6, before=0.25))]
    assert numbers.accuracy_rows(groups)[0]["seeds"] == 2


def test_students_and_questions_are_not_mixed() -> None:
    """Of a grid over models or evaluations each is a row of its own, in Pass@k too."""

    def asked(seed: int, model: str, split: str, before: float) -> Finished:
        recipe = {"seed": seed, "model": {"path": model}, "task": "t", "evaluate": {"split": split}}
        return cell(seed, 0.5, before=before, right=[1], samples=2, recipe=recipe)

    groups = [
        group("a", asked(1, "small", "test", 0.1), asked(2, "small", "test", 0.3)),
        group("b", asked(1, "large", "test", 0.8)),
        group("c", asked(1, "large", "validation", 0.9)),
    ]
    rows = [row for row in numbers.accuracy_rows(groups) if row["label"].startswith(BEFORE)]
    names = [f"{BEFORE} model.path={model} evaluate.split={split}"
             for model, split in (("small", "test"), ("large", "test"), ("large", "validation"))]  # fmt: skip
    assert [row["label"] for row in rows] == names
    assert [(row["seeds"], row["accuracy"][0]) for row in rows] == [(2, pytest.approx(0.2)), (1, 0.8), (1, 0.9)]
    assert [row["label"] for row in numbers.pass_rows(groups)][:3] == names


def test_an_evaluated_model_has_no_before() -> None:
    rows = numbers.accuracy_rows([group("teacher", cell(1, 0.9, before=None), wanted=1)])
    assert [row["label"] for row in rows] == ["teacher"] and rows[0]["gain"] is None
    text = tables.markdown([group("teacher", cell(1, 0.9, before=None), wanted=1)], "teacher")
    assert "| teacher | 1 | 90.0 % | - | - | - |" in text


def test_pairs_by_seed_and_by_problem() -> None:
    # By seed: .5 - .4, .7 - .5, and seed 3 has no pair: .1 and .2: mean .15, sd .0707, half T1 * .05
    base = group(
        "grpo", cell(1, 0.4, right=[2, 0, 0, 0], samples=2), cell(2, 0.5, right=[2, 2, 0, 0], samples=2), cell(3, 0.9)
    )
    ours = group("rlad", cell(2, 0.7, right=[1, 1, 1, 0]), cell(1, 0.5, right=[1, 0, 1, 1]), wanted=2)
    (row,) = numbers.paired_rows([base, ours], "grpo")
    assert row["seeds"] == 2
    assert row["by_seed"] == pytest.approx((0.15, 0.15 - T1 * 0.05, 0.15 + T1 * 0.05))
    # By problem, means over seeds of the share right, of 2 samples or of 1: grpo 1, .5, 0, 0; rlad 1, .5, 1, .5.
    # Differences 0, 0, 1, .5: mean .375.
    assert row["problems"] == 4 and row["by_problem"][0] == pytest.approx(0.375)
    # Signs of 1 and .5: of 4 sums 1.5, .5, -.5, -1.5 two are as far out: p = .5
    assert row["p_value"] == row["p_holm"] == pytest.approx(0.5)


def test_cells_that_do_not_know_their_problems_pair_by_seed_alone() -> None:
    (row,) = numbers.paired_rows([group("grpo", cell(1, 0.4)), group("rlad", cell(1, 0.5, right=[1]))], "grpo")
    assert row["by_problem"] is None and row["p_value"] is None and row["by_seed"][0] == pytest.approx(0.1)
    other = cell(1, 0.5, right=[1])
    other.data["problems"]["digest"] = "others"  # type: ignore[index]
    base = group("a", cell(1, 0.4, right=[0]))
    assert numbers.paired_rows([base, group("b", other)], "a")[0]["by_problem"] is None


def test_accuracies_on_other_problems_are_not_subtracted() -> None:
    def of(seed: int, digest: str) -> Finished:
        made = cell(seed, 0.5, right=[0, 1])
        made.data["problems"]["digest"] = digest  # type: ignore[index]
        return made

    base = group("grpo", of(1, "x"), of(2, "x"))
    some, none = group("some", of(1, "x"), of(2, "y")), group("none", of(1, "y"), of(2, "y"))
    rows = numbers.paired_rows([base, some, none], "grpo")
    assert [(row["seeds"], row["apart"], row["by_seed"] is None) for row in rows] == [(1, 1, False), (0, 2, True)]
    text = tables.markdown([base, some, none], "grpo")
    assert "| none | 0 | - | - | - | - | - | - |" in text and "| some | 1 | +0.0 |" in text
    assert "evaluated on other problems than grpo: some (1), none (2)." in text
    # Cells that do not know their problems: by what their recipes say of them.
    recipes = [{"seed": 1, "task": "t", "evaluate": {"split": split}} for split in ("test", "validation")]
    one, two = (group(f"g{i}", cell(1, 0.5, recipe=recipe)) for i, recipe in enumerate(recipes))
    assert numbers.paired_rows([one, two], "g0")[0]["by_seed"] is None


def test_a_bar_does_not_break_a_table() -> None:
    assert tables.table(["a|b"], [["x|y\nz"]]).splitlines() == ["| a\\|b |", "| --- |", "| x\\|y z |"]


def test_holm() -> None:
    # Sorted .01, .03, .04 times 3, 2, 1: .03, .06, and .04 may not fall below .06
    assert numbers.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert numbers.holm([0.9, 0.8]) == [1.0, 1.0] and numbers.holm([]) == []


def test_pass_at_k() -> None:
    # 4 samples; 0, 1 and 4 right: pass@1 0, 1/4, 1; pass@2 0, 1 - C(3,2)/C(4,2) = 1/2, 1; pass@4 0, 1, 1
    rows = numbers.pass_rows([group("rlad", cell(1, 0.5, right=[0, 1, 4], samples=4))])
    found = {row["label"]: {k: mean for k, (mean, _, _) in row["pass_at"].items()} for row in rows}
    assert found["rlad"] == pytest.approx({1: 5 / 12, 2: 0.5, 4: 2 / 3})
    assert found[BEFORE] == {1: 0, 2: 0, 4: 0} and rows[1]["problems"] == 3
    assert numbers.pass_rows([group("one", cell(1, 0.5, right=[0, 1]))]) == []  # one sample says nothing more


def steps(*values: float, **constant: float) -> list[dict[str, float]]:
    return [{"step": i, "accuracy": v, "seconds": 10.0 * i, **constant} for i, v in enumerate(values, 1)]


def test_training_accuracy_is_of_the_second_half_of_the_steps() -> None:
    # Of five steps the last three: (.3 + .5 + .7) / 3 = .5; of four the last two: (.2 + .4) / 2 = .3
    five, four = steps(0.9, 0.9, 0.3, 0.5, 0.7), steps(0.9, 0.9, 0.2, 0.4)
    assert numbers.training_accuracy(cell(1, 0.5, curve=five)) == pytest.approx(0.5)
    assert numbers.training_accuracy(cell(1, 0.5, curve=[{"step": 1, "loss": 1.0}, *four])) == pytest.approx(0.3)
    assert numbers.training_accuracy(cell(1, 0.5)) is None  # supervised
    base = group("grpo", cell(1, 0.5, curve=four), cell(2, 0.5, curve=four))
    ours = group("rlad", cell(2, 0.5, curve=steps(0.6, 0.7)), cell(1, 0.5, curve=five))
    none = group("sft", cell(1, 0.5), cell(2, 0.5))
    rows = {row["label"]: row for row in numbers.accuracy_rows([base, ours, none])}
    assert rows["rlad"]["training"][0] == pytest.approx((0.5 + 0.7) / 2) and rows["sft"]["training"] is None
    # By seed: .5 - .3, .7 - .3: mean .3, sd .1414, half T1 * .1
    rlad, sft = numbers.paired_rows([base, ours, none], "grpo")
    assert rlad["training"] == pytest.approx((0.3, 0.3 - T1 * 0.1, 0.3 + T1 * 0.1)) and sft["training"] is None
    text = tables.markdown([base, ours, none], "grpo")
    # Nothing is known of problems, and equal seeds have no interval.
    assert "| rlad | 2 | +0.0 | +30.0 (-97.1 to +157.1) |" in text
    assert "| grpo | 2 of 3 | 50.0 % | - | +25.0 | 30.0 % |" in text


def test_seconds_by_part_leave_the_first_generation_out() -> None:
    parts = {f"rlad/seconds/{name}": value for name, value in (("generation", 2.0), ("teacher", 1.0), ("ours", 0.1))}
    curve = [{"step": i, "step_time": t, **parts} for i, t in enumerate((99.0, 4.0, 6.0, 90.0), 1)]
    (row,) = numbers.seconds_rows([group("rlad", cell(1, 0.5, curve=curve))])
    # 4, 6 and 90 (something else ran on the machine): median 6, quartiles 4 and 90; the rest 6 - 2 - 1 - .1 = 2.9
    assert row["generations"] == 3 and row["step"] == (6, 4, 90) and row["teacher"] == 1
    assert row["forward and backward"] == pytest.approx(2.9)
    text = tables.markdown([group("rlad", cell(1, 0.5, curve=curve))], "rlad")
    assert "(under 0.005 in every row: rewards, recorder):" in text and "| advantages and objective |" in text
    assert "| rlad | 3 | 6.00 (4.00 to 90.00) | 2.00 | 1.00 | 0.10 | 2.90 |" in text
    assert numbers.seconds_rows([group("old", cell(1, 0.5, curve=steps(0.1, 0.2)))]) == []


def test_a_row_that_stands_for_several_steps_has_their_parts_in_sum() -> None:
    # logging_steps 10: a step of 2 seconds, of it 10 / 10 = 1 generation and 3 / 10 = .3 the teacher; the rest is .7.
    row = {"step_time": 2.0, "rlad/seconds/generation": 10.0, "rlad/seconds/teacher": 3.0}
    curve = [{"step": step, **row} for step in (10, 20, 30)]
    (found,) = numbers.seconds_rows([group("rlad", cell(1, 0.5, curve=curve))])
    assert found["generations"] == 2 and found["step"] == (2, 2, 2)
    assert (found["generation"], found["teacher"]) == pytest.approx((1.0, 0.3))
    assert found["forward and backward"] == pytest.approx(0.7)


def test_a_step_without_rollouts_belongs_to_the_generation_before() -> None:
    # num_iterations 2: steps of 10 and 2 seconds, 8 of the first in generation. A step is 6, of it 4 generation.
    pair = [{"step_time": 10.0, "rlad/seconds/generation": 8.0}, {"step_time": 2.0}]
    curve = [{"step": i, **row} for i, row in enumerate(pair * 3, 1)]
    (row,) = numbers.seconds_rows([group("rlad", cell(1, 0.5, curve=curve))])
    assert row["generations"] == 2 and row["step"] == (6, 6, 6)
    assert row["generation"] == 4 and row["forward and backward"] == 2


def test_tokens_are_means_over_the_first_and_the_last_quarter_and_over_seeds() -> None:
    one, two = steps(*[0.1] * 8), steps(*[0.1] * 8)
    for i in range(8):
        one[i]["rlad/clip_high"], two[i]["rlad/clip_high"] = i / 10, i / 5
    two[1]["rlad/student_minus_teacher"], two[7]["rlad/student_minus_teacher"] = 0.5, -0.25
    (row,) = numbers.token_rows([group("rlad", cell(1, 0.5, curve=one), cell(2, 0.5, curve=two))])
    # Two of eight steps: (0 + .1 + 0 + .2) / 4 and (.6 + .7 + 1.2 + 1.4) / 4; log T - log S is known of one at an end.
    assert row["clipped above"] == pytest.approx((0.075, 0.975)) and row["steps"] == 16
    assert row["log T - log S"] == (-0.5, 0.25) and row["clamped"] == (None, None)
    assert numbers.token_rows([group("old", cell(1, 0.5))]) == []


def test_of_fewer_than_four_steps_the_first_and_the_last_are_the_ends() -> None:
    curve = steps(0.1, 0.2, 0.3)
    for i, row in enumerate(curve):
        row["entropy"] = float(i)
    (row,) = numbers.token_rows([group("rlad", cell(1, 0.5, curve=curve))])
    assert row["entropy"] == (0, 2)


@pytest.mark.parametrize(
    ("method", "shown"),
    [("rlad", True), ({"name": "rlad", "teacher_clip": 2.0}, True), ({"name": "rlad", "teacher_clip": None}, False),
     ("rlad-schedule", True), ("grpo", False), ({"name": "kdrl"}, False)],
)  # fmt: skip
def test_only_a_method_with_a_clamp_has_a_share_of_clamped_tokens(method: Any, shown: bool) -> None:
    curve = steps(0.1, **{"rlad/clamped": 0.0, "entropy": 0.5})
    (row,) = numbers.token_rows([group("x", cell(1, 0.5, curve=curve, recipe={"seed": 1, "method": method}))])
    assert (row["clamped"] == (0.0, 0.0)) is shown and row["entropy"] == (0.5, 0.5)


def test_rows_of_a_grid_stand_in_the_order_of_its_values() -> None:
    from rlad.compare.report import _by_value

    def at(family: str, grid: dict[str, Any]) -> Group:
        return Group(f"{family}{list(grid.values())}", [], 1, {}, family, grid)

    made = [
        at("grpo", {}),
        at("rlad", {"a": 0.5}),
        at("rlad", {"a": 0.9}),
        at("kdrl", {"b": "x"}),
        at("rlad", {"a": 0.1}),
    ]
    assert [group.label for group in _by_value(made)] == ["grpo[]", "rlad[0.1]", "rlad[0.5]", "rlad[0.9]", "kdrl['x']"]


def test_a_seed_whose_student_was_measured_twice_is_known() -> None:
    one = [group("a", cell(1, 0.5, before=0.25), cell(2, 0.5)), group("b", cell(1, 0.5, before=0.32), cell(2, 0.5))]
    assert numbers.measured_twice(one) == [1] and numbers.measured_twice(one[:1]) == []
    # Another student, or other problems, may well be right more often.
    other = [group("a", cell(1, 0.5)), group("b", cell(1, 0.5, before=0.32, recipe={"seed": 1, "model": "other"}))]
    assert numbers.measured_twice(other) == []
    # The student's row and its Pass@k are of the same cells: of those that know their problems where there are any.
    knows = group("b", cell(1, 0.5, before=0.32, right=[1]))
    ((label, cells),) = numbers.students([one[0], knows])
    assert label == BEFORE and [each.accuracy("before") for each in cells] == [0.32, 0.25]


def test_problems_are_paired_of_the_seeds_that_know_them() -> None:
    base = group("grpo", cell(1, 0.4, right=[1, 0]), cell(2, 0.4))
    ours = group("rlad", cell(1, 0.5, right=[1, 1]), cell(2, 0.5, right=[1, 1]))
    teacher = group("teacher", cell(1, 0.9, right=[1, 1], kind="evaluate"))
    (row,) = numbers.paired_rows([base, ours, teacher], "grpo")  # a teacher is no method: it corrects nothing
    assert row["label"] == "rlad" and row["seeds"] == 2 and row["problem_seeds"] == 1
    assert row["by_problem"][0] == pytest.approx(0.5) and row["p_value"] is not None
    assert "| 2 (1 of the seeds) | +50.0" in tables.markdown([base, ours], "grpo")


def test_the_markdown_says_n_and_what_is_missing() -> None:
    base = group("grpo", *(cell(s, 0.4 + 0.1 * s, right=[1, 0, 1, 0]) for s in (1, 2, 3)))
    ours = group("rlad", *(cell(s, 0.5 + 0.1 * s, right=[1, 1, 1, 0]) for s in (1, 2)))
    sweeps = [
        {"label": "rlad", "point": {"method.alpha": 0.3}, "accuracy": 0.5, "training": 0.4, "chosen": True},
        {"label": "rlad", "point": {"method.alpha": 0.5}, "accuracy": None, "training": None, "chosen": False},
    ]
    text = tables.markdown([base, ours, group("kdrl")], "grpo", sweeps)
    assert "| rlad | alpha=0.3 | 50.0 % | 40.0 % | chosen |" in text and "| alpha=0.5 | missing | - |  |" in text
    # grpo .5, .6, .7: half width T2 * .1 / sqrt 3 = .248
    assert "| grpo | 3 | 60.0 % | 35.2 % to 84.8 % | +35.0 (+10.2 to +59.8) |" in text
    assert "| rlad | 2 of 3 | 65.0 % |" in text and "kdrl" not in text
    assert "Minus grpo, in points" in text and "| rlad | 2 | +10.0 | - | 4 | +25.0 " in text
    widths = {line.count("|") for line in text.split("\n\n")[1].splitlines()}
    assert len(widths) == 1


def test_by_the_clock_a_seed_has_what_it_had_reached() -> None:
    fast, slow = steps(0.0, 1.0, 1.0), steps(0.0, 1.0, 1.0)
    for row in slow:
        row["seconds"] *= 2  # 20, 40, 60 in the place of 10, 20, 30
    # Smoothed over 5 steps: 0, 1/2, 2/3. The line runs from 20, where both have begun, to 30, where the first ends.
    assert dict(charts.clock_curve(fast, "accuracy")) == pytest.approx({10: 0, 20: 1 / 2, 30: 2 / 3})
    chart = charts.by_clock({"rlad": [fast, slow]})
    points = chart.to_dict()["data"]["values"]
    assert (points[0]["x"], points[0]["y"]) == pytest.approx((20, 1 / 4))  # (1/2 + 0) / 2
    assert (points[-1]["x"], points[-1]["y"]) == pytest.approx((30, 1 / 3))  # (2/3 + 0) / 2
    named = charts.by_clock({"rlad": [fast, slow, [{"step": 1, "accuracy": 0.5}]]}).to_dict()["data"]["values"]
    assert {point["label"] for point in named} == {"rlad (2 of 3 seeds)"}
    assert charts.by_clock({"old": [[{"step": 1, "accuracy": 0.5}]]}) is None
    late = [{**row, "seconds": row["seconds"] + 100} for row in fast]
    assert charts.by_clock({"rlad": [fast, late]}) is None  # no time that both have


def test_charts_are_pictures(tmp_path: Path) -> None:
    curve = steps(0.1, 0.3, 0.2, **{"rlad/clip_high": 0.1, "entropy": 0.5})
    groups = [
        group(label, *(cell(s, 0.5, right=[0, 2, 4], samples=4, curve=curve) for s in (1, 2)))
        for label in ("grpo", "rlad")
    ]
    names = charts.draw(groups, tmp_path)
    assert names == ["by-step", "by-clock", "pass-at-k", "by-difficulty", "tokens"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{n}{s}" for n in names for s in (".png", ".svg")
    )
    for name in names:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        picture = ET.parse(tmp_path / f"{name}.svg").getroot()
        assert picture.tag.endswith("svg")
        words = "".join(picture.itertext())
        assert "grpo" in words and "rlad" in words


def test_bars_of_one_seed_have_no_interval_and_others_end_at_the_limits() -> None:
    def bars(*cells: Finished) -> list[dict[str, Any]]:
        chart = charts.difficulty_chart([group("rlad", *cells)])
        return [point for point in chart.to_dict()["data"]["values"] if point["label"] == "rlad"]

    assert all("low" not in point and "high" not in point for point in bars(cell(1, 0.5)))
    # .3 and .7: mean .5 and a half width of T1 * .2 = 2.5
    assert all((point["low"], point["high"]) == (0.0, 1.0) for point in bars(cell(1, 0.3), cell(2, 0.7)))


def test_a_grid_of_numbers_is_drawn_by_value() -> None:
    def at(family: str, grid: dict[str, Any], *after: float) -> Group:
        return Group(f"{family} {grid}", [cell(i, a) for i, a in enumerate(after, 1)], 3, {}, family, grid)

    grpo = group("grpo", cell(1, 0.3), cell(2, 0.5))  # mean .4
    # Not in the order of their values, and of two cells of the study with one name.
    groups = [grpo, at("rlad", {"method.alpha": 0.7}, 0.5), at("rlad", {"method.alpha": 0.1}, 0.2, 0.4),
              at("rlad", {"method.alpha": 0.4}, 0.6), at("rlad", {"method.alpha": 0.9})]  # fmt: skip
    (panel,) = charts.value_chart(groups, "grpo").to_dict()["concat"]  # nothing is known of training
    line, dots, rule = (layer["data"]["values"] for layer in panel["layer"])
    assert line == [{"x": 0.1, "y": pytest.approx(0.3)}, {"x": 0.4, "y": 0.6}, {"x": 0.7, "y": 0.5}]
    assert dots == [{"x": 0.1, "y": 0.2}, {"x": 0.1, "y": 0.4}, {"x": 0.4, "y": 0.6}, {"x": 0.7, "y": 0.5}]
    assert rule == [{"y": pytest.approx(0.4)}] and "grpo" in panel["title"]
    trained = [at("rlad", {"method.alpha": a}, 0.5) for a in (0.1, 0.5, 0.9)]
    for one in trained:
        one.cells[0].data["curve"] = steps(0.0, one.grid["method.alpha"])
    _, panel = charts.value_chart(trained).to_dict()["concat"]
    assert [point["y"] for point in panel["layer"][0]["data"]["values"]] == [0.1, 0.5, 0.9]
    # Two values are no line; a word, a switch or two numbers at once are no axis.
    assert charts.value_chart(groups[:3], "grpo") is None
    for grid in ({"x": "a"}, {"x": True}, {"x": 1, "y": 2}):
        assert charts.value_chart([at("rlad", grid, 0.1), at("rlad", grid, 0.2), at("rlad", grid, 0.3)]) is None


def test_charts_leave_out_what_nothing_is_known_of(tmp_path: Path) -> None:
    assert charts.draw([group("old", cell(1, 0.5, curve=[{"step": 1, "accuracy": 0.1}]))], tmp_path) == [
        "by-step", "by-difficulty",
    ]  # fmt: skip
    assert charts.draw([group("none")], tmp_path / "none") == []


def test_commits_are_short_and_keep_their_mark() -> None:
    from rlad.compare.report import _commit

    assert [_commit("50ef9d1d7ba657a4+"), _commit("b193b94"), _commit(None)] == ["50ef9d1+", "b193b94", "unknown"]


def test_json_of_a_report_has_no_infinity() -> None:
    from rlad.compare.cells import finite

    content = {"a": (0.5, -math.inf, math.inf), 1: [{"b": math.nan}], "c": None}
    assert json.dumps(finite(content), allow_nan=False) == '{"a": [0.5, null, null], "1": [{"b": null}], "c": null}'
