"""What RLADTrainer's loss is: minus rlad.objectives' objective, under TRL's denominators, in value and gradient.

The reference is a forward of each sequence by itself, without padding, token_signals, objective_terms and a
reduction. Batches are ragged, the student is a real (tiny, random) Qwen3.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

import letters_task
import tiny
from rlad.objectives import (
    GRPO,
    KDRL,
    OPD,
    RLAD,
    Method,
    fixed_length,
    group_advantages,
    objective_terms,
    sequence_mean,
    token_mean,
    token_signals,
)
from rlad.objectives.divergences import k3

ROLLOUTS, PROMPT, RESPONSE = 8, 5, 10
LONGEST = 16  # max_completion_length, more than any response here: dr_grpo's denominator
OUTPUT = tempfile.TemporaryDirectory()
METHODS: dict[str, Method] = {
    "grpo": GRPO(),
    "rlad-literal": RLAD(),
    "rlad-anchor": RLAD(alpha=0.3, teacher_clip_gradient="anchor"),
    "kdrl-k2": KDRL(coefficient=0.1),
    "kdrl-reward": KDRL(coefficient=0.1, form="reward"),
    "opd": OPD(),
}
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")


@functools.cache
def trainer(method: str, micro_batches: int = 1) -> Any:
    made = tiny.trainer(
        OUTPUT.name, METHODS[method], max_completion_length=LONGEST,
        gradient_accumulation_steps=micro_batches, per_device_train_batch_size=ROLLOUTS // micro_batches,
    )  # fmt: skip
    made.model.train()
    made.current_gradient_accumulation_steps = micro_batches  # a training step sets it
    return made


@functools.cache
def batch(first_iteration: bool) -> dict[str, Tensor]:
    """A generation batch as TRL builds it, with a teacher's log-probs as RLADTrainer adds them.

    Later than the first iteration the student has moved from old by about 0.3 nats a token.
    """
    generator = torch.Generator().manual_seed(1)
    vocabulary = len(tiny.tokenizer())
    prompt_mask = (torch.arange(PROMPT) >= torch.randint(0, 3, (ROLLOUTS, 1), generator=generator)).long()
    lengths = torch.tensor([RESPONSE, 2, 7, 3, 9, 4, 8, 5])[:, None]
    mask = (torch.arange(RESPONSE) < lengths).long()
    made = {
        "prompt_ids": torch.randint(3, vocabulary, (ROLLOUTS, PROMPT), generator=generator) * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": torch.randint(3, vocabulary, (ROLLOUTS, RESPONSE), generator=generator) * mask,
        "completion_mask": mask,
        "advantages": group_advantages(torch.tensor([1.0, 0, 0, 1, 0, 0, 1, 0]), 4),
        "num_items_in_batch": mask.sum(),
    }
    with torch.no_grad():
        student, teacher = direct(tiny.model(1), made), direct(tiny.model(2), made)
    # Random tokens are unlikely to both: bring the teacher to within some nats, so that the clamp is active at some.
    made["teacher_logps"] = (student + 0.3 * (teacher - student)).clamp(max=0)
    if not first_iteration:
        made["old_per_token_logps"] = student + 0.3 * torch.randn(student.shape, generator=generator)
    return made


def direct(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """(B, T) log-probs, each sequence by itself; NaN where there is no token, which nothing may read."""
    rows = []
    for i in range(len(inputs["prompt_ids"])):
        prompt = inputs["prompt_ids"][i][inputs["prompt_mask"][i].bool()].tolist()
        response = inputs["completion_ids"][i][inputs["completion_mask"][i].bool()].tolist()
        rows.append(tiny.direct_logps(model, prompt, response))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("nan"))


def reduced(objective: Tensor, mask: Tensor, loss_type: str) -> Tensor:
    if loss_type == "grpo":
        return sequence_mean(objective, mask, ROLLOUTS)
    if loss_type == "dr_grpo":
        return fixed_length(objective, mask, LONGEST, ROLLOUTS)
    return token_mean(objective, mask, mask.sum())


def reference(method: str, inputs: dict[str, Tensor], loss_type: str) -> tuple[Tensor, Tensor]:
    model = tiny.model(1)
    signals = token_signals(
        direct(model, inputs), inputs.get("old_per_token_logps"), inputs["teacher_logps"], inputs["advantages"],
        inputs["completion_mask"],
    )  # fmt: skip
    loss = -reduced(objective_terms(METHODS[method], signals).objective, signals.mask, loss_type)
    return loss.detach(), tiny.gradient(loss, model)


def trained(made: Any, inputs: dict[str, Tensor], loss_type: str) -> tuple[Tensor, Tensor]:
    made.loss_type = loss_type
    loss = made._compute_loss(made.model, inputs)
    return loss.detach(), tiny.gradient(loss, made.model)


def assert_close(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    """Equal up to float32's rounding: the loss to 1e-5, the gradient to 1e-4 of its length."""
    assert torch.isfinite(one[1]).all() and other[1].norm() > 1e-3
    assert (one[0] - other[0]).abs() < 1e-5
    assert (one[1] - other[1]).norm() < 1e-4 * other[1].norm()


