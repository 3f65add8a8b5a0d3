"""Tokens of two tokenizers on one text: their bytes, the smallest common spans, and a teacher that scores spans."""

from __future__ import annotations

import copy
import functools
import json
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

import tiny
from rlad.errors import RladError
from rlad.models import resolve
from rlad.models.tokenizer import CHAT_TEMPLATE, train_other_tokenizer
from rlad.teacher.compatibility import PROBE
from rlad.teacher.spans import SpansTeacher, common_spans, readable, token_bytes

TEXT = "Zoey says 漢字 🙂 is naïve.\n  Oliver=knight?no"


@functools.cache
def embedded() -> Any:
    return AutoTokenizer.from_pretrained(resolve("embedded:student"))


@functools.cache
def other() -> PreTrainedTokenizerFast:
    texts = [" Zoey=knight: Oliver=knave?no says is a knight", "naïve 漢字 and so on"] * 4
    return train_other_tokenizer(texts)


@functools.cache
def sentencepiece(strip: bool = True) -> PreTrainedTokenizerFast:
    """BPE with byte fallback and "▁" for a space. strip: with one before the text, taken off again (Llama 2), or
    without (Gemma)."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(tiny.TEXTS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*words, "▁"]))}
    merges = [tuple(pair) for pair in learned["merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    space = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if strip else space
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def metaspace() -> PreTrainedTokenizerFast:
    """As T5 has them, without bytes to fall back on."""
    made = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("▁a", -2.0), ("b", -2.0), ("a", -2.5)], unk_id=0))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", clean_up_tokenization_spaces=False)


KINDS = {
    "embedded": embedded,
    "other": other,
    "sentencepiece": sentencepiece,
    "without a space before": functools.partial(sentencepiece, False),
}
TOKENIZERS = pytest.mark.parametrize("kind", KINDS)


def encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


# --- bytes


@TOKENIZERS
def test_the_bytes_of_a_text_are_the_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    for text in (TEXT, PROBE, "", " a", "  ", "<think>Try</think>\n", "\x00\x7f\u0301e\u0301"):
        assert b"".join(token_bytes(tokenizer, encoded(tokenizer, text))) == text.encode(), text


@TOKENIZERS
@given(data=st.data())
def test_the_bytes_of_any_tokens_are_what_they_decode_to(kind: str, data: st.DataObject) -> None:
    """Of tokens as they are sampled, which need not be how their text is encoded, nor be text at all."""
    tokenizer = KINDS[kind]()
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    pieces = token_bytes(tokenizer, ids)
    assert len(pieces) == len(ids)
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    text, broken = readable(pieces)
    if kind in ("embedded", "other") or not any(broken):
        assert b"".join(text).decode() == decoded
    else:  # byte fallback writes one U+FFFD for each byte of a whole stretch that is no text
        assert "\ufffd" in decoded


def test_a_token_may_be_a_part_of_a_character() -> None:
    ids = encoded(other(), "🙂")
    assert len(ids) > 1 and b"".join(token_bytes(other(), ids)) == "🙂".encode()
    assert token_bytes(sentencepiece(), encoded(sentencepiece(), "🙂")) == [b"", *(bytes([b]) for b in "🙂".encode())]


def test_added_tokens_are_their_content_and_unknown_ids_nothing() -> None:
    words = embedded()
    assert token_bytes(words, [words.eos_token_id, words.convert_tokens_to_ids("<think>")]) == [
        b"<|im_end|>",
        b"<think>",
    ]
    assert token_bytes(words, [len(words) + 3]) == [b""]  # a padded embedding has such rows, and they can be sampled
    literal = sentencepiece().convert_tokens_to_ids("</s>")
    assert token_bytes(sentencepiece(), [literal]) == [b"</s>"]


def test_the_content_of_an_added_token_is_text_and_no_bytes() -> None:
    words = train_other_tokenizer(tiny.TEXTS)
    words.add_tokens(["<né>"])
    assert token_bytes(words, encoded(words, "<né>")) == ["<né>".encode()]
    # A word of the vocabulary that byte-level BPE cannot have made is what its decoder makes of it: itself.
    made = Tokenizer(models.BPE({"漢": 0, "Ġa": 1}, []))
    made.decoder = decoders.ByteLevel()
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=made), [0, 1]) == ["漢".encode(), b" a"]


def test_metaspace_takes_off_the_first_space() -> None:
    words = metaspace()
    ids = words.convert_tokens_to_ids(["▁a", "b", "▁a", "▁"])
    assert token_bytes(words, ids) == [b"a", b"b", b" a", b" "]
    assert words.decode(ids) == "ab a "
    words.backend_tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    assert token_bytes(words, ids)[0] == b" a" and words.decode(ids) == " ab a "
    strips_behind = decoders.Strip(" ", 0, 1)
    words.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strips_behind]
    )
    assert token_bytes(words, ids)[0] == b" a"


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.BPEDecoder(), None])
def test_other_kinds_are_refused(decoder: Any) -> None:
    made = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    if decoder is not None:
        made.decoder = decoder
    with pytest.raises(RladError, match="byte-level BPE or sentencepiece, and its decoder is"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=made), [0])
    with pytest.raises(RladError, match="needs a fast tokenizer"):
        token_bytes(object(), [0])


# --- spans


def cut(text: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(ends)]


def grouped(pieces: Sequence[bytes], spans: Tensor) -> list[list[bytes]]:
    found: list[list[bytes]] = [[] for _ in range(int(spans.max()) + 1)]
    for piece, span in zip(pieces, spans.tolist(), strict=True):
        found[span].append(piece)
    return found


PIECES = st.lists(st.integers(0, 30), max_size=12)


@given(
    text=st.binary(min_size=1, max_size=20), ours=PIECES, theirs=PIECES, empty=st.lists(st.integers(0, 20), max_size=3)
)
def test_spans_are_equal_texts_and_cannot_be_split(
    text: bytes, ours: list[int], theirs: list[int], empty: list[int]
) -> None:
    student, teacher = cut(text, ours), cut(text, theirs)
    for place in empty:  # tokens without bytes, on both sides
        student.insert(place % (len(student) + 1), b"")
        teacher.insert(place % 7 % (len(teacher) + 1), b"")
    a, b = common_spans(student, teacher)
    assert len(a) == len(student) and len(b) == len(teacher)
    assert (a.diff() >= 0).all() and (b.diff() >= 0).all()
    in_a, in_b = grouped(student, a), grouped(teacher, b)
    assert [b"".join(each) for each in in_a] == [b"".join(each) for each in in_b]
    assert b"".join(b"".join(each) for each in in_a) == text
    for one, two in zip(in_a, in_b, strict=True):
        inside = [{len(b"".join(pieces[:i])) for i in range(1, len(pieces))} for pieces in (one, two)]
        assert one and two and inside[0] & inside[1] <= {0, len(b"".join(one))}


@given(text=st.binary(max_size=20), places=PIECES)
@example(text=b"", places=[])
def test_equal_pieces_are_a_span_each(text: bytes, places: list[int]) -> None:
    pieces = cut(text, places)
    for spans in common_spans(pieces, pieces):
        assert spans.tolist() == list(range(len(pieces)))


def test_spans_of_a_known_text() -> None:
    # |Jo seph| =knight |?yes|   bytes end at 2 6 13 17
    # |Jo seph=| knight |?|yes|  bytes end at 2 7 13 14 17: common are 2, 13 and 17
    ours, theirs = common_spans([b"Jo", b"seph", b"=knight", b"?yes"], [b"Jo", b"seph=", b"knight", b"?", b"yes"])
    assert ours.tolist() == [0, 1, 1, 2] and theirs.tolist() == [0, 1, 1, 2, 2]


def test_tokens_without_bytes_belong_to_the_span_that_ends_there() -> None:
    ours, theirs = common_spans([b"", b"a", b"", b"b", b""], [b"a", b"b", b""])
    assert ours.tolist() == [0, 0, 0, 1, 1] and theirs.tolist() == [0, 1, 1]
    ours, theirs = common_spans([b"", b"a"], [b"", b"a"])  # of both at the beginning: a span of their own
    assert ours.tolist() == theirs.tolist() == [0, 1]


def test_pieces_of_different_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="different texts"):
        common_spans([b"a", b"b"], [b"ac"])


@given(st.lists(st.binary(max_size=4), max_size=8))
@example([b"a\xe6", b"\xbc", b"b"])
@example([b"ok", "é".encode()[:1]])
def test_what_is_no_text_is_replaced_as_everywhere_and_known_by_its_tokens(pieces: list[bytes]) -> None:
    found, broken = readable(pieces)
    raw = b"".join(pieces)
    assert b"".join(found).decode() == raw.decode(errors="replace")
    assert any(broken) == (raw.decode(errors="ignore").encode() != raw)
    for before, after, bad in zip(pieces, found, broken, strict=True):
        assert bad or before == after
    start = 0
    for piece, bad in zip(pieces, broken, strict=True):  # a token that is text by itself lost nothing
        try:
            raw[:start].decode(), piece.decode()
        except UnicodeDecodeError:
            pass
        else:
            assert not bad
        start += len(piece)


def test_a_cut_character_is_known_by_all_of_its_tokens() -> None:
    # 0xE6 0xBC could begin a character of three bytes: one U+FFFD for both, in the first of their tokens.
    found, broken = readable([b"a\xe6", b"\xbc", b"b", b"\xff"])
    assert found == [b"a\xef\xbf\xbd", b"", b"b", b"\xef\xbf\xbd"] and broken == [True, True, False, True]


# --- the teacher


class Known:
    """A teacher whose score of a token is minus its id / 1000; it keeps what it was asked."""

    def __init__(self, broken: int | None = None) -> None:
        self.prompts: list[list[int]] = []
        self.responses: list[list[int]] = []
        self.broken = broken

    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Tensor]:
        self.prompts, self.responses = [list(each) for each in prompts], [list(each) for each in responses]
        return [-torch.tensor([float("nan") if t == self.broken else t / 1000 for t in each]) for each in responses]


def score(teacher: SpansTeacher, response: list[int], prompt: Any = "Who?") -> tuple[list[int], list[float]]:
    (found,) = teacher.score_spans([prompt], [[1, 2]], [response])
    return found.spans.tolist(), found.logps.tolist()


def test_a_span_gets_the_sum_of_its_teacher_tokens_and_the_ending_its_own() -> None:
    known = Known()
    teacher = SpansTeacher(known, embedded(), other())
    response = [*encoded(embedded(), " Oliver=knight?no"), embedded().eos_token_id]
    spans, logps = score(teacher, response)
    (asked,) = known.responses
    assert asked == [*encoded(other(), " Oliver=knight?no"), other().eos_token_id]
    assert known.prompts == [encoded(other(), "Who?")]
    assert spans == [0, 0, 1, 2] or spans == [0, 1, 2, 3]  # " Oliver" + "=knight", or each for itself; "?no"; the end
    pieces = token_bytes(other(), asked[:-1])
    text, sums, total = b"", dict[int, float](), 0.0
    for token, piece in zip(asked, pieces, strict=False):
        text, total = text + piece, total - token / 1000
        if text in (b" Oliver", b" Oliver=knight", b" Oliver=knight?no"):
            sums[len(text)], total = total, 0.0
    assert sorted(set(logps), key=logps.index) == pytest.approx([*sums.values(), -asked[-1] / 1000], abs=1e-6)


def test_a_truncated_response_has_no_ending() -> None:
    known = Known()
    response = encoded(embedded(), " knight")
    spans, _ = score(SpansTeacher(known, embedded(), other()), response)
    assert known.responses == [encoded(other(), " knight")] and len(spans) == len(response)
    score(SpansTeacher(known, embedded(), other(), endings=[response[-1]]), response)
    assert known.responses == [[other().eos_token_id]]


PAIRS = ["embedded/other", "other/embedded", "embedded/sentencepiece", "sentencepiece/other",
         "sentencepiece/without a space before"]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_every_token_of_any_response_is_scored_once_or_not_at_all(pair: str) -> None:
    """Random ids: not how a text is encoded, mostly no text, with special tokens inside. What is scored adds up."""
    student, theirs = (KINDS[kind]() for kind in pair.split("/"))
    teacher, rng = SpansTeacher(Known(), student, theirs), random.Random(0)
    scored = 0
    for i in range(100):
        response = [rng.randrange(len(student)) for _ in range(rng.randint(0, 9))] + [student.eos_token_id] * (i % 2)
        ended = bool(response) and response[-1] == student.eos_token_id
        aligned = teacher.align(response)
        assert len(aligned.spans) == len(response) and len(aligned.theirs) == len(aligned.ids)
        assert (aligned.spans < max(len(response), 1)).all()
        pieces, broken = readable(token_bytes(student, response[: len(response) - ended]))
        asked = token_bytes(theirs, aligned.ids[: len(aligned.ids) - ended])
        for span in set(aligned.spans.tolist()) - {-1}:
            ours, his = (
                [k for k, each in enumerate(spans.tolist()) if each == span]
                for spans in (aligned.spans, aligned.theirs)
            )
            if ended and ours[-1] == len(response) - 1:
                assert aligned.ids[-1] == theirs.eos_token_id
                assert ours == [len(response) - 1] and his == [len(aligned.ids) - 1]
                continue
            assert b"".join(pieces[k] for k in ours) == b"".join(asked[k] for k in his)
            assert not any(broken[k] for k in ours)
            scored += len(ours)
    assert scored > 100


def test_what_is_no_text_is_not_scored_and_the_rest_is() -> None:
    known = Known()
    teacher = SpansTeacher(known, embedded(), other())
    half = embedded().convert_tokens_to_ids("æ")  # the byte 0xE6, with which 漢 begins
    response = [*encoded(embedded(), " knight"), half, *encoded(embedded(), " knave"), half]
    spans, logps = score(teacher, response)
    assert other().decode(known.responses[0]) == " knight\ufffd knave\ufffd"
    assert spans[1] == spans[3] == -1 and logps[1] == logps[3] == 0
    assert spans[0] >= 0 and spans[2] > spans[0] and logps[0] < 0 and logps[2] < 0


def test_a_text_that_the_teachers_tokenizer_changes_is_not_scored_but_its_ending_is() -> None:
    composing = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(other().backend_tokenizer.to_str()), eos_token="<|im_end|>"
    )
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    known = Known()
    teacher = SpansTeacher(known, embedded(), composing)
    response = [*encoded(embedded(), "e\u0301"), embedded().eos_token_id]
    spans, logps = score(teacher, response)
    assert known.responses[0] == [*encoded(other(), "é"), composing.eos_token_id]
    assert spans == [-1] * (len(response) - 1) + [0]
    assert logps[:-1] == [0.0] * (len(response) - 1) and logps[-1] == pytest.approx(-composing.eos_token_id / 1000)
    assert score(teacher, [embedded().eos_token_id]) == ([0], [logps[-1]])
    assert score(teacher, []) == ([], [])


@functools.cache
def llama() -> LlamaTokenizer:
    """transformers' own: a space is put before a text unless it begins with one, and always taken off."""
    model = json.loads(sentencepiece().backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return LlamaTokenizer(vocab=model["vocab"], merges=merges, unk_token="<unk>", eos_token="</s>")


def test_a_space_at_the_beginning_is_the_texts_or_the_tokenizers() -> None:
    for text in (" knight", "knight", "  knight"):
        known = Known()
        teacher = SpansTeacher(known, embedded(), llama())
        aligned = teacher.align(encoded(embedded(), text))
        assert (aligned.spans >= 0).all() and aligned.ids == encoded(llama(), text)
    # The student's own: off at the beginning of an answer, as it is decoded; in its place where a text goes on.
    teacher, response = SpansTeacher(Known(), llama(), other()), encoded(llama(), "knight")
    assert other().decode(teacher.align(response).ids) == "knight"
    assert other().decode(teacher.align(response, begins=False).ids) == " knight"
    teacher.score_spans(["Who?"], [[1]], [response])
    assert isinstance(teacher.teacher, Known) and other().decode(teacher.teacher.responses[0]) == " knight"
    words = train_other_tokenizer(tiny.TEXTS)
    teacher = SpansTeacher(Known(), llama(), words)
    teacher.score_spans([[{"role": "user", "content": "Who?"}]], [[1]], [response])
    assert isinstance(teacher.teacher, Known) and words.decode(teacher.teacher.responses[0]) == "knight"


def test_a_broken_value_breaks_its_span() -> None:
    response = encoded(embedded(), " Oliver=knight?no")
    whole = SpansTeacher(Known(), embedded(), other())
    broken = encoded(other(), " Oliver=knight?no")[0]
    _, before = score(whole, response)
    _, after = score(SpansTeacher(Known(broken), embedded(), other()), response)
    assert after[0] != after[0] and after[-1] == before[-1]


def test_equal_tokenizers_are_the_teacher_itself_also_for_tokens_that_no_text_is_encoded_to() -> None:
    known = Known()
    response = [*embedded().convert_tokens_to_ids(["k", "n", "i", "g", "h", "t"]), embedded().eos_token_id]
    assert len(encoded(embedded(), "knight")) < 6
    spans, logps = score(SpansTeacher(known, embedded(), embedded()), response)
    assert spans == list(range(7)) and logps == pytest.approx([-token / 1000 for token in response])
    assert known.prompts == [[1, 2]] and known.responses == [response]


def test_aligning_with_itself_is_the_identity_for_a_text_as_it_is_encoded() -> None:
    """The way through bytes, which equal tokenizers do not take."""
    teacher = SpansTeacher(Known(), embedded(), embedded())
    teacher.agree = False
    response = [*encoded(embedded(), TEXT), embedded().eos_token_id]
    aligned = teacher.align(response)
    assert aligned.ids == response
    assert aligned.spans.tolist() == aligned.theirs.tolist() == list(range(len(response)))


def test_prompts_go_through_the_teachers_template() -> None:
    words = train_other_tokenizer(tiny.TEXTS)
    words.chat_template = CHAT_TEMPLATE.replace("assistant\\n'", "' + called + '\\n'")
    teacher = SpansTeacher(Known(), embedded(), words, template_options={"called": "robot"})
    asked = teacher.prompt_ids([{"role": "user", "content": "Who?"}])
    assert words.decode(asked) == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>robot\n"
    begun = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is"}]
    assert words.decode(teacher.prompt_ids(begun)).endswith("It is")
    words.chat_template = None
    with pytest.raises(RladError, match="no chat template"):
        teacher.prompt_ids(begun)


def test_a_student_that_begins_inside_of_its_reasoning_has_a_teacher_that_does_so() -> None:
    student, words = copy.deepcopy(embedded()), train_other_tokenizer(tiny.TEXTS)
    student.chat_template += "{%- if add_generation_prompt %}{{ '<think>\\n' }}{%- endif %}"
    asked, begun = [{"role": "user", "content": "Who?"}], [{"role": "assistant", "content": "It is"}]
    plain = words.decode(SpansTeacher(Known(), embedded(), words).prompt_ids(asked))
    teacher = SpansTeacher(Known(), student, words)
    assert words.decode(teacher.prompt_ids(asked)) == plain + "<think>\n"
    assert words.decode(teacher.prompt_ids([*asked, *begun])).endswith("It is")
    words.chat_template = student.chat_template  # it opens it itself
    assert words.decode(SpansTeacher(Known(), student, words).prompt_ids(asked)).count("<think>") == 1


def test_what_a_tokenizer_adds_is_in_a_prompt_and_not_in_a_response() -> None:
    words = train_other_tokenizer(tiny.TEXTS)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<|im_start|> $A", None, [("<|im_start|>", 1)]
    )
    known = Known()
    score(SpansTeacher(known, embedded(), words), encoded(embedded(), " knight"))
    assert words.decode(known.prompts[0]) == "<|im_start|>Who?" and words.decode(known.responses[0]) == " knight"


def test_a_teacher_that_cannot_be_aligned_is_refused_at_once() -> None:
    with pytest.raises(RladError, match="does not keep a text as it is"):
        SpansTeacher(Known(), embedded(), metaspace_with_an_ending())
    nameless = train_other_tokenizer(tiny.TEXTS)
    nameless.eos_token = None
    with pytest.raises(RladError, match="no end of sequence"):
        SpansTeacher(Known(), embedded(), nameless)
    wrong = SpansTeacher(Known(), embedded(), other())
    wrong.teacher.score = lambda prompts, responses: [torch.zeros(1) for _ in responses]  # type: ignore[method-assign]
    with pytest.raises(RladError, match=r"returned \(1,\) log-probs for \d+ tokens of sequence 0"):
        score(wrong, encoded(embedded(), " Oliver=knight"))


def metaspace_with_an_ending() -> PreTrainedTokenizerFast:
    words = metaspace()
    words.add_special_tokens({"eos_token": "</s>"})
    return words
