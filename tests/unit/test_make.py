"""Making the embedded pair: what it trains on and what it saves, on models of a few thousand weights."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

import tiny
from rlad.models import make, resolve
from rlad.models.make import SPECS, Spec, _batches, _drills, _lr_scale, _Puzzles, encode, save, train
from rlad.models.traces import trace
from rlad.tasks.knights_knaves.generate import generate, split_of
from rlad.tasks.knights_knaves.puzzle import fingerprint

SPEC = Spec(
    shape=dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64),
    steps=2,
    mix_first=(0.5, 0.3, 0.2),
    mix_last=(0.2, 0.3, 0.5),
    tokens_per_step=4096,
)
ATTENTION = "rlad_sdpa_fp32"


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    puzzles = [puzzle for n in (2, 3, 4) for puzzle in generate(n, 100, seed=7)]
    return tiny.tokenizer((*(p.quiz for p in puzzles), *(trace(p) for p in puzzles)))


@pytest.fixture(scope="module")
def other_words() -> PreTrainedTokenizerFast:
    return make.make_other_tokenizer()


def in_training(seed: int = 0) -> Qwen3ForCausalLM:
    """A model as `train` has it before it saves a checkpoint."""
    model = tiny.model(seed).train()
    model.set_attn_implementation(ATTENTION)
    return model


def logits(model: Qwen3ForCausalLM, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids, attention_mask=mask, use_cache=False).logits
    return found


def assert_causal(model: Qwen3ForCausalLM) -> None:
    """Other tokens from place 6 on change nothing before it, and do change what comes after."""
    ids = torch.randint(3, model.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[:, 6:] = torch.randint(3, model.config.vocab_size, (2, 6), generator=torch.Generator().manual_seed(2))
    one, two = logits(model, ids), logits(model, other)
    torch.testing.assert_close(one[:, :6], two[:, :6], rtol=0, atol=1e-6)
    assert (one[:, 6:] - two[:, 6:]).abs().max() > 1e-2


def test_the_attention_in_fp32_is_causal_and_is_sdpa() -> None:
    model = in_training()
    assert_causal(model)
    ids = torch.arange(3, 27).view(2, 12)
    padded = torch.tensor([[1] * 12, [0] * 4 + [1] * 8]).bool()
    ours = [logits(model, ids), logits(model, ids, padded)]
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours[0], logits(model, ids), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1][padded], logits(model, ids, padded)[padded], rtol=1e-5, atol=1e-5)


def test_saving_leaves_the_model_in_training_as_it_is(tmp_path: Path) -> None:
    """A checkpoint that took the attention's name from the shared config once made the rest of a training see ahead."""
    model = in_training()
    ids = torch.arange(3, 15)[None]
    before, state = logits(model, ids), {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()

    save(model, tiny.tokenizer(), tmp_path / "step-1")

    assert model.config._attn_implementation == ATTENTION
    assert model.config.to_dict() == config
    assert model.training and model.dtype == torch.float32
    assert_causal(model)
    assert torch.equal(logits(model, ids), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_is_saved_loads_anywhere(tmp_path: Path) -> None:
    """In bf16, causal, under an attention that everybody has, and it is told when to stop."""
    model = in_training()
    save(model, tiny.tokenizer(), tmp_path / "step-1")
    assert ATTENTION not in (tmp_path / "step-1" / "config.json").read_text(encoding="utf-8")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "step-1")
    assert loaded.dtype == torch.bfloat16
    assert loaded.config._attn_implementation != ATTENTION
    assert_causal(loaded.float())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float()), name
    words = AutoTokenizer.from_pretrained(tmp_path / "step-1")
    assert loaded.generation_config.eos_token_id == words.eos_token_id
    assert loaded.generation_config.pad_token_id == words.pad_token_id
    assert loaded.generation_config.do_sample


