"""The page as a file: what is packed comes out again, limits hold, nothing of a run is markup. Tokens; the terminal."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import made_runs
import tiny
from rlad.cli.main import main
from rlad.errors import RladError
from rlad.report import knights, mathml
from rlad.report.pack import Words, packed, unpacked
from rlad.report.page import as_data, chosen, write_report
from rlad.report.runs import read_runs
from rlad.report.text import shown
from rlad.report.tokens import Vocabulary, visible
from rlad.report.view import read_steps

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}\u202e\u2066\x00\"'`"


def small(folder: Path, **more: Any) -> Path:
    rows = [made_runs.rollout(5, 2, i, [-0.5, -1.0, -2.5], 1.0 if i % 2 else -1.0, **more) for i in range(4)]
    return made_runs.save(folder, {1: [made_runs.rollout(1, 0, 0, [-1.0])], 5: rows})


def index_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


# --- what is packed


def test_what_is_packed_comes_out_again(tmp_path: Path) -> None:
    (run,) = read_runs([small(tmp_path / "run")])
    step = list(read_steps(run))[1]
    words = Words()
    head, tokens, arrays, flags = unpacked(packed(step, 0, run.vocabulary(), words))
    rollouts = [each for _, each in step.rollouts]
    assert [words.shown[n][0] for n in tokens] == [1, 87] + [token for each in rollouts for token in each.tokens]
    assert "old_logps" not in arrays  # the same as the student's
    for name in ("logps", "teacher_logps", "log_ratio", "anchor", "entropy", "contribution", "changed", "advantage"):
        expected = np.concatenate([each.arrays[name] for each in rollouts])
        assert arrays[name] == pytest.approx(expected, rel=1e-3, abs=1e-7)
        assert np.abs(expected).max() > 0.1
    for bit, name in enumerate(("mask", "clipped_low", "clipped_high", "clamped", "branch")):
        assert ((flags >> bit) & 1).tolist() == np.concatenate([each.flags[name] for each in rollouts]).tolist()
    assert flags.max() > 15 and [each["i"] for each in head["groups"][0]["rollouts"]] == [1, 2, 3, 0]
    assert head["groups"][0]["rollouts"][0]["weight"] == pytest.approx(1 / 12) and head["bounds"] == [0.8, 1.28]


def test_an_update_that_has_left_old_keeps_old(tmp_path: Path) -> None:
    row = made_runs.rollout(1, 0, 0, [-1.0, -1.0], old_logps=[-1.5, -1.0])
    (run,) = read_runs([made_runs.save(tmp_path / "run", {1: [row]})])
    _, _, arrays, _ = unpacked(packed(next(read_steps(run)), 0, run.vocabulary(), Words()))
    assert arrays["old_logps"].tolist() == [-1.5, -1.0]


# --- the file


def test_the_page_is_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    written = write_report([small(tmp_path / "run")], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert written.size == len(text.encode()) and written.shown == written.recorded == 5
    assert "default-src 'none'" in text and not re.search(r"(src|href)=[\"'](?!#|data:)", text)
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)  # the names of SVG and MathML alone


def test_nothing_from_a_run_is_markup(tmp_path: Path) -> None:
    folder = small(
        tmp_path / "run</script><b>", prompt=HOSTILE, response=HOSTILE, extracted=HOSTILE, gold=HOSTILE, task=HOSTILE,
        explanation=HOSTILE, kept_why=HOSTILE, difficulty=HOSTILE, reason=HOSTILE, reward_parts={HOSTILE: 1.0},
    )  # fmt: skip
    (folder / "recipe.yaml").write_text(f"# {HOSTILE.replace(chr(0), '')}\nmethod: {{name: '<i>'}}\n")
    write_report([folder], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("<script") == 4 == text.count("</script>")  # two updates, the data, the code
    assert (
        "onerror" in text and "<img" not in text and "<b>" not in text and "\u202e" not in text and "\x00" not in text
    )
    assert index_of(tmp_path / "page.html")["runs"][0]["method"] == "<i>"


def test_data_inside_of_a_script_element_cannot_end_it() -> None:
    text = as_data({"a": "</script><!--<script>&amp;\u2028"})
    assert not set("<>&\u2028") & set(text) and json.loads(text) == {"a": "</script><!--<script>&amp;\u2028"}


def test_above_the_limit_evenly_spaced_updates_stay_and_the_rest_is_counted(tmp_path: Path) -> None:
    folder = made_runs.large(tmp_path / "run", 320, 100)
    whole = write_report([folder], tmp_path / "whole.html")
    assert whole.shown == whole.recorded == 320
    limit = whole.size / 1e6 * 0.75
    part = write_report([folder], tmp_path / "part.html", limit)
    assert part.size <= limit * 1e6 and 0 < part.shown < 320 == part.recorded
    (run,) = index_of(tmp_path / "part.html")["runs"]
    here = [step["n"] for step in run["steps"] if step["here"]]
    assert (
        f"{part.shown} of 320 recorded rollouts" in run["left"]
        and f"{320 - part.shown} rollouts were left out" in run["left"]
    )
    assert len(here) * 32 == part.shown and len(run["steps"]) == 10
    assert sorted(re.findall(r'id="p-0-(\d+)"', (tmp_path / "part.html").read_text())) == sorted(map(str, here))
    with pytest.raises(RladError, match="without any record"):
        write_report([folder], tmp_path / "none.html", 0.01)
    assert not (tmp_path / "none.html").exists()


def test_which_updates_are_chosen() -> None:
    sizes = dict.fromkeys((1, 5, 10, 15, 20, 25), 10)
    assert chosen(sizes, 60) == [1, 5, 10, 15, 20, 25]
    assert chosen(sizes, 59) == [1, 10, 20, 25] and chosen(sizes, 30) == [1, 10, 20]
    assert chosen(sizes, 20) == [1, 15] and chosen(sizes, 10) == [1] and chosen(sizes, 9) == []
    assert chosen({}, 100) == []


def test_a_run_without_records_still_has_its_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made_runs.save(tmp_path / "old", {})
    assert main(["report", str(folder)]) == 0
    assert "no records: curves alone" in capsys.readouterr().out
    (run,) = index_of(folder / "report.html")["runs"]
    assert run["left"].startswith("This run has no records") and run["curves"]["reward"] and run["result"]
    assert main(["show", str(folder)]) == 0
    assert "This run has no records" in capsys.readouterr().out
    assert main(["show", str(folder), "5"]) == 2 and main(["report", str(tmp_path)]) == 2


# --- tokens


def test_tokens_as_they_are() -> None:
    vocabulary = Vocabulary(None)
    assert vocabulary.segments(7) == [("e", "#7")]
    assert visible("a b\n\tc\u202e\x00\u00b7") == [
        ("", "a"), ("w", "·"), ("", "b"), ("w", "⏎⇥"), ("", "c"), ("e", "⟨U+202E⟩⟨U+0000⟩"), ("", "·"),
    ]  # fmt: skip


def test_tokens_of_a_byte_level_tokenizer(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    (tmp_path / "tokenizer.json").write_text(words.backend_tokenizer.to_str())
    vocabulary = Vocabulary(tmp_path / "tokenizer.json")
    ids = words.encode(" knight\nné<think>", add_special_tokens=False)
    assert vocabulary.text(ids).replace("⟨C3⟩⟨A9⟩", "é") == "·knight⏎né<think>"
    assert vocabulary.special(ids[-1]) and not vocabulary.special(ids[0])
    # Half of a character is bytes.
    (lone,) = [token for token in ids if vocabulary.segments(token) == [("e", "⟨C3⟩")]]
    assert words.decode([lone]) == "\ufffd"
    assert vocabulary.segments(10**6) == [("e", "#1000000")]
    (tmp_path / "tokenizer.json").write_text("{")
    assert Vocabulary(tmp_path / "tokenizer.json").segments(3) == [("e", "#3")]


# --- tasks


def test_a_puzzle_and_who_is_wrong() -> None:
    columns = {"names": ["Zoey", "Bob"], "solution": [False, True],
               "statements": repr((("and", ("telling-truth", 0), ("telling-truth", 1)), ("lying", 0)))}  # fmt: skip
    puzzle = knights.puzzle(columns)
    assert puzzle is not None
    assert puzzle.said == (
        "Zoey (a knave) says: Zoey is a knight and Bob is a knight",
        "Bob (a knight) says: Zoey is a knave",
    )
    text = (
        "<think>\nTry Zoey=knight Bob=knight\n Zoey=knight: Zoey=knight?yes and Bob=knight?yes;yes ok\n"
        " Bob=knight: Zoey=knave?no ok\nSuppose Zoey is a knave and Bob is a knight.\n"
        "If Bob is a knave, then Zoey is a knight\n"
        "</think><answer>(1) Zoey is a knight\n(2) Bob is a knight</answer>"
    )
    read = knights.reading(puzzle, text)
    assert read.answer == [("Zoey", "a knight", "a knave"), ("Bob", "a knight", "a knight")]
    # Both knights: Zoey's statement is true and fits; Bob's is false, and he is assumed to be a knight.
    assert read.assumed == [
        ("Zoey a knight, Bob a knight", "clashes with what Bob says", "Bob is called ok and is a clash"),
        ("Zoey a knave, Bob a knight", "the solution", ""),
        ("Bob a knave", "differs from the solution at Bob", ""),
    ]
    assert knights.reading(puzzle, "nothing").answer[0] == ("Zoey", None, "a knave")
    for bad in (
        {},
        {"names": ["A"], "solution": ["x"]},
        {"names": [], "solution": []},
        {"names": "AB", "solution": "AB"},
    ):
        assert knights.puzzle(bad) is None
    assert knights.puzzle({**columns, "statements": "__import__('os')"}) == knights.Puzzle(
        ("Zoey", "Bob"), (False, True)
    )


def test_formulas() -> None:
    assert mathml.answer("12") is None and mathml.answer("a_b and more") is not None
    tree = mathml.formula(r"\frac{1}{2}")
    assert tree == ["math", {"display": "inline"}, [["mrow", {}, [["mfrac", {}, [
        ["mrow", {}, [["mn", {}, ["1"]]]], ["mrow", {}, [["mn", {}, ["2"]]]]]]]]]]  # fmt: skip
    assert mathml.with_math(r"Find $x$ in \(y\).") == [
        "Find ", {"tex": "$x$", "tree": mathml.formula("x")}, " in ",
        {"tex": r"\(y\)", "tree": mathml.formula("y")}, ".",
    ]  # fmt: skip
    assert mathml.with_math("It costs $5 and $6") is None and mathml.formula("x" * 2_001) is None


def test_formulas_hold_nothing_but_formulas() -> None:
    text = json.dumps([mathml.formula(each) for each in (
        r"\href{javascript:alert(1)}{x}", r"\text{<script>alert(1)</script>}", r"\style{position:fixed}{x}",
        r"\class{a}{b}",
        r"\unicode{x3c}", r"\color{red}{x}", "{" * 500, "\\begin{matrix}" * 50)])  # fmt: skip
    assert not re.search(r'"(href|style|class|onclick|id)"', text)
    assert set(re.findall(r'\["(\w+)", \{', text)) <= mathml.TAGS


# --- the terminal


def test_the_terminal_says_the_same(tmp_path: Path) -> None:
    folder = small(tmp_path / "run", extracted="a\x1b[31m\u202eb")
    text = shown(folder)
    assert "accuracy, all: 20.0% before, 30.0% after, +10.0% (95 % interval +2.0% to +18.0%, 50 problems)" in text
    assert "  5: groups 2 (2 of 4 right)" in text and "c0ffee" in text
    assert "⟨U+001B⟩" in shown(folder, "5/2") and "\x1b" not in shown(folder, "5/2") + shown(folder, "5/2/1")
    # Rollout 1, token 2: log pi -1, log pi_T -2.5: gap 1.5, clamped to 1; log r = .5, r = 1.65 > 1.28 with A = 1.
    token = shown(folder, "#5/2/1/2")
    for line in (r"log r +\+0\.5", r"r +1\.65", r"bounds of the clip +0\.8 to 1\.28",
                 r"winning branch +clip\(r\) A: r is above",
                 r"clamp +log pi - log pi_T is outside", r"contribution +\+0\n", r"contribution under GRPO +\+0\.0833",
                 r"what the teacher changed +-0\.0833", r"anchor +-1\.75"):  # fmt: skip
        assert re.search(line, token), line
    assert "clipped clamped" in shown(folder, "5/2/1").splitlines()[-1]
    assert "5/2/1" in shown(folder, filtered="clipped") and "1/0/0" not in shown(folder, filtered="clipped")


@pytest.mark.parametrize(
    ("place", "words"),
    [("7", "update 7 was not recorded; recorded are 1, 5"), ("5/9", "no such group; there are 2"),
     ("5/2/9", "no such rollout"),
     ("5/2/0/9", "no token 9: the response has 3"), ("x", "is no place"), ("1/2/3/4/5", "is no place")],
)  # fmt: skip
def test_places_that_are_not_there(place: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RladError, match=words):
        shown(small(tmp_path / "run"), place)


def test_a_filter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RladError, match="there is no filter 'wrong'; there are rewarded, disagrees"):
        shown(small(tmp_path / "run"), filtered="wrong")


def test_rewards_that_are_no_numbers_cost_their_place_alone(tmp_path: Path) -> None:
    run = small(tmp_path / "run", reward=math.nan, reward_parts={"a": math.nan, "b": 1.0}, columns="[" * 100_000)
    assert write_report([run], tmp_path / "page.html").shown == 5
    rollout = index_of(tmp_path / "page.html")["runs"][0]["steps"][1]["groups"][0][5][0]
    assert None in rollout and "nan" in shown(run, "5/2")


@pytest.mark.parametrize("limit", [math.inf, math.nan, 0.0, -1.0])
def test_a_limit_is_a_finite_number_above_0(limit: float, tmp_path: Path) -> None:
    with pytest.raises(RladError, match="finite number of megabytes above 0"):
        write_report([small(tmp_path / "run")], tmp_path / "page.html", limit)
