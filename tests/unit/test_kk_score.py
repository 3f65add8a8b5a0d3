"""The scorers against responses with verdicts reached by hand, against Logic-RL's own, and against hostile text."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlad.errors import RladError
from rlad.tasks.knights_knaves.score import SCORERS, SHOWN, score

FIXTURE = Path(__file__).parents[1] / "fixtures" / "kk_responses.jsonl"
BY_HAND = [json.loads(line) for line in FIXTURE.read_text(encoding="utf-8").splitlines()]
RIGHT = "<think>x</think><answer>(1) Zoey is a knight\n(2) Bob is a knave</answer>"
ZOEY_BOB = (["Zoey", "Bob"], [True, False])


def test_the_fixture_is_large_and_varied() -> None:
    assert len(BY_HAND) >= 40
    assert len({row["case"] for row in BY_HAND}) == len(BY_HAND)
    assert {row["logic-rl"] for row in BY_HAND} == {3, -0.5, -1, -3}
    for scorer in ("strict", "logic-rl-eval"):
        assert {row[scorer] for row in BY_HAND} == {0, 1}


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("row", BY_HAND, ids=lambda row: row["case"])
def test_verdicts_by_hand(row: dict, scorer: str) -> None:
    think = row["prompt_ends_with_think_tag"]
    verdict = score(row["response"], row["names"], row["solution"], scorer, prompt_ends_with_think=think)
    assert verdict.value == row[scorer], f"{row['why']}; the scorer says: {verdict.explanation}"
    assert verdict.correct == (row[scorer] == (3 if scorer == "logic-rl" else 1))
    assert verdict.explanation


def test_agrees_with_logic_rl_on_every_row(test_data: Path) -> None:
    path = test_data / "grading" / "kk_logic_rl_scores.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 592
    for row in rows:
        ours = {
            scorer: score(
                row["response"],
                row["names"],
                row["solution"],
                scorer,
                prompt_ends_with_think=row["prompt_ends_with_think_tag"],
            )
            for scorer in SCORERS
        }
        assert ours["logic-rl"].value == row["logic_rl_train_score"], row
        assert ours["logic-rl-eval"].correct == row["logic_rl_eval_correct"], row
        # Whatever the strict scorer accepts, Logic-RL's reward accepts too, where it accepts the format.
        if ours["strict"].correct:
            assert ours["logic-rl"].value in (3, -3), row


@settings(deadline=None)
@given(st.data())
def test_a_written_solution_is_right_and_any_change_of_role_is_wrong(data: st.DataObject) -> None:
    people = st.sampled_from(["Ann", "Anna", "Ann-Lee", "Mary Ann", "Zoë", "O'Neil"])
    names = data.draw(st.lists(people, min_size=1, unique=True))
    solution = [data.draw(st.booleans()) for _ in names]
    order = data.draw(st.permutations(range(len(names))))
    said = [data.draw(st.booleans()) for _ in names] if data.draw(st.booleans()) else solution
    claims = data.draw(st.sampled_from([", ", "\n", "; ", " and "])).join(
        f"({i + 1}) {names[i]} is a {'knight' if said[i] else 'knave'}" for i in order
    )
    verdict = score(f"<answer>{claims}</answer>", names, solution)
    assert verdict.correct == (said == solution), verdict.explanation


PIECES = [*"ab \n\0\u2019\ud800", "Zoey", "Bob", " is a ", "knight", "<answer>", "</answer>", "</think>"]


@pytest.mark.parametrize("scorer", SCORERS)
@settings(deadline=None)
@given(text=st.lists(st.sampled_from(PIECES)).map("".join))
def test_no_text_raises(scorer: str, text: str) -> None:
    verdict = score(text, *ZOEY_BOB, scorer)
    assert verdict.correct == (verdict.value in (1.0, 3.0))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("Zoey is a knight, Bob is a knave", "every role is right"),
        ("Zoey is a knave, Bob is a knight", "wrong role for Zoey, Bob"),
        ("Zoey is a knight, Zoey is a knight", "Zoey stands more than once in the answer"),
        ("Zoey is a knight", "the answer says knight or knave 1 times, for 2 people"),
        ("Zoey is a knight, Carl is a knave", "Bob not in the answer"),
        ("Zoey is a knight, Bob is the knave", "Bob is not followed by 'is a knight' or 'is a knave'"),
        ("Zoey is a knight or Bob is a knave", "the answer hedges or negates with 'or'"),
    ],
)
def test_the_explanation_says_what_is_wrong(answer: str, why: str) -> None:
    assert score(f"<answer>{answer}</answer>", *ZOEY_BOB).explanation == why


def test_what_was_extracted_is_shown_and_bounded() -> None:
    assert score(RIGHT, *ZOEY_BOB).extracted == "(1) Zoey is a knight\n(2) Bob is a knave"
    assert score("no answer", *ZOEY_BOB).extracted is None
    for scorer in SCORERS:
        extracted = score(f"</think><answer>{'x' * 100_000}</answer>", *ZOEY_BOB, scorer).extracted
        assert extracted is not None and len(extracted) == SHOWN


MEGABYTES = 4_000_000
HOSTILE = {
    "opening tags": "<answer>" * (MEGABYTES // 8),
    "closing tags": "</answer>" * (MEGABYTES // 9),
    "pairs": "<answer></answer>" * (MEGABYTES // 17),
    "a name again and again": "</think><answer>" + "Zoey " * (MEGABYTES // 5) + "</answer>",
    "names without a role, in lines": "</think><answer>" + "Zoey Bob\n" * (MEGABYTES // 9) + "</answer>",
    "roles again and again": "</think><answer>" + "knight " * (MEGABYTES // 7) + "</answer>",
    "white space in a claim": "</think><answer>knight Zoey is a" + " " * MEGABYTES + "knigh Bob is a knave</answer>",
    "white space everywhere": "</think><answer>knight knave Zoey" + " \n\t\u00a0" * (MEGABYTES // 4) + "</answer>",
    "beginnings of a claim": "</think><answer>knight knave " + "Zoey is a " * (MEGABYTES // 10) + "</answer>",
    "apostrophes": "</think><answer>Zoey is a knight Bob is a knave" + "n'" * (MEGABYTES // 2) + "</answer>",
    "NUL": "\0" * MEGABYTES,
    "combining marks": RIGHT + "a\u0301\u0323" * (MEGABYTES // 3),
    "Assistant:": "Assistant:" * (MEGABYTES // 10),
    "right, then very much": RIGHT + "knight Zoey <think" * (MEGABYTES // 18),
}


def test_megabytes_of_hostile_text_take_seconds_not_hours() -> None:
    """All of it runs in a child; its deadline is far above what linear time needs, far below what quadratic needs."""
    code = (
        "from tests_hostile import HOSTILE, ZOEY_BOB, SCORERS, score\n"
        "for name, text in HOSTILE.items():\n"
        "    for scorer in SCORERS: score(text, *ZOEY_BOB, scorer)\n"
    ).replace("tests_hostile", Path(__file__).stem)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env={**os.environ, "PYTHONPATH": path})


def test_hostile_text_still_gets_the_right_verdict() -> None:
    assert score(HOSTILE["right, then very much"], *ZOEY_BOB).correct
    assert not any(score(HOSTILE["a name again and again"], *ZOEY_BOB, scorer).correct for scorer in SCORERS)


def test_one_person_in_a_long_line_of_others() -> None:
    names = [f"N{i}" for i in range(12)]
    solution = [random.Random(i).random() < 0.5 for i in range(12)]
    claims = "\n".join(f"{n} is a {'knight' if k else 'knave'}" for n, k in zip(names, solution, strict=True))
    assert score(f"<answer>{claims}</answer>", names, solution).correct  # N1 is not found within N10 or N11


@pytest.mark.parametrize(
    ("response", "names", "solution", "scorer", "says"),
    [
        (RIGHT, ["Zoey", "Bob"], [True, False], "lenient", "strict, logic-rl, logic-rl-eval"),
        (None, ["Zoey", "Bob"], [True, False], "strict", "response must be a string"),
        (RIGHT, "Zoey", [True], "strict", "names must be a list"),
        (RIGHT, [], [], "strict", "names must be a list"),
        (RIGHT, ["Zoey", 3], [True, False], "strict", "non-empty strings"),
        (RIGHT, ["Zoey", ""], [True, False], "strict", "non-empty strings"),
        (RIGHT, ["Zoey", "zoey"], [True, False], "strict", "upper and lower case"),
        (RIGHT, ["Zoey", "Bob"], [1, 0], "strict", "solution must be a list of true"),
        (RIGHT, ["Zoey", "Bob"], "TF", "strict", "solution must be a list of true"),
        (RIGHT, ["Zoey", "Bob"], [True], "strict", "1 entries for 2 names"),
    ],
)
def test_bad_questions_are_refused(response: object, names: object, solution: object, scorer: str, says: str) -> None:
    with pytest.raises(RladError, match=says):
        score(response, names, solution, scorer)  # type: ignore[arg-type]
