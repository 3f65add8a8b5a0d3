"""Which problem is which, what a prompt is, and what a response is drawn from."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import tiny
from rlad.errors import RladError
from rlad.evaluation.problems import PromptFormat, keys, problem_id, response_seed

MESSAGES = [{"role": "system", "content": "Think."}, {"role": "user", "content": "Is Bob a knave?"}]


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


def text(prompt: PromptFormat, messages: Any = MESSAGES) -> str:
    return str(tokenizer().decode(prompt.ids(tokenizer(), messages)))


def test_chat_is_the_chat_template() -> None:
    expected = tokenizer().apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert PromptFormat().ids(tokenizer(), MESSAGES) == expected


def test_what_is_appended_ends_the_prompt() -> None:
    assert text(PromptFormat(append="<think>\n")) == text(PromptFormat()) + "<think>\n"
    # tokenized with the prompt, as one text: no token is added between
    one = tokenizer()(text(PromptFormat()) + "<think>\n", add_special_tokens=False)["input_ids"]
    assert PromptFormat(append="<think>\n").ids(tokenizer(), MESSAGES) == one


def test_raw_is_the_text_alone() -> None:
    assert text(PromptFormat("raw")) == "Think.\nIs Bob a knave?"
    assert text(PromptFormat("raw", append=" Yes")) == "Think.\nIs Bob a knave? Yes"


def test_the_template_takes_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{{ messages[0].content }}{% if enable_thinking is defined and not enable_thinking %} short{% endif %}"
    monkeypatch.setattr(tokenizer(), "chat_template", template)
    assert text(PromptFormat(chat_template_kwargs={"enable_thinking": False})) == "Think. short"
    assert text(PromptFormat(chat_template_kwargs={"enable_thinking": False}, append="!")) == "Think. short!"
    assert text(PromptFormat()) == "Think."


def test_formats_that_cannot_be() -> None:
    with pytest.raises(RladError, match="chat or raw, not 'json'"):
        PromptFormat("json")
    with pytest.raises(RladError, match="would do nothing"):
        PromptFormat("raw", chat_template_kwargs={"enable_thinking": False})


def test_keys_tell_equal_prompts_apart() -> None:
    assert keys(["a", "b", "a", "a"]) == [("a", 0), ("b", 0), ("a", 1), ("a", 2)]


def test_a_seed_depends_on_seed_problem_and_sample_alone() -> None:
    key = (problem_id({"prompt": MESSAGES}), 0)
    seeds = {
        response_seed(seed, (name, nth), sample)
        for seed in (0, 1)
        for name in (key[0], "other")
        for nth in (0, 1)
        for sample in range(50)
    }
    assert len(seeds) == 2 * 2 * 2 * 50 and all(0 <= seed < 2**63 for seed in seeds)
    # Kept: results that were published were drawn from these.
    assert response_seed(0, ("0123456789abcdef", 0), 0) == 1533036574167199112


@pytest.mark.parametrize(
    ("answer", "strict", "logic_rl"),
    [
        ("<answer>Zoey is a knight, Bob is a knave</answer>", True, True),
        ("<answer>Zoey is a knave, Bob is a knave</answer>", True, True),  # wrong, and readable
        ("<answer>Zoey is a knight</answer>", False, True),
        ("<answer>Zoey is a knight, Bob is not a knave</answer>", False, True),
        ("Zoey is a knight, Bob is a knave", False, False),
    ],
)
def test_knights_and_knaves_say_whether_the_format_is_right(answer: str, strict: bool, logic_rl: bool) -> None:
    from rlad.tasks.knights_knaves.score import score

    def form(scorer: str) -> bool | None:
        return score(f"<think>x</think>{answer}", ["Zoey", "Bob"], [True, False], scorer).format_ok

    assert (form("strict"), form("logic-rl"), form("logic-rl-eval")) == (strict, logic_rl, logic_rl)
