"""The page in a browser: from disk, without a request; by mouse, by link, by keyboard; nothing hostile runs."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

import made_runs
import tiny
from rlad.report.page import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods; of the first, an update with a mixed group, a flat one and a dropped one."""
    folder, r = tmp_path_factory.mktemp("runs"), made_runs.rollout
    columns = json.dumps({"names": ["Zoey", "Bob"], "solution": [False, True],
                          "statements": repr((("telling-truth", 1), ("lying", 0)))})  # fmt: skip
    text = "<think>\nTry Zoey=knight Bob=knight\n</think><answer>Zoey is a knight\nBob is a knight</answer>"
    mixed = [
        # Place 1: log pi -1, log pi_T -2.5, A = 1: gap 1.5, clamped to 1; r = e^.5 = 1.65 > 1.28: clipped and clamped.
        r(
            5,
            2,
            0,
            [-1.0, -2.5, -1.2],
            1.0,
            gold=r"\frac{1}{2}",
            response=text,
            columns=columns,
            mask=[True, True, False],
        ),
        r(5, 2, 1, [-1.0] * 4, -1.0, stop="length", extracted="x^{2}"),
        r(5, 2, 2, [-0.8, -1.0], 0.5, correct=False),
    ]
    flat = [
        r(5, 3, i, [-1.0], 0.0, reward=0.0, correct=False, kept_why="all wrong: one of 3 such groups") for i in (0, 1)
    ]
    none = dict.fromkeys("logps old_logps teacher_logps log_ratio anchor entropy weight".split())
    gone = [r(5, 4, i, [-1.0], 0.0, dropped=True, reason="all_right", **none) for i in (0, 1)]
    rlad = made_runs.save(folder / "first", {1: [r(1, 0, 0, [-1.0, -1.0])], 5: mixed + flat + gone})
    grpo = made_runs.save(folder / "second", {}, "grpo", steps=20)
    write_report([rlad, grpo], folder / "page.html")
    return folder / "page.html"


def test_it_opens_from_disk_with_curves_of_both_runs(page: Path, opened: Any) -> None:
    shown = opened(page)
    text = shown.text()
    assert "2 runs" in text and "+10.0% (95 % interval +2.0% to +18.0%, 50 problems)" in text
    assert "This run has no records" in text and "c0ffee" not in text
    shown.page.click("details summary >> nth=0")
    assert "c0ffee" in shown.text() and "embedded:teacher" in shown.text()
    curves = shown.page.query_selector_all("figure svg")
    assert len(curves) == 4  # reward, accuracy, coverage, seconds of generation
    lines = curves[0].query_selector_all("polyline")
    assert [line.get_attribute("class") for line in lines] == ["line c0", "line c1"]  # a colour for each method


def test_from_a_point_of_a_curve_to_a_token_by_clicking(page: Path, opened: Any) -> None:
    shown = opened(page)
    shown.page.click("figure a[href='#/0/5'] >> nth=0")
    shown.heading("Update 5")
    assert "zero variance" in shown.text() and "dropped: all right" in shown.text()
    shown.page.click("text=group 2")
    shown.heading("Group 2 of update 5")
    rows = shown.page.query_selector_all("tbody tr td:first-child")
    assert [cell.inner_text() for cell in rows] == ["rollout 0", "rollout 1", "rollout 2"]  # best, worst, the rest
    assert "Zoey: a knight, in truth a knave" in shown.text() and "Bob (a knight) says: Zoey is a knave" in shown.text()
    assert shown.page.query_selector("main math mfrac") is not None and "\\frac{1}{2}" in shown.text()
    shown.page.click("main a:has-text('rollout 0')")
    shown.heading("Rollout 0")
    assert "clashes with what Bob says" in shown.text()
    shown.page.hover("#tokens a >> nth=1")
    panel = shown.text("#panel")
    shown.page.click("#tokens a >> nth=1")
    assert shown.at() == "#/0/5/2/0/1" and shown.text("#panel") == panel
    for words in ("+0.5\n", "1.65", "0.8 to 1.28", "r is above the upper bound", "outside of the clamp", "\u22121.75"):
        assert words in panel, words
    assert "min(r A, clip(r) A) = min(+1.65, +1.28) = +1.28" in panel
    # The teacher changed A r / (4 tokens x 3): from 1/12 under GRPO to 0.
    assert panel.endswith("what the teacher changed\n\u22120.0833")


def test_a_point_that_was_not_recorded_leads_to_the_nearest_that_was(page: Path, opened: Any) -> None:
    shown = opened(page, "#/0/7")
    assert "This update was not recorded" in shown.text() and "reward" in shown.text()
    shown.page.click("main a:has-text('update 5')")
    shown.heading("Update 5")


