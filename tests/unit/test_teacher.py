"""The teacher in this process scores the right tokens, and a tokenizer that does not fit is found."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import tiny
from rlad.errors import RladError
from rlad.models import resolve
from rlad.teacher import Teacher
from rlad.teacher.align import Layout, layout, self_test
from rlad.teacher.compatibility import check_tokenizers, template_difference, tokenizer_differences
from rlad.teacher.local import LocalTeacher, backbone, cpu_logps, safe_adapter

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

    def spy(plan: Layout) -> Tensor:
        sizes.append(plan.ids.numel())
        return inner(plan)

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
    teacher.model.config.max_position_embeddings = 5
    assert len(teacher.score([[1, 2]], [[3, 4, 5]])[0]) == 3
    with pytest.raises(RladError, match="response of 6 tokens are longer than the teacher's 5 positions"):
        teacher.score([[1, 2]], [[3, 4, 5, 6]])


def test_a_layout_says_which_output_scores_which_token() -> None:
    """Prompt 5 6, response 7 8 9: outputs 1, 2, 3 score tokens 2, 3, 4; the second row is shorter."""
    plan = layout([[5, 6], [1]], [[7, 8, 9], [2]])
    assert plan.ids.tolist() == [[5, 6, 7, 8, 9], [1, 2, 0, 0, 0]]
    assert plan.real.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert plan.scored.int().tolist() == [[0, 1, 1, 1, 0], [1, 0, 0, 0, 0]]
    assert plan.targets.tolist() == [7, 8, 9, 2]
    assert [row.tolist() for row in plan.rows(torch.tensor([1.0, 2, 3, 4]))] == [[1, 2, 3], [4]]


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "granite", "qwen3_moe", "mixtral", "gpt2"])
def test_the_head_in_tiles_is_the_models_own(family: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soft caps (Gemma 2) and scales (Granite) of the logits are in it, whatever the size of a tile, and whatever else
    a head reads (routers of mixtures, GPT-2's attentions)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    extra = {"gemma2": {"final_logit_softcapping": 0.5}, "granite": {"logits_scaling": 0.1}}.get(family, {})
    config = AutoConfig.for_model(
        family, vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=32, **extra,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(0, 50, (2, 9))
    monkeypatch.setattr("rlad.teacher.local.TILE_BYTES", rows * 4 * 50)
    with torch.no_grad():
        direct = (model(input_ids=ids).logits[:, :-1].double() / 0.7).log_softmax(-1)
        hidden = backbone(model)(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
        found = cpu_logps(model, hidden, ids[:, 1:].flatten(), 0.7)
        again = model(input_ids=ids).logits  # the backbone is back
    torch.testing.assert_close(found.double(), direct.gather(-1, ids[:, 1:, None]).flatten(), atol=1e-4, rtol=0)
    assert again.shape == (2, 9, 50) and not torch.equal(again[0], again[1])


# --- the self-test


class Shifted:
    """A teacher whose scores are those of a neighbouring token."""

    def __init__(self, by: int) -> None:
        self.inner, self.by = LocalTeacher(tiny.model(2)), by

    def score(self, prompts: Any, responses: Any) -> list[Tensor]:
        return [row.roll(self.by) for row in self.inner.score(prompts, responses)]


def test_a_teacher_is_loaded_whole_while_the_student_is_in_parts(tmp_path: Path) -> None:
    """DeepSpeed itself is not here: what transformers asks before it parts a model that it loads."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations import deepspeed

    class Parts:
        def is_zero3(self) -> bool:
            return True

    config, asked = Parts(), []
    deepspeed.set_hf_deepspeed_config(config)
    load = AutoModelForCausalLM.from_pretrained
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                AutoModelForCausalLM,
                "from_pretrained",
                lambda *args, **kwargs: asked.append(deepspeed.is_deepspeed_zero3_enabled()) or load(*args, **kwargs),
            )
            LocalTeacher.load(tiny.save(2, tmp_path))
        assert asked == [False] and deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_a_hub_that_is_not_reached_says_nothing_of_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def away(*_: object) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", away)
    with pytest.raises(RladError, match="the adapter 'me/mine' cannot be had: no connection"):
        safe_adapter("me/mine")