def test_labels_are_the_response_and_nothing_else(words: PreTrainedTokenizerFast) -> None:
    start = words("<|im_start|>assistant\n").input_ids
    for ids, labels in islice(_batches(SPEC, words), 6):
        assert ids.shape == labels.shape
        for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
            # Prompt, response, one end of sequence, padding: the response begins after the assistant's header, which
            # stands once, and ends with the row's second end of sequence (the first ends the user's turn).
            begin = next(i for i in range(len(row)) if row[i : i + len(start)] == start) + len(start)
            end = [i for i, token in enumerate(row) if token == words.eos_token_id][1] + 1
            assert row.count(words.eos_token_id) == 2
            assert set(row[end:]) <= {words.pad_token_id}
            assert label == [-100] * begin + row[begin:end] + [-100] * (len(row) - end)
            response = words.decode(row[begin:end])
            assert response.startswith("<think>\nTry ") and response.endswith("</answer><|im_end|>")


def test_batches_keep_to_their_size_and_to_the_seed(words: PreTrainedTokenizerFast) -> None:
    batches = list(islice(_batches(SPEC, words), 12))
    assert all(ids.numel() <= SPEC.tokens_per_step or len(ids) == 1 for ids, _ in batches)
    again = list(islice(_batches(SPEC, words), 12))
    assert all(
        torch.equal(a, b) for one, two in zip(batches, again, strict=True) for a, b in zip(one, two, strict=True)
    )
    other = next(_batches(dataclasses.replace(SPEC, seed=1), words))[0]
    assert other.shape != batches[0][0].shape or not torch.equal(other, batches[0][0])


def test_encode_is_what_generation_sees_and_then_the_response(words: PreTrainedTokenizerFast) -> None:
    puzzle = generate(2, 1, seed=0)[0]
    ids, prompt = encode(words, puzzle, "<think>\n</think>")
    assert words.decode(ids[:prompt]) == f"<|im_start|>user\n{puzzle.quiz}<|im_end|>\n<|im_start|>assistant\n"
    assert words.decode(ids[prompt:]) == "<think>\n</think><|im_end|>"


@pytest.mark.parametrize("which", ["words", "other_words"])
def test_a_drill_asks_for_what_the_person_was_last_assumed_to_be(which: str, request: pytest.FixtureRequest) -> None:
    words, asked = request.getfixturevalue(which), 0
    for ids, labels in islice(_drills(dataclasses.replace(SPEC, drill=True, tokens_per_step=600), words), 4):
        assert ids.shape == labels.shape and ids.numel() <= 600
        for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
            text, world = "", dict[str, str]()
            for i, (token, wanted) in enumerate(zip(row, label, strict=True)):
                text += words.decode([token])
                if wanted != -100:
                    assert wanted == token
                if i + 1 == len(row) or label[i + 1] != -100 or wanted == -100:
                    continue  # not the last token of a role that was asked for
                line, asked = text.rpartition("\n")[2], asked + 1
                name, role = line.rpartition(" ")[2].split("=")
                assumed = text[: -len(line)].rpartition("Try")[2].split("\n")[0]
                world = dict(pair.split("=") for pair in assumed.split())
                assert not line.startswith("Try") and world[name] == role
    assert asked > 100


def test_the_other_tokenizer_splits_at_least_half_of_the_words_differently(
    other_words: PreTrainedTokenizerFast,
) -> None:
    """Of the different words and of their occurrences; the tags, which both have whole, are left out."""
    ours = AutoTokenizer.from_pretrained(resolve("embedded:teacher"))
    puzzles = [puzzle for n in (2, 3, 4) for puzzle in generate(n, 100, seed=99)]
    texts = [text for puzzle in puzzles for text in (puzzle.quiz, trace(puzzle))]
    words = Counter(word for text in texts for word in re.findall(r" ?\S+", re.sub(r"</?\w+>", "\n", text)))

    def pieces(tokenizer: PreTrainedTokenizerFast, word: str) -> list[str]:
        return [tokenizer.decode([token]) for token in tokenizer(word).input_ids]

    differ = {word for word in words if pieces(ours, word) != pieces(other_words, word)}
    assert len(differ) / len(words) >= 0.5
    assert sum(words[word] for word in differ) / words.total() >= 0.5
    # And not only more finely: a boundary of one lies inside a token of the other, in both directions.
    assert pieces(other_words, " Joseph=knight")[-2:] == ["h=", "knight"]
    assert pieces(ours, " Joseph=knight") == [" Joseph", "=knight"]


