"""A trace as token ids: the student's own prompt, masked; the response; the end of sequence, and nothing behind it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from rlad.errors import RladError
from rlad.evaluation.problems import PromptFormat
from rlad.models.tokenizer import train_other_tokenizer
from rlad.offline.dataset import TOO_LONG, UNCLOSED, training_rows

MESSAGES = [{"role": "system", "content": "Think."}, {"role": "user", "content": "Is Bob a knave"}]
# What a template of a reasoning model does to an assistant's turn, and a prompt never shows.
HOSTILE = (
    "{%- for message in messages -%}{%- set reasons = message['role'] == 'assistant' -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{{- (message['content'].split('</think>')[-1].strip() if reasons else message['content']) + '<|im_end|>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def trace(response: str) -> dict[str, Any]:
    return {"prompt": json.dumps(MESSAGES), "response": response}


def test_mask_and_ids_token_by_token() -> None:
    words = tiny.tokenizer()
    prompt = "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\nIs Bob a knave<|im_end|>\n<|im_start|>assistant\n"
    (row,), left_out = training_rows(words, [trace("Bob is")], PromptFormat())
    trained = [token for token, bit in zip(row["input_ids"], row["completion_mask"], strict=True) if bit]
    asked = [token for token, bit in zip(row["input_ids"], row["completion_mask"], strict=True) if not bit]
    assert left_out == {} and words.decode(asked) == prompt
    assert row["completion_mask"] == [0] * len(asked) + [1] * len(trained)  # the prompt first, in one piece
    assert words.decode(trained[:-1]) == "Bob is" and trained[-1] == words.eos_token_id


def test_the_chat_template_never_writes_the_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL would render prompt and response together: without the reasoning, and with a line break behind the end."""
    words = tiny.tokenizer()
    monkeypatch.setattr(words, "chat_template", HOSTILE)
    (row,), _ = training_rows(words, [trace("<think>a knight</think>knave")], PromptFormat())
    assert words.decode(row["input_ids"]).endswith("<|im_start|>assistant\n<think>a knight</think>knave<|im_end|>")


def test_the_prompt_is_the_one_of_evaluation_and_of_the_trainer(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    trainer = tiny.trainer(tmp_path, "grpo", max_steps=1)
    batch = trainer._generate_and_score_completions([{"prompt": MESSAGES}] * tiny.GROUP)
    of_rl = batch["prompt_ids"][0][batch["prompt_mask"][0].bool()].tolist()
    (row,), _ = training_rows(words, [trace("Bob")], PromptFormat())
    ours = row["input_ids"][: row["completion_mask"].index(1)]
    assert ours == of_rl == PromptFormat().ids(words, MESSAGES)


def test_the_options_of_the_template_reach_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    words = tiny.tokenizer()
    monkeypatch.setattr(words, "chat_template", "{{ 'slowly' if slow else 'fast' }}")
    (row,), _ = training_rows(words, [trace("Bob")], PromptFormat(chat_template_kwargs={"slow": True}))
    assert words.decode(row["input_ids"]) == "slowlyBob<|im_end|>"


def test_a_tokenizer_other_than_the_teachers_writes_the_same_text() -> None:
    ours, theirs = tiny.tokenizer(), train_other_tokenizer(tiny.TEXTS)
    (one,), _ = training_rows(ours, [trace("Bob is a knave")], PromptFormat())
    (other,), _ = training_rows(theirs, [trace("Bob is a knave")], PromptFormat())
    assert one["input_ids"] != other["input_ids"]
    assert ours.decode(one["input_ids"]) == theirs.decode(other["input_ids"])


def test_the_name_of_a_special_token_in_a_response_is_text() -> None:
    words = tiny.tokenizer()
    (row,), _ = training_rows(words, [trace("Bob<|im_end|>")], PromptFormat())
    answer = row["input_ids"][row["completion_mask"].index(1) :]
    assert answer.count(words.eos_token_id) == 1 and answer[-1] == words.eos_token_id
    assert words.decode(answer[:-1]) == "Bob<|im_end|>"


def test_what_is_too_long_is_left_out_whole_and_counted() -> None:
    words = tiny.tokenizer()
    short, long = trace("Bob"), trace("Bob " * 30)
    (row,), _ = training_rows(words, [short], PromptFormat())
    longest = len(row["input_ids"])
    assert training_rows(words, [long, short], PromptFormat(), longest) == ([row], {TOO_LONG: 1})
    with pytest.raises(RladError, match=f"every one of the 2 traces is longer than {longest - 1} tokens"):
        training_rows(words, [long, short], PromptFormat(), longest - 1)


@pytest.mark.parametrize(
    ("opened", "response", "said"),
    [
        (True, "<think>x</think>y", "the traces begin with it"),
        (False, "x</think>y", "set model.open_think=true"),
        (True, "y", "leave out what puts it there .model.open_think"),
        (True, "x</think>y", None),
        (False, "<think>x</think>y", None),
        (False, "y", None),
    ],
)
def test_a_reasoning_is_opened_once(
    opened: bool, response: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tiny.tokenizer()
    monkeypatch.setattr(words, "chat_template", words.chat_template + ("<think>\n" if opened else ""))
    if said is None:
        assert training_rows(words, [trace(response)], PromptFormat())[1] == {}
    else:
        with pytest.raises(RladError, match=said):
            training_rows(words, [trace(response)], PromptFormat())


def test_a_reasoning_that_is_never_closed_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    words = tiny.tokenizer()
    monkeypatch.setattr(words, "chat_template", words.chat_template + "<think>\n")
    closed, open_ = trace("Bob</think>knave"), trace("Bob is a knave")
    expected, _ = training_rows(words, [closed], PromptFormat())
    assert training_rows(words, [open_, closed, open_], PromptFormat()) == (expected, {UNCLOSED: 2})


@pytest.mark.parametrize("prompt", ["Who is a knight?", '"Who?"', "[]", '[{"role": "user"}]', "7"])
def test_a_trace_of_ones_own_without_messages_is_named(prompt: str) -> None:
    words = "the trace of problem .*: its prompt must be chat messages in JSON, not "
    with pytest.raises(RladError, match=words):
        training_rows(tiny.tokenizer(), [{**trace("Bob"), "prompt": prompt}], PromptFormat())


def test_a_tokenizer_without_an_end_is_refused() -> None:
    words = copy.deepcopy(tiny.tokenizer())
    words.eos_token = None
    with pytest.raises(RladError, match="names no end-of-sequence token"):
        training_rows(words, [trace("Bob")], PromptFormat())