def test_every_level_opens_by_its_link_and_unknown_ones_say_so(page: Path, opened: Any) -> None:
    shown = opened(page)
    for place, heading in (
        ("#/0", "first"), ("#/0/5", "Update 5"), ("#/0/5/2", "Group 2 of update 5"), ("#/0/5/2/0", "Rollout 0"),
        ("#/0/5/2/0/1", "Rollout 0"), ("#/0/filter/truncated", "Truncated: 1 rollouts"), ("#/1", "second"),
        ("#/9", "Not here"), ("#/0/5/99", "Not here"), ("#/0/5/2/99", "Not here"), ("#/0/filter/<img>", "Not here"),
    ):  # fmt: skip
        shown.go(place)
        shown.heading(heading)
    shown.go("#/0/5/2/0/1")
    shown.page.wait_for_selector("#tokens a[aria-current]")
    assert "upper bound" in shown.text("#panel")
    shown.page.click("#crumbs a:has-text('group 2')")
    shown.heading("Group 2")
    shown.page.go_back()
    shown.heading("Rollout 0")


def test_by_keyboard_alone(page: Path, opened: Any) -> None:
    shown = opened(page, "#/0/5/2/0")
    shown.heading("Rollout 0")
    press = shown.page.keyboard.press
    press("ArrowRight")
    press("ArrowRight")
    assert shown.at() == "#/0/5/2/0/1"
    assert shown.page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
    press("End")
    assert shown.at() == "#/0/5/2/0/2" and "masked" in shown.text("#panel")
    press("Home")
    press("n")  # the next clipped or clamped token
    assert shown.at() == "#/0/5/2/0/1"
    press("2")
    assert shown.page.is_checked("#ch-teacher") and "teacher minus student, nats" in shown.text("#legend")
    press("j")
    shown.heading("Rollout 1")
    press("k")
    shown.heading("Rollout 0")
    press("u")
    shown.heading("Group 2")
    press("u")
    press("u")
    shown.heading("first")
    # Every token and every recorded point can be reached: they are links.
    assert shown.page.evaluate("[...document.querySelectorAll('main a')].every((each) => each.hasAttribute('href'))")


def colours(shown: Any) -> list[str]:
    nodes = shown.page.query_selector_all("#tokens a")
    return [str(node.evaluate("(node) => getComputedStyle(node).backgroundColor")) for node in nodes]


def test_one_colour_at_a_time_centred_on_zero_and_marks_without_colour(page: Path, opened: Any) -> None:
    shown = opened(page, "#/0/5/2/0")
    shown.heading("Rollout 0")
    # What the teacher changed: nothing, from A r to 0 (below 0), masked.
    nothing, below, masked = colours(shown)
    assert nothing == masked == "rgba(0, 0, 0, 0)" and below.startswith("rgba(40, 110, 230")
    shown.page.check("#ch-contribution")  # 1/12 at place 0, 0 at the clipped one
    above, none, _ = colours(shown)
    assert above.startswith("rgba(235, 120, 0") and none == "rgba(0, 0, 0, 0)"
    shown.page.check("#ch-teacher")  # 0 and -1.5 nats; the group's others are at most 0.2 away
    assert colours(shown)[1].startswith("rgba(40, 110, 230") and "\u22121.5" in shown.text("#legend")
    clipped = shown.page.query_selector("#tokens a.clipped.clamped")
    assert "underline" in clipped.evaluate("(node) => getComputedStyle(node).textDecorationLine")
    assert shown.page.query_selector("#tokens .special") is not None  # of the prompt
    decoration = "(node) => getComputedStyle(node).textDecorationLine"
    assert shown.page.query_selector("#tokens a.masked").evaluate(decoration) == "line-through"


def test_filters_and_figures_lead_to_their_rollouts(page: Path, opened: Any) -> None:
    shown = opened(page, "#/0")
    text = shown.text()
    assert "wrong but rewarded (1)" in text and "truncated (1)" in text and "clipped (1)" in text
    shown.page.click("text=wrong but rewarded (1)")
    shown.heading("Wrong but rewarded: 1 rollouts")
    shown.page.click("main a:has-text('update 5, group 2, rollout 2')")
    shown.heading("Rollout 2")
    shown.go("#/0")
    shown.page.click(".figures a:has-text('the clip stops')")
    shown.heading("Rollout 0")
    shown.page.wait_for_selector("#tokens a.clipped[aria-current]")


def test_a_dropped_group_has_no_numbers_and_says_why(page: Path, opened: Any) -> None:
    shown = opened(page, "#/0/5/4")
    assert "dropped\nall right" in shown.text() and "zero variance" in shown.text()
    shown.go("#/0/5/4/0/0")
    shown.page.wait_for_selector("#tokens a[aria-current]")
    assert "dropped before it was trained on" in shown.text() and "dropped before" in shown.text("#panel")


PIECES = (
    "<script>window.ran=1</script>",
    "<img src=x onerror=window.ran=1>",
    '"><svg/onload=window.ran=1>',
    "' onmouseover='window.ran=1",
    "</script><script>window.ran=1</script>",
    "{{constructor.constructor('window.ran=1')()}}",
    "${window.ran=1}",
    "<!--<script>",
    "javascript:window.ran=1",
    "$\\href{javascript:window.ran=1}{x}$",
    "\u202e\u2066\u200f",
    "\x00",
    "\u2028\u2029",
    "]]>",
    "&lt;b&gt;",
    "<style>*{display:none}</style>",
    "<iframe srcdoc='<script>parent.ran=1</script>'>",
    "<base href=//x>",
    "<math><mtext><script>",
    "\U0001f600",
    "<meta http-equiv=refresh content=0>",
    "\\frac{<script>window.ran=1</script>}{2}",
    "__proto__",
    "constructor",
    "%3Cscript%3E",
)


