"""The reasoning that the embedded pair is taught, and the tokenizer that it is written in."""

from __future__ import annotations

import operator
import random
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rlad.models.tokenizer import END, PAD, START, TAGS, train_tokenizer
from rlad.models.traces import trace
from rlad.tasks.knights_knaves.generate import generate
from rlad.tasks.knights_knaves.puzzle import Puzzle
from rlad.tasks.knights_knaves.score import score
from rlad.tasks.knights_knaves.wording import NAMES

PUZZLES = [puzzle for n in (2, 3, 4) for puzzle in generate(n, 100, seed=11)]


def right(puzzle: Puzzle, response: str) -> bool:
    return score(response, puzzle.names, puzzle.solution, "strict").correct


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """The tokenizer of the pair, learned from a tenth of the puzzles: enough for every name to be seen often."""
    puzzles = [puzzle for n in (2, 3, 4) for puzzle in generate(n, 400, seed=7)]
    return train_tokenizer([p.quiz for p in puzzles] + [trace(p) for p in puzzles])


def test_a_trace_without_noise_ends_at_the_solution() -> None:
    assert [right(puzzle, trace(puzzle)) for puzzle in PUZZLES] == [True] * 300


def test_every_line_of_a_trace_without_noise_is_true() -> None:
    """Read back: the world of a "Try", what is said of a role in it, and a verdict, which only the last world lacks."""
    for puzzle in PUZZLES:
        world: dict[str, str] = {}
        clashes = 0
        lines = trace(puzzle).partition("<think>\n")[2].partition("\n</think>")[0].splitlines()
        for line in lines:
            if line.startswith("Try "):
                assert not world or clashes == 1  # the world before it was left at its first clash
                world, clashes = dict(pair.split("=") for pair in line.split()[1:]), 0
                continue
            pairs = re.findall(r"(\w+)=(knight|knave)", line)
            assert all(world[name] == role for name, role in pairs)
            clashes += line.endswith(" clash")
        assert clashes == 0 and lines[-1].endswith(" ok")
        assert [world[name] == "knight" for name in puzzle.names] == list(puzzle.solution)


def test_a_trace_by_hand() -> None:
    # Ann: Bob is a knave. Bob: Ann is a knight if and only if Bob is a knight.
    statements = (("lying", 1), ("<=>", ("telling-truth", 0), ("telling-truth", 1)))
    puzzle = Puzzle(("Ann", "Bob"), statements, (True, False), "")
    assert trace(puzzle) == (
        "<think>\n"
        "Try Ann=knight Bob=knight\n"
        " Ann=knight: Bob=knight?no clash\n"
        "Try Ann=knight Bob=knave\n"
        " Ann=knight: Bob=knave?yes ok\n"
        " Bob=knave: Ann=knight?yes iff Bob=knave?no;no ok\n"
        "</think><answer>(1) Ann is a knight\n(2) Bob is a knave</answer>"
    )


def test_noise_makes_some_answers_wrong_and_the_same_ones_again() -> None:
    noisy = [trace(puzzle, 0.1, random.Random(i)) for i, puzzle in enumerate(PUZZLES)]
    share = sum(map(right, PUZZLES, noisy)) / len(PUZZLES)
    assert 0.1 < share < 0.9
    assert noisy == [trace(puzzle, 0.1, random.Random(i)) for i, puzzle in enumerate(PUZZLES)]
    # It spoils steps, never the form: there is an answer about everybody, which the scorer can read.
    for puzzle, response in zip(PUZZLES, noisy, strict=True):
        verdict = score(response, puzzle.names, puzzle.solution, "strict")
        assert verdict.correct or verdict.explanation.startswith("wrong role for ")


def claims(tree: tuple[Any, ...], claim: bool = True) -> list[bool]:
    """What each part of a statement says its person is (True: a knight), from left to right."""
    if tree[0] in ("telling-truth", "lying"):
        return [claim == (tree[0] == "telling-truth")]
    if tree[0] == "not":
        return claims(tree[1], not claim)
    return [each for part in tree[1:] for each in claims(part, claim)]


JOINED = {"and": lambda a, b: a and b, "or": lambda a, b: a or b, "then": lambda a, b: b or not a, "iff": operator.eq}


def steps_that_are_wrong(puzzle: Puzzle, response: str) -> dict[str, list[bool]]:
    """By kind of step, in its order: whether it does not follow from what stands before it in its line."""
    wrong: dict[str, list[bool]] = {"part": [], "whole": [], "verdict": []}
    for line in re.findall(r"^ .*$", response, re.MULTILINE):
        speaker, role = re.findall(r"^ (\w+)=(\w+):", line)[0]
        parts = re.findall(r"=(\w+)\?(\w+)", line)
        said = claims(puzzle.statements[puzzle.names.index(speaker)])
        truths = [truth == "yes" for _, truth in parts]
        for (of, _), claim, truth in zip(parts, said, truths, strict=True):
            wrong["part"].append(truth != ((of == "knight") == claim))
        truth = truths[0]
        if ";" in line:
            join = re.findall(r" (and|or|then|iff) ", line)[0]
            truth = ";yes" in line
            wrong["whole"].append(truth != JOINED[join](*truths))
        wrong["verdict"].append(line.endswith(" ok") != (truth == (role == "knight")))
    return wrong


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_noise_is_how_often_a_step_of_each_kind_is_wrong(noise: float) -> None:
    rng = random.Random(3)
    found = [steps_that_are_wrong(puzzle, trace(puzzle, noise, rng)) for puzzle in PUZZLES]
    for kind in ("part", "whole", "verdict"):
        wrong = [each for one in found for each in one[kind]]
        assert len(wrong) > 800
        # A standard deviation is at most sqrt(.1 * .9 / 800) = .0106.
        assert sum(wrong) / len(wrong) == pytest.approx(noise, abs=0.04 if noise else 0)


def test_statements_too_deep_for_it_are_refused() -> None:
    deep = ("and", ("or", ("lying", 0), ("lying", 1)), ("lying", 1))
    with pytest.raises(ValueError, match="depth 2 at most"):
        trace(Puzzle(("Ann", "Bob"), (deep, deep), (True, False), ""))


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=200))
@example(text="Zoey is a knave. \n\t  (12) =knight?yes;no 007")
@example(text="\u00e9\u6f22\U0001f600\x00\r\n \u200b")
@example(text="</think><answer><|notspecial|></answer> ,.?! don't")
def test_any_text_comes_back(words: PreTrainedTokenizerFast, text: str) -> None:
    ids = words(text).input_ids
    assert words.decode(ids) == text
    assert max(ids, default=0) < len(words)


def test_traces_and_quizzes_come_back_without_special_tokens(words: PreTrainedTokenizerFast) -> None:
    special = {words.convert_tokens_to_ids(token) for token in (PAD, START, END)}
    for puzzle in PUZZLES[::10]:
        for text in (puzzle.quiz, trace(puzzle)):
            ids = words(text).input_ids
            assert words.decode(ids, skip_special_tokens=True) == text
            assert not special & set(ids)


def test_names_roles_verdicts_and_tags_are_one_token(words: PreTrainedTokenizerFast) -> None:
    pieces = [f" {name}" for name in NAMES]
    pieces += ["=knight", "=knave", "?yes", "?no", ";yes", ";no", " ok", " clash", *TAGS]
    assert {piece: len(words(piece).input_ids) for piece in pieces} == dict.fromkeys(pieces, 1)


def test_the_chat_template_marks_whose_turn_it_is(words: PreTrainedTokenizerFast) -> None:
    text = words.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert (words.eos_token, words.pad_token, words.padding_side) == (END, PAD, "left")
