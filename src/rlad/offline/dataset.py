"""Traces as token ids: the prompt as the student will be asked, then the response, then the end of sequence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlad.errors import RladError
from rlad.evaluation.problems import PromptFormat

TOO_LONG, UNCLOSED = "are too long for the student", "never close the <think> of the student's prompt"


def training_rows(
    tokenizer: Any,
    traces: Sequence[Mapping[str, Any]],
    prompt: PromptFormat,
    longest: int | None = None,
) -> tuple[list[dict[str, list[int]]], Counter[str]]:
    """({input_ids, completion_mask} for each trace, how many are left out for which reason).

    TOO_LONG: longer than `longest` tokens. UNCLOSED: the prompt ends in <think>, and the response never closes it, as a
    reasoning teacher's may now and then.

    completion_mask: 0 for the prompt, which is the ids that the student is prompted with in evaluation and by
    RLADTrainer; 1 for the response and the end of sequence behind it.

    They are made here and not by TRL, whose chat template would write the response: one that adds a line break behind
    the end, or takes a reasoning out of it, would train on other tokens than the student is to generate.

    Raises RladError where none is left, or a reasoning would be opened twice, or never, or closed in no trace at all.
    """
    if tokenizer.eos_token_id is None:
        raise RladError("the student's tokenizer names no end-of-sequence token; set tokenizer.eos_token")
    rows, left_out = [], Counter[str]()
    for trace in traces:
        asked = prompt.ids(tokenizer, _messages(trace))
        opened = tokenizer.decode(asked).rstrip().endswith("<think>")
        _check_think(opened, trace["response"])
        # A special token's name in the text is text: the special tokens themselves were left out of it.
        answer = tokenizer(trace["response"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id]
        if opened and "</think>" not in trace["response"]:
            left_out[UNCLOSED] += 1
        elif longest is not None and len(asked) + len(answer) > longest:
            left_out[TOO_LONG] += 1
        else:
            rows.append({"input_ids": asked + answer, "completion_mask": [0] * len(asked) + [1] * len(answer)})
    if traces and left_out[UNCLOSED] == len(traces):
        raise RladError(
            "the student's prompt ends in <think>, and no trace closes it: leave out what puts it there "
            "(model.open_think, or an option of the chat template)"
        )
    if not rows:
        count = left_out[TOO_LONG]
        raise RladError(f"every one of the {count} traces is longer than {longest} tokens: raise max_length")
    return rows, left_out


def _messages(trace: Mapping[str, Any]) -> list[dict[str, str]]:
    """The prompt of a trace. Raises RladError where it is no JSON of chat messages."""
    try:
        found: list[dict[str, str]] = json.loads(trace["prompt"])
        if not found or not all(message["role"] and isinstance(message["content"], str) for message in found):
            raise TypeError("no messages")
    except (ValueError, TypeError, KeyError):
        where = f"the trace of problem {trace.get('problem')!r}"
        raise RladError(f"{where}: its prompt must be chat messages in JSON, not {trace['prompt']!r:.100}") from None
    return found


def _check_think(opened: bool, response: str) -> None:
    """A teacher's chat template may end a prompt in <think> where the student's does not, or the other way round."""
    if opened and response.lstrip().startswith("<think>"):
        raise RladError(
            "the student's prompt ends in <think>, and the traces begin with it: leave out what puts it there"
        )
    if not opened and "</think>" in response and "<think>" not in response:
        raise RladError("the traces close a <think> that the student's prompt does not open: set model.open_think=true")
