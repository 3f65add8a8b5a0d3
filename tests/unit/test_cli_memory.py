"""What `rlad check` says of memory and of the pair, from files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import decoders

import tiny
from rlad.cli.describe import description
from rlad.cli.memory import _human, memory
from rlad.models.tokenizer import train_tokenizer
from rlad.trainer.config import Recipe
from rlad.trainer.preflight import found_problems


def recipe(student: str, teacher: Any, **options: Any) -> Recipe:
    trainer = {"use_cpu": True, "bf16": False, **options}
    data = {"model": student, "teacher": teacher, "task": "knights_knaves", "method": "rlad", "trainer": trainer}
    return Recipe.from_mapping(data)


def test_memory_is_counted_from_the_configurations(tmp_path: Path) -> None:
    """A float32 student of N weights: 4 N bytes, as much again of gradients, twice that of AdamW. Cache of a token:
    2 (keys and values) x 2 layers x 1 head x 16 x 4 bytes = 256 bytes; 8 rollouts of 100 tokens: 204.8 kB."""
    student, teacher = tiny.save(1, tmp_path / "student"), tiny.save(2, tmp_path / "teacher")
    parameters = sum(each.numel() for each in tiny.model(1).parameters())
    trainer = {"max_completion_length": 100, "per_device_train_batch_size": 8, "num_generations": 4}
    found = memory(recipe(student, {"path": teacher, "dtype": "bfloat16"}, **trainer))
    weights, half = _human(4 * parameters), _human(2 * parameters)
    assert found[0].startswith(
        f"student {weights} of weights, {weights} of gradients, {_human(8 * parameters)} of AdamW"
    )
    assert found[1] == "generation 205 kB of keys and values for 8 responses of 100 tokens, prompts besides"
    assert found[2].startswith(f"teacher {half} of weights")


def test_evaluations_have_a_cache_too(tmp_path: Path) -> None:
    """256 bytes a token, as above: 20 puzzles of 2 samples at once, 100 tokens, are 1.024 MB; 8 of 50 tokens 102.4 kB.
    With vLLM both are in its share of the GPU."""
    student = tiny.save(1, tmp_path / "student")
    trainer = {
        "max_completion_length": 100, "per_device_train_batch_size": 8, "num_generations": 4, "use_cpu": True,
        "bf16": False, "validate": {"every": 5, "puzzles": 30, "batch_size": 8, "max_new_tokens": 50},
    }  # fmt: skip
    data = {"model": student, "task": "knights_knaves", "method": "grpo", "trainer": trainer}
    data["evaluate"] = {"puzzles": 20, "samples": 2}
    found = memory(Recipe.from_mapping(data))
    assert found[2:4] == [
        "evaluation 1.02 MB of keys and values for 40 responses of 100 tokens, prompts besides",
        "validation 102 kB of keys and values for 8 responses of 50 tokens, prompts besides",
    ]
    trainer |= {"use_vllm": True, "vllm_gpu_memory_utilization": 0.25}
    found = memory(Recipe.from_mapping(data))
    assert [line for line in found if "keys and values" in line] == []
    assert found[1].startswith("generation vLLM's 25% of the GPU")


def test_of_a_student_with_an_adapter_only_that_has_gradients(tmp_path: Path) -> None:
    """Rank 4 on q_proj (32 -> 32) of 2 layers: 2 x 4 x (32 + 32) = 512 weights; 2,048 bytes of gradients, twice that
    of AdamW. A teacher that is an adapter on the same base has no weights besides."""
    path = tiny.save(1, tmp_path / "student")
    lora = {"r": 4, "target_modules": ["q_proj"]}
    found = memory(recipe({"path": path, "lora": lora}, {"adapter": str(tmp_path)}))  # type: ignore[arg-type]
    total = sum(each.numel() for each in tiny.model(1).parameters()) + 512
    assert found[0].startswith(f"student {_human(4 * total)} of weights, 2.05 kB of gradients, 4.1 kB of AdamW")
    assert "teacher: an adapter on the student's weights, no others" in found


def test_a_model_that_is_elsewhere_is_not_estimated(tmp_path: Path) -> None:
    found = memory(recipe(tiny.save(1, tmp_path / "student"), "nobody/nothing"))
    assert "nobody/nothing is not on this disk: not estimated" in found


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.24e6, "2.24 MB"), (1.6e10, "16 GB"), (2e12, "2,000 GB")],
)
def test_sizes_are_written_in_three_figures(size: float, words: str) -> None:
    assert _human(size) == words


def test_check_compares_the_pair_where_both_are_here(tmp_path: Path) -> None:
    student, teacher = tiny.save(1, tmp_path / "student"), tiny.save(2, tmp_path / "teacher")
    good = recipe(student, teacher)
    assert found_problems(good) == []
    assert any("the chat templates agree" in line for line in description(good))

    other = train_tokenizer(("something else altogether " * 3,) * 4, vocab_size=270)
    other.save_pretrained(teacher)
    (problem,) = found_problems(good)
    assert "tokens have different ids or are missing in one" in problem and "alignment: spans" in problem
    spans = recipe(student, {"path": teacher, "alignment": "spans"})
    assert found_problems(spans) == []
    assert any("aligned in spans" in line for line in description(spans))
    other.backend_tokenizer.decoder = decoders.WordPiece()
    other.save_pretrained(teacher)
    (problem,) = found_problems(spans)
    assert problem.startswith("teacher.alignment: the bytes of the tokens")


def test_check_refuses_a_teacher_that_is_too_short(tmp_path: Path) -> None:
    student, teacher = tiny.save(1, tmp_path / "student"), tmp_path / "teacher"
    model = tiny.model(2)
    model.config.max_position_embeddings = 512
    model.save_pretrained(teacher)
    tiny.tokenizer().save_pretrained(teacher)
    assert found_problems(recipe(student, str(teacher), max_completion_length=511)) == []
    (problem,) = found_problems(recipe(student, str(teacher), max_completion_length=512))
    assert "the teacher has 512 positions, too few for a prompt and max_completion_length 512" in problem
