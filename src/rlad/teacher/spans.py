"""A teacher with another tokenizer: tokens of both are aligned on the bytes of the text, in the smallest common spans.

The student's response is turned into text, and the teacher's tokenizer splits that text in its own way. Where a token
of each ends at the same byte, a span ends. The teacher's log-prob of a span, T_span, is the sum over its own tokens;
`rlad.objectives.spread_spans` shares it out over the student's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlad.errors import RladError
from rlad.objectives.signals import usable_teacher
from rlad.teacher import Teacher
from rlad.teacher.compatibility import PROBE, tokenizer_differences

THINK = "<think>"
UNREADABLE = "\N{REPLACEMENT CHARACTER}".encode()
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes it
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# The steps that decode sentencepiece-style vocabularies: T5; Gemma; Llama 2 and Mistral.
SENTENCEPIECE = (["Metaspace"], ["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"])


def token_bytes(tokenizer: Any, ids: Sequence[int], begins: bool = True) -> list[bytes]:
    """The bytes of each token of a sequence: joined they are the text, of which a token may hold part of a character.

    Read off the vocabulary, for byte-level BPE and for sentencepiece with or without byte fallback. Added tokens are
    their content, special or not. An id that the vocabulary does not have (rows of padding in an embedding) has none.
    Where the decoder takes a space off the beginning of a text, it is off the first token, unless `begins` is False
    because the tokens go on from others.

    Raises RladError for a tokenizer of another kind.
    """
    steps = _decoder(tokenizer)
    kinds = [step["type"] for step in steps]
    added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
    words = [added.get(id) or word or "" for id, word in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)]
    read = _byte_level if kinds == ["ByteLevel"] else partial(_sentencepiece, byte_fallback="ByteFallback" in kinds)
    pieces = [word.encode() if id in added else read(word) for id, word in zip(ids, words, strict=True)]
    if pieces and begins and any(_takes_a_space(step) for step in steps):
        pieces[0] = pieces[0].removeprefix(b" ")
    return pieces


def _byte_level(word: str) -> bytes:
    table = _byte_of_character()
    known = all(character in table for character in word)
    return bytes(table[character] for character in word) if known else word.encode()  # as its decoder does


def _sentencepiece(word: str, byte_fallback: bool) -> bytes:
    byte = BYTE.fullmatch(word) if byte_fallback else None
    return bytes([int(byte[1], 16)]) if byte else word.replace(SPACE, " ").encode()


def _decoder(tokenizer: Any) -> list[dict[str, Any]]:
    """The steps of a tokenizer's decoder, as tokenizer.json has them. RladError where they are not ones we know."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    state: dict[str, Any] = json.loads(decoder.__getstate__()) if decoder is not None else {"type": None}
    steps: list[dict[str, Any]] = list(state["decoders"]) if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    replaced = [(step["pattern"], step["content"]) for step in steps if step["type"] == "Replace"]
    if kinds not in (["ByteLevel"], *SENTENCEPIECE) or replaced not in ([], [({"String": SPACE}, " ")]):
        raise RladError(
            f"the bytes of the tokens of {type(tokenizer).__name__} {getattr(tokenizer, 'name_or_path', '')!r} are not "
            "known: alignment spans needs a fast tokenizer (tokenizer.json) that is byte-level BPE or sentencepiece, "
            f"and its decoder is {', '.join(map(str, kinds))}"
        )
    return steps