@pytest.mark.parametrize("where", ["cpu", "auto"])
def test_a_device_map_is_accelerate_s(where: str, tmp_path: Path) -> None:
    path = tiny.save(2, tmp_path)
    plain, placed = LocalTeacher.load(path), LocalTeacher.load(path, device="cpu", device_map=where)
    assert close(plain.score(*sequences()), placed.score(*sequences()))


@pytest.mark.parametrize(
    ("device", "given", "found"),
    [
        ("cuda:1", {}, {"": torch.device("cuda:1")}),  # straight to the GPU, which what is saved quantised needs too
        ("cuda:1", {"device_map": "auto"}, "auto"),
        ("cpu", {}, None),
        (None, {}, None),
    ],
)
def test_weights_are_read_to_where_the_teacher_goes(
    device: str | None, given: dict[str, Any], found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    asked: list[Any] = []

    def load(path: str, **kwargs: Any) -> Any:
        asked.append(kwargs.get("device_map"))
        raise OSError("enough")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(RladError, match="enough"):
        LocalTeacher.load("somewhere", device=device, **given)
    assert asked == [found]


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantised_teacher_scores_its_own_forward(bits: str) -> None:
    """Layers really are quantised, scores are near the unquantised ones, and the self-test passes."""
    pytest.importorskip("bitsandbytes", reason="quantisation needs bitsandbytes")
    options = {"quant_method": "bitsandbytes", f"load_in_{bits}": True}
    path = "embedded:teacher"  # bitsandbytes works in blocks of 64, and the smaller models have other widths
    teacher = LocalTeacher.load(path, device="cpu", quantization_config=options)
    assert bits in type(teacher.model.model.layers[0].mlp.up_proj).__name__.lower().replace("8bitlt", "8bit")
    self_test(teacher, AutoTokenizer.from_pretrained(resolve(path)), teacher.model)
    plain, found = (torch.cat(each.score(*sequences())) for each in (LocalTeacher.load(path), teacher))
    assert 0 < (found - plain).abs().max() < 3


def test_the_self_test_passes_a_teacher_that_scores_its_own_forward() -> None:
    for temperature in (1.0, 0.5):
        teacher = LocalTeacher(tiny.model(2), temperature)
        self_test(teacher, tiny.tokenizer(), teacher.model, tolerance=1e-4)


@pytest.mark.parametrize(("by", "words"), [(1, "the token before: shifted by one"), (-1, "the token after: shifted")])
def test_the_self_test_finds_a_shift_by_one(by: int, words: str) -> None:
    teacher = Shifted(by)
    with pytest.raises(RladError, match=words):
        self_test(teacher, tiny.tokenizer(), teacher.inner.model)


def test_the_self_test_finds_what_else_can_be_wrong() -> None:
    model = tiny.model(2)

    class Broken(LocalTeacher):
        def score(self, prompts: Any, responses: Any) -> list[Tensor]:
            row = super().score(prompts, responses)[0]
            row[1:3] = torch.tensor([float("nan"), 0.5])
            return [row]

    class Short(LocalTeacher):
        def score(self, prompts: Any, responses: Any) -> list[Tensor]:
            return [super().score(prompts, responses)[0][:-1]]

    words = tiny.tokenizer()
    with pytest.raises(RladError, match=r"2 of \d+ log-probs of a plain sentence are NaN, infinite or positive"):
        self_test(Broken(model), words)
    with pytest.raises(RladError, match=r"the teacher scored (\d+) tokens with"):
        self_test(Short(model), words)
    with pytest.raises(RladError, match=r"differ from its own forward pass by \d+\.\d\d nats on average\. Please"):
        self_test(LocalTeacher(tiny.model(2)), words, tiny.model(5))  # another model's forward


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


def test_another_chat_template_is_worth_a_warning() -> None:
    words = tiny.tokenizer()
    other = copy.deepcopy(words)
    assert template_difference(words, other) is None
    other.chat_template = "{{ messages[0]['content'] }}"
    assert "the teacher will see the student's" in str(template_difference(words, other))
    with pytest.warns(UserWarning, match="the chat templates differ"):
        check_tokenizers(words, other)
    other.chat_template = "{{ raise_exception('no system prompt') }}"
    assert "could not be compared (TemplateError" in str(template_difference(words, other))
    other.chat_template = None  # a base model: nothing to compare
    assert template_difference(words, other) is None
