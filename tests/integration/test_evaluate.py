"""Evaluation of a tiny random Qwen3: what is generated, how it is counted, and the file that is kept."""

import copy
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rlad.errors import RladError
from rlad.evaluation import Evaluation, Response, compare, evaluate, generate_responses, wilson_interval
from rlad.evaluation.pairs import differing_settings
from rlad.evaluation.run import Problem, problem_id, write_json
from rlad.tasks import Score, load_task

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ opening | default('') }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, and a few are special."""
    specials = ["<|pad|>", "<|end|>", "<|user|>", "<|system|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*specials, *alphabet])}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>", chat_template=TEMPLATE, padding_side="right"
    )


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
        initializer_range=0.3,  # large, so that the distributions are far from uniform
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


PROMPTS = [
    user(text) for text in ("a", "a much longer prompt than the others", "bc", "Zoey says she is a knight.", "é", "a")
]


class Even:
    """Right where the response has an even number of characters."""

    name = "even"
    difficulty_name = "size"

    def train(self) -> list[dict[str, Any]]:
        return []

    def evaluation(self, split: str = "test", count: int | None = None) -> list[dict[str, Any]]:
        return [{"prompt": prompt, "difficulty": 10 if i % 3 else 2} for i, prompt in enumerate(PROMPTS)][:count]

    def score(self, response: str, example: Any) -> Score:
        even = len(response) % 2 == 0
        return Score(2.0 * even, even, str(len(response)), "even" if even else "odd")


# --- generation


def test_responses_are_the_same_for_the_same_seed_and_leave_no_trace(model: Any, tokenizer: Any) -> None:
    def sampled(seed: int) -> list[list[Response]]:
        return generate_responses(model, tokenizer, PROMPTS, samples=3, max_new_tokens=12, seed=seed, batch_size=4)

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = sampled(7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert sampled(7) == first
    assert sampled(8) != first
    assert [len(responses) for responses in first] == [3] * 6
    texts = {response.text for responses in first for response in responses}
    assert len(texts) > 12  # neither the samples of a prompt nor equal prompts nor batches share their draws
    assert first[0] != first[5]


def test_training_mode_and_generation_config_come_back(model: Any, tokenizer: Any) -> None:
    own = model.generation_config
    model.train()
    generate_responses(model, tokenizer, PROMPTS[:1], max_new_tokens=2)
    assert model.training and model.generation_config is own
    model.eval()
    generate_responses(model, tokenizer, PROMPTS[:1], max_new_tokens=2)
    assert not model.training
    with pytest.raises(RladError):
        generate_responses(model, tokenizer, PROMPTS[:1], max_new_tokens=10_000)
    assert model.generation_config is own


def test_batches_and_padding_change_nothing(model: Any, tokenizer: Any) -> None:
    """Greedy, in float32: in one batch, padded, each response is what it is alone, and what a bare loop finds."""
    together = generate_responses(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=16, batch_size=6)
    alone = generate_responses(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=16, batch_size=1)
    assert together == alone
    for prompt, (response,) in zip(PROMPTS, together, strict=True):
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        generated: list[int] = []
        with torch.no_grad():
            while len(generated) < 16 and tokenizer.eos_token_id not in generated:
                generated.append(int(model(torch.tensor([ids + generated])).logits[0, -1].argmax()))
        assert response.text == tokenizer.decode(generated, skip_special_tokens=True)
        assert response.tokens == len(generated)


def first_token_distribution(model: Any, tokenizer: Any, temperature: float) -> torch.Tensor:
    ids = tokenizer.apply_chat_template(PROMPTS[0], add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        return (model(torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 1.0), (1.0, 0.6)])
def test_what_is_sampled_follows_temperature_and_top_p_alone(
    model: Any, tokenizer: Any, temperature: float, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint's generation config (top-k, penalties), and transformers' default top-k of 50, play no part."""
    monkeypatch.setattr(
        model,
        "generation_config",
        GenerationConfig(eos_token_id=1, top_k=2, repetition_penalty=9.0, min_p=0.9, do_sample=True),
    )
    expected = first_token_distribution(model, tokenizer, temperature)
    if top_p < 1:
        ranked = expected.sort(descending=True)
        kept = ranked.indices[ranked.values.cumsum(0) - ranked.values < top_p]
        nucleus = torch.zeros_like(expected).index_copy(0, kept, expected[kept])
        expected = nucleus / nucleus.sum()
    n = 6_000
    seen: list[int] = []
    original = tokenizer.decode

    def decode(ids: list[int], **kwargs: Any) -> str:
        seen.append(ids[0])
        return str(original(ids, **kwargs))

    monkeypatch.setattr(tokenizer, "decode", decode)
    generate_responses(
        model,
        tokenizer,
        PROMPTS[:1],
        samples=n,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=1,
        batch_size=2_000,
    )
    counts = torch.bincount(torch.tensor(seen), minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    # Binomial counts: the sum over k tokens of (seen - expected)^2 / expected is about k, give or take sqrt(2 k).
    common = expected * n > 5
    excess = ((counts - n * expected) ** 2 / (n * expected))[common].sum()
    k = int(common.sum())
    assert k > 10
    assert excess < k + 5 * math.sqrt(2 * k)
    if top_p == 1:
        assert int((counts > 0).sum()) > 50


def test_the_end_is_found_counted_and_left_out(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any of the generation config's end tokens ends a response; one that has none is truncated."""
    ends = [1, *range(20, 60)]
    monkeypatch.setattr(model, "generation_config", GenerationConfig(eos_token_id=ends))
    decoded: list[list[int]] = []
    original = tokenizer.decode

    def decode(ids: list[int], **kwargs: Any) -> str:
        decoded.append(list(ids))
        return str(original(ids, **kwargs))

    monkeypatch.setattr(tokenizer, "decode", decode)
    responses = [r for rs in generate_responses(model, tokenizer, PROMPTS, samples=8, max_new_tokens=6) for r in rs]
    ended = [ids for ids in decoded if ids[-1] in ends]
    assert 0 < len(ended) < len(decoded) == 48
    assert all(token not in ends for ids in decoded for token in ids[:-1])
    assert all(len(ids) == 6 for ids in decoded if ids[-1] not in ends)
    assert sum(response.truncated for response in responses) == 48 - len(ended)
    assert sorted(response.tokens for response in responses) == sorted(map(len, decoded))
    assert all(response.tokens == 6 for response in responses if response.truncated)
    assert not any("<|" in response.text for response in responses)


def test_the_longest_come_first_and_progress_is_told(model: Any, tokenizer: Any) -> None:
    told: list[tuple[int, int]] = []
    generate_responses(
        model,
        tokenizer,
        PROMPTS,
        samples=2,
        max_new_tokens=2,
        batch_size=5,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(5, 12), (10, 12), (12, 12)]
    assert generate_responses(model, tokenizer, []) == []


def test_a_chat_template_takes_its_options(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    original = model.generate

    def generate(**kwargs: Any) -> Any:
        widths.append(kwargs["input_ids"].shape[1])
        return original(**kwargs)

    monkeypatch.setattr(model, "generate", generate)
    for options in ({}, {"opening": "<think>"}):
        generate_responses(model, tokenizer, PROMPTS[:1], max_new_tokens=1, chat_template_kwargs=options)
    assert widths == [4, 4 + len("<think>")]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"samples": 0}, "samples must be a whole number from 1"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be"),
        ({"temperature": -1}, "temperature must be 0"),
        ({"temperature": math.nan}, "temperature must be 0"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0"),
        ({"temperature": 0, "samples": 2}, "ask for 1"),
        ({"max_new_tokens": 1021}, "a prompt of 4 tokens .* 1024 positions; set max_new_tokens to at most 1020"),
    ],
)
def test_settings_that_are_wrong(model: Any, tokenizer: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(RladError, match=says):
        generate_responses(model, tokenizer, PROMPTS[:1], **settings)


def test_tokenizers_that_cannot_be_used(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bare, endless = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(RladError, match="no chat template"):
        generate_responses(model, bare, PROMPTS[:1])
    endless.eos_token = None
    monkeypatch.setattr(model, "generation_config", GenerationConfig())
    with pytest.raises(RladError, match="end-of-sequence"):
        generate_responses(model, endless, PROMPTS[:1])


# --- evaluation


@pytest.fixture(scope="module")
def evaluation(model: Any, tokenizer: Any) -> Evaluation:
    return evaluate(model, tokenizer, Even().evaluation(), Even(), samples=4, max_new_tokens=8, seed=3, batch_size=8)


def test_every_response_is_scored_by_its_task(evaluation: Evaluation) -> None:
    assert [problem.difficulty for problem in evaluation.problems] == ["2", "10", "10", "2", "10", "10"]
    for problem in evaluation.problems:
        assert problem.correct == [len(text) % 2 == 0 for text in problem.responses]
        assert problem.values == [2.0 * right for right in problem.correct]
        assert problem.extracted == [str(len(text)) for text in problem.responses]
        assert len(problem.tokens) == len(problem.truncated) == 4
        assert problem.accuracy == sum(problem.correct) / 4
    assert evaluation.settings == {
        "samples": 4,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": 8,
        "seed": 3,
        "batch_size": 8,
        "prompt_format": "chat",
        "append": "",
        "chat_template_kwargs": {},
    }
    assert 0 < sum(evaluation.accuracies) < 6


def made(*accuracies: tuple[str, list[bool]]) -> Evaluation:
    """An evaluation with these (difficulty, correct) per problem."""
    problems = [
        Problem(
            f"p{i}",
            d,
            [float(c) for c in right],
            right,
            [3] * len(right),
            [False] * len(right),
            [None] * len(right),
            [""] * len(right),
        )
        for i, (d, right) in enumerate(accuracies)
    ]
    return Evaluation("even", "people", {"samples": len(accuracies[0][1])}, problems)


def test_rows_and_their_average() -> None:
    two = [("2", [True])] * 8 + [("2", [False])] * 2
    ten = [("10", [True])] * 1 + [("10", [False])] * 3
    rows = made(*ten, *two).rows()
    assert [row["difficulty"] for row in rows] == ["2", "10", "average"]  # by number, not as text
    assert [row["problems"] for row in rows] == [10, 4, 14]
    # the average weighs 2 and 10 alike: (.8 + .25) / 2 = .525, not 9 / 14
    assert [row["accuracy"] for row in rows] == pytest.approx([0.8, 0.25, 0.525])
    (low2, high2), (low10, high10) = wilson_interval(8, 10), wilson_interval(1, 4)
    assert (rows[0]["low"], rows[0]["high"]) == (low2, high2)
    assert rows[2]["low"] == pytest.approx(0.525 - math.hypot(0.8 - low2, 0.25 - low10) / 2)
    assert rows[2]["high"] == pytest.approx(0.525 + math.hypot(high2 - 0.8, high10 - 0.25) / 2)
    assert [row["difficulty"] for row in made(*two).rows()] == ["2"]  # an average of one says nothing
    mixed = made(("hard", [True]), ("10", [True]), ("easy", [True]), ("2", [True])).rows()
    assert [row["difficulty"] for row in mixed] == ["2", "10", "easy", "hard", "average"]


def test_several_samples() -> None:
    # of 4 samples 1 and 3 are right: mean@4 = .5; pass@2 = (1 - 3/6 + 1 - 0/6) / 2 = .75; pass@4 = 1
    rows = made(("2", [True, False, False, False]), ("2", [True, True, True, False])).rows()
    assert rows[0]["accuracy"] == 0.5
    assert rows[0]["pass_at"] == {"1": 0.5, "2": 0.75, "4": 1.0}
    assert made(("2", [True] * 3)).rows()[0]["pass_at"] == {"1": 1.0, "2": 1.0, "3": 1.0}


def test_the_table(evaluation: Evaluation) -> None:
    lines = evaluation.table().splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert lines[0].split()[:4] == ["size", "problems", "mean@4", "95"]
    assert "pass@4" in lines[0] and lines[3].split()[0] == "average"
    table = made(*[("2", [True])] * 8, *[("2", [False])] * 2).table()
    assert "80.0 %" in table and "49.0 % to 94.3 %" in table and "pass@" not in table


def test_it_is_kept_as_json(evaluation: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    evaluation.save(path)
    kept = json.loads(path.read_text())
    assert kept["version"] == 2 and kept["task"] == "even"
    assert kept["summary"] == evaluation.rows()
    assert len(kept["problems"]) == 6
    assert Evaluation.load(path) == evaluation
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]
    assert path.stat().st_mode & 0o044 == 0o044


def test_results_of_the_first_version_are_read(tmp_path: Path, evaluation: Evaluation) -> None:
    """They had no formats, and neither prompt format nor pass@k intervals."""
    old = evaluation.to_json() | {"version": 1, "settings": {"samples": 4, "seed": 3}}
    for problem in old["problems"]:
        del problem["format_ok"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    read = Evaluation.load(tmp_path / "old.json")
    assert read.accuracies == evaluation.accuracies
    assert read.rows()[0]["format_ok"] is None and read.table().splitlines()[1].endswith(" -")
    assert [row["difference"] for row in compare(read, evaluation)] == [0.0] * 4


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
    with pytest.raises(RladError, match="cannot write"):
        write_json(path / "below" / "a.json", {})


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "task": "t", "problems": [{"a": 1}]}', "[" * 100_000]
)
def test_files_that_are_no_results(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(RladError, match="is not a result of rlad evaluate"):
        Evaluation.load(path)
    with pytest.raises(RladError, match="is not a result"):
        Evaluation.load(tmp_path / "none.json")
    path.write_text('{"version": 99}')
    with pytest.raises(RladError, match="version 99"):
        Evaluation.load(path)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("correct", [], "values has 4 entries for 0 responses"),
        ("correct", "x", "correct must be a list of bool"),
        ("correct", [1, 0, 1, 1], "correct must be a list of bool"),
        ("problem", [1], "problem and difficulty must be texts"),
        ("tokens", [1], "tokens has 1 entries for 4 responses"),
    ],
)
def test_a_damaged_result_is_refused(tmp_path: Path, evaluation: Evaluation, name: str, value: Any, says: str) -> None:
    damaged = evaluation.to_json()
    damaged["problems"][0][name] = value
    (tmp_path / "damaged.json").write_text(json.dumps(damaged))
    with pytest.raises(RladError, match=f"is not a result of rlad evaluate.*{says}"):
        Evaluation.load(tmp_path / "damaged.json")


def test_before_and_after_are_compared_in_pairs() -> None:
    before = made(("2", [False]), ("2", [True]), ("3", [False]), ("3", [False]))
    after = made(("2", [True]), ("2", [True]), ("3", [True]), ("3", [False]))
    two, three, average, everything = compare(before, after)
    assert (two["difficulty"], two["before"], two["after"], two["difference"]) == ("2", 0.5, 1.0, 0.5)
    assert (three["difficulty"], three["problems"]) == ("3", 2)
    # differences 1 0 1 0: mean .5, error sqrt(1 / 12), t with 3 degrees of freedom 3.18245; bounded by [-1, 1]
    assert (average["difficulty"], average["difference"], average["p_value"]) == ("average", 0.5, 0.5)
    assert everything["difficulty"] == "all" and everything["difference"] == 0.5
    assert everything["low"] == pytest.approx(0.5 - 3.182446 * math.sqrt(1 / 12), abs=1e-6)
    assert everything["high"] == 1.0
    # 2 problems differ, both upwards: with signs at random both would agree in 2 of 4 cases
    assert everything["p_value"] == 0.5 and two["p_value"] == 1.0
    assert [row["difference"] for row in compare(after, before)] == [-0.5] * 4
    with pytest.raises(RladError, match=r"not of the same problems.*: of 4 and 1, 1 are shared"):
        compare(before, made(("2", [True])))


def test_problems_are_paired_by_id_not_by_order() -> None:
    before = made(("2", [False]), ("2", [True]), ("3", [False]), ("3", [True]))
    after = made(("2", [True]), ("2", [True]), ("3", [False]), ("3", [False]))
    turned = dataclasses.replace(after, problems=after.problems[::-1])
    in_order = compare(before, after)
    by_name = {row["difficulty"]: row for row in in_order}
    assert {row["difficulty"]: row for row in compare(before, turned)} == by_name
    assert [row["difference"] for row in in_order] == [0.5, -0.5, 0.0, 0.0]
    # the same prompt twice: the first is paired with the first, the second with the second
    one, other = before.problems[0], before.problems[1]
    twice = dataclasses.replace(before, problems=[one, dataclasses.replace(other, problem=one.problem)])
    assert [row["difference"] for row in compare(twice, twice)] == [0.0]
    with pytest.raises(RladError, match="of 2 and 4, 1 are shared"):
        compare(twice, before)


def test_subsets_of_different_sizes_weigh_alike_in_the_average() -> None:
    # 2: differences 1 0 0 0 (mean .25); 3: -1 (mean -1). average -.375; all problems 0 / 5
    before = made(("2", [False]), ("2", [True]), ("2", [True]), ("2", [False]), ("3", [True]))
    after = made(("2", [True]), ("2", [True]), ("2", [True]), ("2", [False]), ("3", [False]))
    _, _, average, everything = compare(before, after)
    assert (average["before"], average["after"], average["difference"]) == (0.75, 0.375, -0.375)
    assert average["problems"] == 5 and everything["difference"] == 0.0
    # 5 problems of one subset up, the one of the other down: 5/5 - 1 = 0 in the average, which is nothing;
    # of all problems 5 of 6 go up, or by chance as unevenly in 2 * (C(6, 0) + C(6, 1)) of 2^6 = 14 / 64
    up, down = [("2", [False])] * 5, [("3", [True])]
    rows = compare(made(*up, *down), made(*[("2", [True])] * 5, ("3", [False])))
    assert [row["p_value"] for row in rows[-2:]] == [1.0, pytest.approx(14 / 64)]


def test_settings_that_differ_are_named() -> None:
    one, other = made(("2", [True])), made(("2", [True]))
    assert differing_settings(one, other) == []
    one.settings.update(top_p=0.95, seed=1, temperature=1.0)
    other.settings.update(top_p=1.0, seed=2)  # another seed is no other way, and what one does not know is left out
    assert differing_settings(one, other) == ["top_p: 0.95 and 1.0"]


def test_a_problem_is_known_by_its_prompt() -> None:
    assert problem_id({"prompt": user("a"), "x": 1}) == problem_id({"prompt": user("a"), "x": 2})
    assert problem_id({"prompt": user("a")}) != problem_id({"prompt": user("b")})


def test_knights_and_knaves(model: Any, tokenizer: Any) -> None:
    task = load_task({"name": "knights_knaves", "people": [2, 3]})
    result = evaluate(model, tokenizer, task.evaluation("test", 4), task, max_new_tokens=4)
    assert [row["difficulty"] for row in result.rows()] == ["2", "3", "average"]
    assert result.difficulty_name == "people" and result.accuracies == [0.0] * 4  # random weights know nothing
    with pytest.raises(RladError, match="no examples"):
        evaluate(model, tokenizer, [], task)