def _takes_a_space(step: Mapping[str, Any]) -> bool:
    return bool(step.get("content") == " " and step.get("start")) or step.get("prepend_scheme", "never") != "never"


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """How byte-level vocabularies write each byte (GPT-2)."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


def common_spans(student: Sequence[bytes], teacher: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """The span that each token belongs to: (n,) for the student's pieces and (m,) for the teacher's, from 0 on.

    A span ends wherever a token of both ends at the same byte, so that no span can be split. A token without bytes
    belongs to the span that ends where it stands, or, where none does, to the first. Each span has tokens of both,
    unless one of them has none at all.

    Raises ValueError when the pieces of both are not the same text.
    """
    if b"".join(student) != b"".join(teacher):
        raise ValueError(f"the pieces are of different texts: {b''.join(student)!r} and {b''.join(teacher)!r}")
    ours, theirs = (torch.tensor([len(piece) for piece in each]).long().cumsum(0) for each in (student, teacher))
    ends = ours[torch.isin(ours, theirs)].unique()
    return torch.searchsorted(ends, ours), torch.searchsorted(ends, theirs)


def readable(pieces: Sequence[bytes]) -> tuple[list[bytes], list[bool]]:
    """Pieces that join to valid UTF-8, and which of them were not part of it.

    Bytes that are no text (a response that ends inside a character, a lone byte) become U+FFFD, as in the text that is
    rewarded; the first of their tokens gets it.
    """
    raw, bad, start = b"".join(pieces), dict[int, bytes](), 0
    while start < len(raw):
        try:
            raw[start:].decode()
            break
        except UnicodeDecodeError as error:
            bad[start + error.start] = UNREADABLE
            bad.update(dict.fromkeys(range(start + error.start + 1, start + error.end), b""))
            start += error.end
    if not bad:
        return list(pieces), [False] * len(pieces)
    found, broken, place = [], [], 0
    for piece in pieces:
        places = range(place, place + len(piece))
        found.append(b"".join(bad.get(i, raw[i : i + 1]) for i in places))
        broken.append(any(i in bad for i in places))
        place = places.stop
    return found, broken


def _opening(tokenizer: Any, template_options: Mapping[str, Any]) -> str:
    """`<think>` and what follows it, where the chat template ends a prompt so; else nothing."""
    if not tokenizer.chat_template:
        return ""
    prompt: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], add_generation_prompt=True, tokenize=False, **template_options
    )
    bare = prompt.rstrip()
    return THINK + prompt[len(bare) :] if bare.endswith(THINK) else ""


class Aligned(NamedTuple):
    """A response in the teacher's tokens. ids: m of them. theirs: (m,) their spans. spans: (n,) those of the student's
    tokens, -1 where the teacher says nothing."""

    ids: list[int]
    theirs: Tensor
    spans: Tensor


class SpanScores(NamedTuple):
    """Of a response of n student tokens. spans: (n,) the span of each, -1 where the teacher says nothing. logps: (n,)
    float32, T_span at each token of the span, NaN where a value of the teacher is broken, 0 where it says nothing."""

    spans: Tensor
    logps: Tensor


class SpansTeacher:
    """A teacher whose tokenizer is not the student's. It scores spans of text, not the student's tokens.

    teacher: scores the teacher's own tokens. student, tokenizer: the tokenizers of student and teacher.
    endings: ids that end a response of the student; None for its end of sequence. They become the teacher's.
    template_options: for the teacher's chat template.

    Where the tokenizers agree (`tokenizer_differences`) every token is a span and nothing is encoded again: the scores
    are those of `teacher`. Raises RladError for a tokenizer whose bytes are not known, or that changes the text.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: Any,
        tokenizer: Any,
        endings: Collection[int] | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.teacher, self.student, self.tokenizer = teacher, student, tokenizer
        self.endings = frozenset([student.eos_token_id] if endings is None else endings)
        self.template_options = dict(template_options or {})
        self.agree = not tokenizer_differences(student, tokenizer)
        # A student whose prompts end in <think> begins its response inside of it: so must the teacher's prompt.
        opening = _opening(student, self.template_options)
        missing = "" if _opening(tokenizer, self.template_options) else opening
        self._opening = list(tokenizer(missing, add_special_tokens=False).input_ids) if missing else []
        if self.agree:
            return
        if problem := cannot_align(student, tokenizer):
            raise RladError(problem)

    def prompt_ids(self, prompt: Any) -> list[int]:
        """A prompt in the teacher's tokens: messages through its chat template, a text as its tokenizer encodes it.

        Raises RladError when there are messages and no template.
        """
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt).input_ids)
        if not self.tokenizer.chat_template:
            raise RladError(
                "the teacher's tokenizer has no chat template for the prompts, which are messages: give it one, or "
                "choose a teacher that was trained to chat"
            )
        unfinished = prompt[-1]["role"] == "assistant"
        ids: list[int] = self.tokenizer.apply_chat_template(
            prompt,
            add_generation_prompt=not unfinished,
            continue_final_message=unfinished,
            tokenize=True,
            return_dict=False,
            **self.template_options,
        )
        return ids if unfinished else ids + self._opening

    def align(self, response: Sequence[int], begins: bool = True) -> Aligned:
        """The response in the teacher's tokens, and the spans of both.

        begins: whether it is a text of its own (an answer to messages), or goes on from the prompt's.

        The teacher reads the text of the response, U+FFFD for bytes that are none; spans with such bytes are not
        scored. Where its tokenizer changes the text (Unicode normalisation) the text is not scored at all.
        """
        if self.agree:
            alone = torch.arange(len(response))
            return Aligned(list(response), alone, alone)
        ended = bool(response) and response[-1] in self.endings
        pieces, broken = readable(token_bytes(self.student, response[: len(response) - ended], begins))
        text = b"".join(pieces)
        ids = _encoded(self.tokenizer, text.decode())
        # A text that begins with a space is given no other by a tokenizer that would put one there.
        splits = [token_bytes(self.tokenizer, ids, each) for each in (True, False)]
        theirs = next((each for each in splits if text and b"".join(each) == text), None)
        if theirs is not None:
            ours, of_ids = common_spans(pieces, theirs)
            spans = torch.where(torch.isin(ours, ours[torch.tensor(broken)]), -1, ours)
            end = int(of_ids[-1]) + 1
        else:  # nothing of it is scored: the teacher's tokens are in a span that no token of the student is in
            spans, of_ids, end = torch.full((len(pieces),), -1), torch.ones(len(ids)).long(), 0
        if ended:
            ids.append(self.tokenizer.eos_token_id)
            spans, of_ids = (torch.cat([each, torch.tensor([end])]) for each in (spans, of_ids))
        return Aligned(ids, of_ids, spans)

    def score_spans(
        self, prompts: Sequence[Any], prompt_ids: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> list[SpanScores]:
        """Score B responses of the student.

        prompts: messages, or texts. prompt_ids, responses: the same prompts, and the responses, in the student's
        tokens. Raises RladError as the teacher does, and where it does not return a value for each of its tokens.
        """
        begins = [not isinstance(prompt, str) for prompt in prompts]
        rows = [self.align(response, each) for response, each in zip(responses, begins, strict=True)]
        asked = list(prompt_ids) if self.agree else [self.prompt_ids(prompt) for prompt in prompts]
        scores = self.teacher.score(asked, [row.ids for row in rows])
        return [_of_spans(row, score, i) for i, (row, score) in enumerate(zip(rows, scores, strict=True))]


def cannot_align(student: Any, teacher: Any) -> str | None:
    """Why two tokenizers cannot be aligned on the text; None where they can."""
    if teacher.eos_token_id is None:
        return "the teacher's tokenizer has no end of sequence, so the student's would have no score"
    try:
        token_bytes(student, [])
        kept = b"".join(token_bytes(teacher, _encoded(teacher, PROBE)))
    except RladError as error:
        return str(error)
    if kept == PROBE.encode():
        return None
    return (
        "the teacher's tokenizer does not keep a text as it is (it normalises, or adds spaces): its tokens cannot be "
        "aligned with the student's. Choose another teacher"
    )


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _of_spans(row: Aligned, score: Tensor, i: int) -> SpanScores:
    if score.shape != (len(row.ids),):
        raise RladError(
            f"the teacher returned {tuple(score.shape)} log-probs for {len(row.ids)} tokens of sequence {i}"
        )
    sums = torch.zeros(len(row.ids) + 1).index_add(0, row.theirs, torch.where(usable_teacher(score), score, torch.nan))
    scored = row.spans >= 0
    return SpanScores(row.spans, torch.where(scored, sums[row.spans.clamp(min=0)], 0.0))