def test_the_command_trains_stage_after_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drill = Spec(SPEC.shape, steps=1, drill=True, tokens_per_step=300)
    monkeypatch.setitem(make.SPECS, "student", (drill, dataclasses.replace(SPEC, steps=1, tokens_per_step=300)))
    monkeypatch.setattr(make, "make_tokenizer", tiny.tokenizer)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(
        "sys.argv", ["make", "student", "--output", str(tmp_path), "--set", "lr=0.0", 'optimizer="adamw"']
    )
    make.main()
    one, two = (json.loads((tmp_path / f"stage-{i}" / "spec.json").read_text()) for i in (1, 2))
    assert (one["drill"], two["drill"], one["lr"], two["lr"]) == (True, False, 0.0, 0.0)
    # With a learning rate of 0 the second stage ends with the weights that it was given: the first one's.
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / f"stage-{i}" / "step-1") for i in (1, 2))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_the_other_teacher_is_made_on_the_other_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tiny.tokenizer((*tiny.TEXTS, "something else"))
    monkeypatch.setitem(make.SPECS, "other-teacher", (dataclasses.replace(SPEC, steps=1, tokens_per_step=300),))
    monkeypatch.setattr(make, "make_other_tokenizer", lambda: words)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr("sys.argv", ["make", "other-teacher", "--output", str(tmp_path)])
    make.main()
    assert AutoTokenizer.from_pretrained(tmp_path / "stage-1" / "step-1").get_vocab() == words.get_vocab()


@pytest.mark.parametrize("spec", [spec for stages in SPECS.values() for spec in stages if not spec.drill])
def test_both_train_on_the_train_split_alone(spec: Spec) -> None:
    spec = dataclasses.replace(spec, puzzles=None if spec.puzzles is None else 400)
    source = _Puzzles(spec)
    pools = [source.pool(progress) for progress in (0.0, 1.0)]
    assert {split_of(fingerprint(puzzle.statements)) for pool in pools for puzzle in pool} == {"train"}
    for pool, mix in zip(pools, (spec.mix_first, spec.mix_last), strict=True):
        assert [sum(p.n_people == n for p in pool) / len(pool) for n in (2, 3, 4)] == pytest.approx(mix, abs=0.01)


def test_a_fixed_set_of_puzzles_comes_back_and_an_endless_one_does_not() -> None:
    for puzzles, again in ((60, True), (None, False)):
        source = _Puzzles(dataclasses.replace(SPEC, puzzles=puzzles))
        one, two = ({puzzle.quiz for puzzle in source.pool(0.0)} for _ in range(2))
        assert (one == two) is again and bool(one & two) is again


def test_the_learning_rate_rises_holds_and_falls() -> None:
    scale = [_lr_scale(step, 1000) for step in range(1000)]
    assert scale[0] == 0.01 and scale[49] == 0.5
    assert set(scale[99:600]) == {1.0}
    assert scale[800] == pytest.approx(0.5)  # (1000 - 800) / 400
    assert 0 < scale[-1] < 0.01


def test_training_writes_what_it_did_and_can_go_on(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    # The warm-up starts at a hundredth of lr, so this one is 0.02 at the second step, where it leaves its schedule.
    spec = dataclasses.replace(SPEC, tokens_per_step=600, lr=1.0, steps=4, stop=2)
    model = train(spec, words, tmp_path / "a", log_every=1)
    assert json.loads((tmp_path / "a" / "spec.json").read_text())["stop"] == 2
    log = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2]
    assert 5 < log[0]["loss"] < 9  # a random model of some 1,000 tokens knows nothing: about ln 1000 = 6.9
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "step-2").state_dict()
    assert all(torch.equal(saved[name], value.bfloat16()) for name, value in model.state_dict().items())

    idle = dataclasses.replace(spec, lr=0.0, optimizer="adamw")  # it changes nothing: what comes out is what went in
    onward = train(idle, words, tmp_path / "b", start=tmp_path / "a" / "step-2").state_dict()
    assert all(torch.equal(onward[name].bfloat16(), value) for name, value in saved.items())