CLEAN = """window.ran === undefined
  && !document.querySelector("main :is(script, img, iframe, style, base, meta)")
  && [...document.querySelectorAll("*")].every((e) => [...e.attributes].every((a) => !a.name.startsWith("on")))
  && [...document.querySelectorAll("main a")].every((e) => e.getAttribute("href").startsWith("#/"))"""


def test_two_hundred_hostile_strings_are_text_and_never_run(opened: Any, tmp_path: Path) -> None:
    rng = random.Random(0)
    hostile = [f"{number}:" + "".join(rng.sample(PIECES, 3)) for number in range(200)]
    give = iter(hostile)
    rows = []
    for index in range(20):  # ten strings in each
        texts = {
            name: next(give) for name in "prompt response extracted gold explanation task difficulty kept_why".split()
        }
        parts = {next(give): 1.0, next(give): 0.0}
        columns = json.dumps({"names": [texts["gold"]], "solution": [True]})
        rows.append(made_runs.rollout(1, index, 0, [-1.0, -1.0], 1.0, **texts, reward_parts=parts, columns=columns))
    assert next(give, None) is None
    folder = made_runs.save(tmp_path / "hostile <b>run", {1: rows})
    write_report([folder], tmp_path / "page.html")
    shown = opened(tmp_path / "page.html")
    for group, row in enumerate(rows):
        for place in (f"#/0/1/{group}", f"#/0/1/{group}/0/0"):
            shown.go(place)
            shown.page.wait_for_function("document.querySelector('h2').textContent.match(/Group|Rollout/)")
            assert shown.page.evaluate(CLEAN)
        shown.go(f"#/0/1/{group}")
        shown.heading("Group")
        whole = shown.page.evaluate("document.querySelector('main').textContent")
        assert row["kept_why"] in whole and row["difficulty"] in whole and row["task"] in whole
    shown.go("#/0/1")
    shown.heading("Update 1")
    whole = shown.page.evaluate("document.querySelector('main').textContent")
    assert all(row["kept_why"] in whole for row in rows)


@pytest.mark.slow
def test_two_thousand_rollouts_open_in_two_seconds(opened: Any, tmp_path: Path) -> None:
    folder = made_runs.large(tmp_path / "run", 2_000, 200)
    written = write_report([folder], tmp_path / "page.html")
    assert written.recorded == 1_984 and written.size <= 8e6
    shown = opened(tmp_path / "page.html")
    started = time.perf_counter()
    shown.go("#/")
    first = time.perf_counter() - started
    started = time.perf_counter()
    shown.go("#/0/5/1/3/7")
    shown.page.wait_for_selector("#tokens a[aria-current]")
    token = time.perf_counter() - started
    print(f"{written}: opens in {first:.2f} s, a token by its link in {token:.2f} s")
    assert first < 2 and token < 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screens_and_dark_mode(scheme: str, page: Path, opened: Any) -> None:
    for place in ("#/", "#/0/5/2", "#/0/5/2/0/1"):
        shown = opened(page, place, viewport={"width": 360, "height": 700}, color_scheme=scheme)
        shown.page.wait_for_timeout(50)
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= 360
        style = "getComputedStyle(document.body)"
        ink, ground = shown.page.evaluate(f"[{style}.color, {style}.backgroundColor]")
        light = {text: sum(map(int, text[4:-1].split(","))) for text in (ink, ground)}
        assert (light[ground] < light[ink]) == (scheme == "dark")


def test_print_leaves_controls_out(page: Path, opened: Any) -> None:
    shown = opened(page, "#/0/5/2/0")
    shown.heading("Rollout 0")
    shown.page.emulate_media(media="print")
    assert (
        not shown.page.is_visible(".channels") and shown.page.is_visible("#tokens") and shown.page.is_visible("#legend")
    )


def test_the_tokens_read_as_text(page: Path, opened: Any) -> None:
    """What a screen reader finds: headings, labelled regions, the tokens one after the other, a live panel."""
    shown = opened(page, "#/0/5/2/0")
    shown.heading("Rollout 0")
    words = tiny.tokenizer()
    row = made_runs.rollout(5, 2, 0, [0.0] * 3)
    text = "".join(node.inner_text() for node in shown.page.query_selector_all("#tokens a"))
    assert words.decode(row["tokens"])[:1] in text
    assert (
        shown.page.get_attribute("#panel", "aria-live") == "polite" and shown.page.get_attribute("html", "lang") == "en"
    )
    assert shown.page.evaluate("[...document.querySelectorAll('input')].every((each) => each.labels.length === 1)")
