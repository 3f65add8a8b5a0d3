"""The teacher in this process scores the right tokens, and a tokenizer that does not fit is found."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import tiny
from rlad.errors import RladError
from rlad.teacher import Teacher
from rlad.teacher.compatibility import check_tokenizers, tokenizer_differences
from rlad.teacher.local import LocalTeacher

VOCABULARY = len(tiny.tokenizer())


def sequences(count: int = 7) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of 1 to 9 tokens and responses of 0 to 12."""
    draw = random.Random(0)
    prompts = [[draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 9))] for _ in range(count)]
    responses = [[draw.randrange(VOCABULARY) for _ in range(length)] for length in (5, 0, 12, 1, 7, 12, 3)[:count]]
    return prompts, responses


def expected(temperature: float = 1.0) -> list[Tensor]:
    """A forward of each sequence by itself; log-softmax of the logits at t - 1, at token t."""
    model = tiny.model(2)
    rows = []
    for prompt, response in zip(*sequences(), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double() / temperature
        logps = logits.log_softmax(-1)
        rows.append(torch.tensor([logps[len(prompt) + t - 1, token].item() for t, token in enumerate(response)]))
    return rows


def close(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_log_softmax_at_the_position_before_each_token(temperature: float) -> None:
    scores = LocalTeacher(tiny.model(2), temperature).score(*sequences())
    assert close(scores, expected(temperature))
    assert all(row.dtype == torch.float32 and not row.requires_grad and (row <= 1e-4).all() for row in scores)
    _, responses = sequences()
    assert [len(row) for row in scores] == [len(response) for response in responses]
    # Values differ by nats between neighbours: a shift by one in either direction would be seen above.
    longest = scores[2]
    assert (longest[1:] - longest[:-1]).abs().mean() > 0.5


@pytest.mark.parametrize("tokens_per_batch", [1, 25, 40, 10_000])
def test_scores_do_not_depend_on_batches_padding_or_order(tokens_per_batch: int) -> None:
    teacher = LocalTeacher(tiny.model(2), tokens_per_batch=tokens_per_batch)
    prompts, responses = sequences()
    assert close(teacher.score(prompts, responses), expected())
    backwards = teacher.score(prompts[::-1], responses[::-1])
    assert close(backwards[::-1], expected())


def test_no_more_tokens_than_asked_for_are_in_one_forward() -> None:
    teacher = LocalTeacher(tiny.model(2), tokens_per_batch=40)
    sizes, inner = [], teacher._forward

    def spy(prompts: Any, responses: Any) -> list[Tensor]:
        sizes.append(len(prompts) * max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True)))
        return inner(prompts, responses)

    teacher._forward = spy  # type: ignore[method-assign]
    teacher.score(*sequences())
    assert len(sizes) > 1 and max(sizes) <= 40
    assert sizes[0] >= max(sizes) * 0.5  # the largest first


def test_the_teacher_is_frozen_and_a_teacher() -> None:
    teacher = LocalTeacher(tiny.model(2).train())
    assert isinstance(teacher, Teacher)
    assert not teacher.model.training and not any(each.requires_grad for each in teacher.model.parameters())


def test_what_cannot_be_scored_is_refused() -> None:
    teacher = LocalTeacher(tiny.model(2))
    with pytest.raises(RladError, match=rf"token id {VOCABULARY} is outside the teacher's vocabulary of {VOCABULARY}"):
        teacher.score([[1, 2]], [[3, VOCABULARY]])
    assert len(teacher.score([[1, 2]], [[3, VOCABULARY - 1]])[0]) == 2
    with pytest.raises(ValueError, match="1 prompts but 2 responses"):
        teacher.score([[1]], [[1], [2]])
    with pytest.raises(ValueError, match="a prompt is empty"):
        teacher.score([[]], [[1]])
    with pytest.raises(RladError, match=r"the teacher '/nowhere' cannot be loaded"):
        LocalTeacher.load("/nowhere")


# --- tokenizers


def changed(**parts: Any) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with parts of its definition replaced."""
    from tokenizers import Tokenizer

    definition = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    for path, value in parts.items():
        place = definition
        *outer, last = path.split("__")
        for key in outer:
            place = place[key]
        place[last] = value(place[last])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_str(json.dumps(definition)), pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )


def test_the_same_tokenizer_fits() -> None:
    assert tokenizer_differences(tiny.tokenizer(), tiny.tokenizer()) == []
    assert tokenizer_differences(tiny.tokenizer(), changed()) == []
    check_tokenizers(tiny.tokenizer(), changed())


def test_another_vocabulary_is_found() -> None:
    other = tiny.tokenizer(("zebra quagga okapi giraffe",) * 4)
    (difference,) = tokenizer_differences(tiny.tokenizer(), other)
    assert "tokens have different ids or are missing in one" in difference
    longer = copy.deepcopy(tiny.tokenizer())
    longer.add_tokens(["<tool>"])
    (difference,) = tokenizer_differences(tiny.tokenizer(), longer)
    assert difference.startswith("1 tokens") and f"'<tool>': student None, teacher {VOCABULARY}" in difference


def test_two_words_that_have_changed_places_are_found() -> None:
    def swap(vocabulary: dict[str, int]) -> dict[str, int]:
        return {**vocabulary, "a": vocabulary["b"], "b": vocabulary["a"]}

    (difference,) = tokenizer_differences(tiny.tokenizer(), changed(model__vocab=swap))
    assert difference.startswith("2 tokens have different ids")


def test_the_same_words_split_differently_are_found() -> None:
    (difference,) = tokenizer_differences(tiny.tokenizer(), changed(model__merges=lambda merges: []))
    assert "a text is split into them differently" in difference


def test_another_end_of_sequence_is_found() -> None:
    base = changed()
    base.eos_token = "<|endoftext|>"
    (difference,) = tokenizer_differences(tiny.tokenizer(), base)
    assert "'<|im_end|>' for the student and '<|endoftext|>' for the teacher" in difference
    with pytest.raises(RladError, match=r"do not share a tokenizer: the end of sequence is .* Choose a teacher of"):
        check_tokenizers(tiny.tokenizer(), base)