@pytest.mark.parametrize("first_iteration", [True, False], ids=["first iteration", "later iteration"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("method", METHODS)
def test_the_trainers_loss_is_minus_the_objective(method: str, loss_type: str, first_iteration: bool) -> None:
    inputs = batch(first_iteration)
    assert_close(trained(trainer(method), inputs, loss_type), reference(method, inputs, loss_type))


def test_the_batch_tells_the_methods_the_iterations_and_the_denominators_apart() -> None:
    """Were they the same here, the test above would show nothing."""
    gradients = {}
    for first in (True, False):
        for method in METHODS:
            gradients[method, first, "grpo"] = reference(method, batch(first), "grpo")[1]
    for loss_type in ("bnpo", "dr_grpo"):
        gradients["rlad-literal", False, loss_type] = reference("rlad-literal", batch(False), loss_type)[1]
    names = list(gradients)
    # On the first iteration, where S = old, KDRL's two forms have the same gradient unless the clip is active.
    same = {("kdrl-k2", True), ("kdrl-reward", True)}
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            close = (gradients[one] - gradients[other]).norm() < 0.01 * gradients[other].norm()
            assert close == ({one[:2], other[:2]} == same), (one, other)
    signals = token_signals(
        direct(tiny.model(1), batch(False)), batch(False)["old_per_token_logps"], batch(False)["teacher_logps"],
        batch(False)["advantages"], batch(False)["completion_mask"],
    )  # fmt: skip
    terms = objective_terms(RLAD(), signals)
    assert terms.clamped.any() and not terms.clamped[signals.mask].all()
    assert terms.clipped_high.any() and terms.clipped_low.any()


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_add_up_to_the_batch(loss_type: str) -> None:
    """bnpo is left out: its denominator is the micro-batch's, which is what it means."""
    made, whole = trainer("rlad-literal", micro_batches=2), batch(False)
    half = ROLLOUTS // 2
    parts = [
        trained(made, {k: v[part] if v.dim() else v for k, v in whole.items()}, loss_type)
        for part in (slice(0, half), slice(half, None))
    ]
    total = parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
    assert_close(total, reference("rlad-literal", whole, loss_type))


def test_the_buffered_batch_is_left_as_it_was() -> None:
    """TRL keeps it for the next iteration, which must find the old log-probs and the advantages there."""
    inputs = batch(False)
    before = {key: value.clone() for key, value in inputs.items()}
    trained(trainer("rlad-literal"), inputs, "grpo")
    assert inputs.keys() == before.keys()
    assert all(torch.equal(inputs[key].nan_to_num(), before[key].nan_to_num()) for key in before)


@pytest.mark.parametrize("shape", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_vllms_correction_weighs_the_objective_and_tools_are_in_neither(loss_type: str, shape: str) -> None:
    """Minus the reduction of J w, with the tokens that a tool wrote outside of sum and denominator."""
    generator = torch.Generator().manual_seed(3)
    inputs = batch(False)
    tool = (torch.rand(inputs["completion_mask"].shape, generator=generator) > 0.3).long()
    tool[-1] = 0  # as mask_truncated_completions leaves a response: grpo and dr_grpo still count it as a rollout
    weight = 0.5 + torch.rand(ROLLOUTS, RESPONSE if shape == "token" else 1, generator=generator)
    made, method = trainer("rlad-literal"), METHODS["rlad-literal"]
    made.use_vllm = made.vllm_importance_sampling_correction = True
    try:
        given = {**inputs, "tool_mask": tool, "importance_sampling_ratio": weight}
        found = trained(made, given, loss_type)
    finally:
        made.use_vllm = False
    model, mask = tiny.model(1), inputs["completion_mask"] * tool
    old, teacher, advantages = (inputs[name] for name in ("old_per_token_logps", "teacher_logps", "advantages"))
    signals = token_signals(direct(model, inputs), old, teacher, advantages, mask)
    weighed = objective_terms(method, signals).objective * weight
    # dapo divides by the tokens that TRL counted when it generated, which is `num_items_in_batch`.
    loss = -weighed.sum() / inputs["num_items_in_batch"] if loss_type == "dapo" else -reduced(weighed, mask, loss_type)
    assert_close(found, (loss.detach(), tiny.gradient(loss, model)))


def test_beta_adds_k3_whose_gradient_is_that_of_the_forward_kl() -> None:
    """TRL's estimator beside the objective, without a ratio in front; test_objectives_divergences has its direction."""
    inputs, made, model = batch(False), trainer("rlad-literal"), tiny.model(1)
    logps, mask = direct(model, inputs).nan_to_num(), inputs["completion_mask"].bool()
    generator = torch.Generator().manual_seed(4)
    reference = (logps.detach() + 0.5 * torch.randn(logps.shape, generator=generator)) * mask
    plain = trained(made, inputs, "grpo")
    made.beta = 0.2
    try:
        found = trained(made, {**inputs, "ref_per_token_logps": reference}, "grpo")
    finally:
        made.beta = 0.0
    penalty = 0.2 * sequence_mean(k3(logps, reference), mask, ROLLOUTS)
    added = penalty.detach(), tiny.gradient(penalty, model)
    assert_close((found[0] - plain[0], found[1] - plain[1]), added)


@functools.cache
def stock() -> Any:
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]

    arguments = GRPOConfig(
        output_dir=OUTPUT.name, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        per_device_train_batch_size=ROLLOUTS, num_generations=4, max_completion_length=LONGEST,
        loss_type="grpo", epsilon=0.2, epsilon_high=0.28,
    )  # fmt: skip
    made = GRPOTrainer(
        tiny.model(1), tiny.reward, arguments, Dataset.from_dict({"prompt": list(tiny.PROMPTS)}),
        processing_class=tiny.tokenizer(),
    )  # fmt: skip
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    return made


@pytest.mark.parametrize("first_iteration", [True, False], ids=["first iteration", "later iteration"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_at_alpha_one_a_broken_teacher_leaves_trls_own_grpo(loss_type: str, first_iteration: bool) -> None:
    inputs = batch(first_iteration)
    broken = torch.full_like(inputs["teacher_logps"], float("nan"))
    broken[0], broken[1], broken[2] = float("inf"), -float("inf"), 3.0
    plain = {key: value for key, value in inputs.items() if key != "teacher_logps"}
    if "old_per_token_logps" in plain:  # stock TRL multiplies what is masked by 0
        plain["old_per_token_logps"] = plain["old_per_token_logps"].nan_to_num()
    expected = trained(stock(), plain, loss_type)
    made = trainer("rlad-literal")
    made.method, before = RLAD(alpha=1.0), made.method
    try:
        for teacher in (broken, inputs["teacher_logps"]):
            assert_close(trained(made, {**inputs, "teacher_logps": teacher}, loss_type), expected)
    finally:
        made.method = before
    # At any alpha a token whose teacher is broken is GRPO's.
    assert_close(trained(made, {**inputs, "teacher_logps": broken}, loss_type), expected)


# --- recipes/loop.py


@functools.cache
def loop() -> ModuleType:
    path = Path(__file__).parents[2] / "recipes" / "loop.py"
    spec = importlib.util.spec_from_file_location("loop", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loop"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("method", ["rlad-literal", "kdrl-k2", "grpo"])
@pytest.mark.parametrize("first_iteration", [True, False], ids=["first iteration", "later iteration"])
def test_the_plain_loop_has_the_trainers_loss(first_iteration: bool, method: str) -> None:
    inputs, model = batch(first_iteration), tiny.model(1)
    rollouts = loop().Rollouts(
        torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        inputs["completion_mask"].bool(),
    )
    logps = loop().response_logps(model, rollouts)
    old = inputs.get("old_per_token_logps", logps.detach())
    loss, _ = loop().loss_of(METHODS[method], logps, old, inputs["teacher_logps"], inputs["advantages"], rollouts.mask)
    assert_close((loss.detach(), tiny.gradient(loss, model)), trained(trainer(method), inputs, "grpo"))


def test_the_plain_loop_masks_after_the_end_and_scores_as_the_teacher_of_the_trainer_does() -> None:
    from rlad.teacher.local import LocalTeacher

    words, teacher = tiny.tokenizer(), tiny.model(2)
    problems = [{"prompt": [{"role": "user", "content": text}]} for text in tiny.PROMPTS]
    torch.manual_seed(0)
    rollouts = loop().generate(tiny.model(1), words, problems, 8, 40)
    width = rollouts.mask.shape[1]
    responses = [ids[keep].tolist() for ids, keep in zip(rollouts.ids[:, -width:], rollouts.mask, strict=True)]
    prompts = [ids[keep.bool()].tolist() for ids, keep in
               zip(rollouts.ids[:, :-width], rollouts.attention[:, :-width], strict=True)]  # fmt: skip
    lengths = {len(each) for each in responses}
    assert len(lengths) > 1
    for response in responses:
        assert words.eos_token_id not in response[:-1]
        assert response[-1] == words.eos_token_id or len(response) == width
    with torch.no_grad():
        logps = loop().response_logps(teacher, rollouts)
    for row, keep, scored in zip(logps, rollouts.mask, LocalTeacher(teacher).score(prompts, responses), strict=True):
        assert torch.allclose(row[keep], scored, atol=1e-4)


def test_the_plain_loop_samples_what_it_scores(tmp_path: Path) -> None:
    """A model's own generation config may hold what changes the distribution."""
    model = tiny.model(1)
    model.generation_config.repetition_penalty = 5.0
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    problems = [{"prompt": [{"role": "user", "content": text}]} for text in tiny.PROMPTS]
    drawn = []
    for name in (str(tmp_path / "model"), tiny.save(1, tmp_path / "plain")):
        torch.manual_seed(0)
        drawn.append(loop().generate(*loop().load(name), problems, 4, 20).ids)
    assert torch.equal(*drawn)


def test_the_plain_loop_trains_as_eq_1_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches, two updates on each, against sequences one by one and AdamW written out here."""
    module, score = loop(), letters_task.Letters().score
    student, teacher = tiny.save(1, tmp_path / "student"), tiny.save(2, tmp_path / "teacher")
    made: list[tuple[Any, Any]] = []

    def keep(model: Any, words: Any, problems: Any, *rest: Any) -> Any:
        made.append((generate(model, words, problems, *rest), problems))
        return made[-1][0]

    generate = module.generate
    monkeypatch.setattr(module, "generate", keep)
    monkeypatch.setattr(module.KnightsKnaves, "score", lambda self, text, example: score(text, example))
    sizes = ["--prompts", "2", "--group", "3", "--max-new-tokens", "8", "--people", "2", "--iterations", "2"]
    options = ["--steps", "2", "--lr", "1e-2", "--alpha", "0.3", "--output", str(tmp_path / "trained")]
    module.main(["--student", student, "--teacher", teacher, *sizes, *options])
    assert len(made) == 2

    model, words = module.load(student)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for rollouts, _ in made:
        width = rollouts.mask.shape[1]
        rows = [
            (prompt[real.bool()].tolist(), response[keep].tolist())
            for prompt, real, response, keep in zip(
                rollouts.ids[:, :-width], rollouts.attention[:, :-width], rollouts.ids[:, -width:], rollouts.mask,
                strict=True,
            )
        ]  # fmt: skip
        texts = words.batch_decode(rollouts.ids[:, -width:], skip_special_tokens=True)
        rewards = torch.tensor([score(text, {}).value for text in texts])
        advantages = torch.cat([(group - group.mean()) / group.std(correction=0) for group in rewards.split(3)])

        def logps(of: Any, rows: Any = rows) -> list[Tensor]:
            return [tiny.direct_logps(of, *row) for row in rows]

        with torch.no_grad():
            old, taught = logps(model), logps(module.load(teacher)[0])
        for _ in range(2):
            total = torch.zeros(())
            for s, before, t, advantage in zip(logps(model), old, taught, advantages, strict=True):
                ratio = (0.3 * (s - before) + 0.7 * (s - t).clamp(-1, 1)).exp()
                total = total + torch.min(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage).mean()
            optimizer.zero_grad()
            (-total / len(rows)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    trained_weights = tiny.weights(module.load(str(tmp_path / "trained"))[0])
    moved = (tiny.weights(model) - tiny.weights(module.load(student)[0])).norm()
    assert moved > 0.1 and (trained_weights - tiny.weights(model)).norm() < 0.02 * moved


def test_the_plain_loop_runs_and_is_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = tiny.save(1, tmp_path / "student"), tiny.save(2, tmp_path / "teacher")
    sizes = ["--prompts", "2", "--group", "2", "--max-new-tokens", "8", "--people", "2", "--iterations", "2"]
    output = tmp_path / "trained"
    loop().main(["--student", student, "--teacher", teacher, "--steps", "2", *sizes, "--output", str(output)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "1", "2"]
    assert (output / "model.safetensors").is_file()
    source = (Path(__file__).parents[2] / "recipes" / "loop.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 250
    assert "trl" not in source.replace("TRL", "") and "rlad.trainer" not in source
