"""The same on a GPU as on a CPU. Skipped, counted, where there is none: `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tiny
from rlad.evaluation.generate import generate_responses
from rlad.models import resolve
from rlad.teacher.align import self_test
from rlad.teacher.local import LocalTeacher
from rlad.trainer.config import Recipe
from rlad.trainer.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
RESPONSES = [[9, 10, 11, 12], [13, 14], [1] * 9]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_fused_head_scores_as_the_cpu_does(temperature: float) -> None:
    """TRL's Triton kernel against log-softmax in float32; it sums bf16 products in float32."""
    cpu = LocalTeacher(tiny.model(2), temperature).score(PROMPTS, RESPONSES)
    teacher = LocalTeacher(tiny.model(2).to("cuda"), temperature)
    for ours, theirs in zip(teacher.score(PROMPTS, RESPONSES), cpu, strict=True):
        assert ours.device.type == "cpu" and torch.allclose(ours, theirs, atol=0.05)
    self_test(teacher, tiny.tokenizer(), teacher.model)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantised_teacher_is_loaded_on_the_gpu(bits: str) -> None:
    pytest.importorskip("bitsandbytes")
    options = {"quant_method": "bitsandbytes", f"load_in_{bits}": True}
    teacher = LocalTeacher.load("embedded:teacher", device="cuda", device_map="auto", quantization_config=options)
    plain = torch.cat(LocalTeacher.load("embedded:teacher").score(PROMPTS, RESPONSES))
    assert (torch.cat(teacher.score(PROMPTS, RESPONSES)) - plain).abs().max() < 3


def test_greedy_responses_are_the_cpu_s() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve("embedded:teacher")
    tokenizer = AutoTokenizer.from_pretrained(path)
    prompts = [[{"role": "user", "content": text}] for text in tiny.PROMPTS]
    found = [
        generate_responses(
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device),
            tokenizer,
            prompts,
            temperature=0,
            max_new_tokens=20,
        )
        for device in ("cpu", "cuda")
    ]
    assert [each[0].text for each in found[0]] == [each[0].text for each in found[1]]


def test_a_recipe_trains_in_bf16(tmp_path: Path) -> None:
    recipe = Recipe.resolve(
        "quickstart",
        [
            "trainer.use_cpu=false",
            "trainer.bf16=true",
            "trainer.max_steps=3",
            "trainer.gradient_checkpointing=true",
            "evaluate.puzzles=20",
            "evaluate.require_improvement=false",
            f"output={tmp_path / 'run'}",
        ],
    )
    assert train(recipe, emit=lambda line: None) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["grad_norm"] > 0 for row in rows)
    # bf16 moves a log-prob by hundredths of a nat, so the teacher's differs from the student's by about that at most
    # where a student teaches itself.
    same = Recipe.resolve(
        "quickstart",
        [
            "trainer.use_cpu=false",
            "trainer.bf16=true",
            "trainer.max_steps=1",
            "teacher=embedded:student",
            "evaluate=null",
            f"output={tmp_path / 'same'}",
        ],
    )
    assert train(same, emit=lambda line: None) == 0
    row = json.loads((tmp_path / "same" / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(row["rlad/student_minus_teacher"]) < 0.05
