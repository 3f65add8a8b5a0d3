"""Which problem a response belongs to, what it was prompted with, and what its draws are made from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlad.errors import RladError

Messages = Sequence[Mapping[str, str]]
Key = tuple[str, int]
"""A problem's id, and how many problems with the same prompt stand before it."""

FORMATS = ("chat", "raw")


@dataclass(frozen=True)
class PromptFormat:
    """How messages become a prompt.

    kind: "chat", by the tokenizer's chat template, or "raw", the contents of the messages, each on a line of its own,
        for a model that has no template.
    append: text that the response starts with and that is not sampled, such as "<think>\\n".
    chat_template_kwargs: options of the template, such as {"enable_thinking": False}.
    """

    kind: str = "chat"
    append: str = ""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in FORMATS:
            raise RladError(f"a prompt's format is {' or '.join(FORMATS)}, not {self.kind!r}")
        if self.kind == "raw" and self.chat_template_kwargs:
            raise RladError(
                "a raw prompt has no chat template, so chat_template_kwargs would do nothing: leave them out"
            )

    def ids(self, tokenizer: Any, messages: Messages) -> list[int]:
        """The token ids of a prompt. Raises RladError for a tokenizer without a chat template where one is needed."""
        if self.kind == "raw":
            return list(tokenizer("\n".join(message["content"] for message in messages) + self.append)["input_ids"])
        if not tokenizer.chat_template:
            raise RladError(
                "the tokenizer has no chat template, so it cannot write a prompt; set tokenizer.chat_template, or "
                "choose the raw prompt format"
            )
        plain = [dict(message) for message in messages]
        options = {"add_generation_prompt": True, "return_dict": False, **self.chat_template_kwargs}
        if not self.append:
            return list(tokenizer.apply_chat_template(plain, tokenize=True, **options))
        text = tokenizer.apply_chat_template(plain, tokenize=False, **options) + self.append
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def settings(self) -> dict[str, Any]:
        """What is kept with an evaluation."""
        return {
            "prompt_format": self.kind,
            "append": self.append,
            "chat_template_kwargs": dict(self.chat_template_kwargs),
        }


def problem_id(example: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for the example's prompt."""
    return hashlib.sha256(json.dumps(example["prompt"], sort_keys=True).encode()).hexdigest()[:16]


def keys(ids: Sequence[str]) -> list[Key]:
    """What tells problems apart, in the order of their ids: a prompt can stand in a set twice."""
    seen: Counter[str] = Counter()
    found = []
    for each in ids:
        found.append((each, seen[each]))
        seen[each] += 1
    return found


def response_seed(seed: int, key: Key, sample: int) -> int:
    """The seed of one response, 63 bits: of the evaluation's seed, the problem and the sample, and of nothing else."""
    text = f"{seed}/{key[0]}/{key[1]}/{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
