"""RLADTrainer, whole: a tiny student learns beside a tiny teacher on a CPU, and what cannot work is refused before."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

import tiny
from rlad.errors import RladError
from rlad.objectives import GRPO, RLAD, OPDThenGRPO
from rlad.teacher.local import LocalTeacher
from rlad.trainer.arguments import RLADConfig
from rlad.trainer.trainer import RLADTrainer

METHODS: dict[str, Any] = {
    "grpo": "grpo",
    "rlad": "rlad",
    "rlad-anchor": {"name": "rlad", "alpha": 0.3, "teacher_clip_gradient": "anchor"},
    "kdrl-k2": {"name": "kdrl", "coefficient": 0.1},
    "kdrl-reward": {"name": "kdrl", "coefficient": 0.1, "form": "reward"},
    "opd": "opd",
    "opd-then-grpo": OPDThenGRPO(switch=0.5),
}
ALWAYS = ("ratio", "log_ratio_abs", "clip_low", "clip_high", "clamped", "objective", "zero_variance_groups")
SECONDS = ("rollouts", "generation", "rewards", "ours")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_two_steps_of_every_method_change_the_student_and_log_what_they_did(method: Any, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, method)
    before, teacher = tiny.weights(trainer.model), trainer.teacher
    teacher_before = None if teacher is None else tiny.weights(teacher.model)
    trainer.train()
    after = tiny.weights(trainer.model)
    assert torch.isfinite(after).all() and not torch.equal(before, after)
    if teacher is not None:
        assert torch.equal(teacher_before, tiny.weights(teacher.model))
    steps = [row for row in trainer.state.log_history if "reward" in row]
    assert len(steps) == 2
    for done, row in enumerate(steps):
        expected = {f"rlad/{name}" for name in ALWAYS} | {f"rlad/seconds/{name}" for name in SECONDS}
        if trainer.method.at(done / 2).needs_teacher:
            expected |= {"rlad/student_minus_teacher", "rlad/broken_teacher", "rlad/seconds/teacher"}
        if trainer.args.method.get("form") == "k2":
            expected |= {"rlad/penalty"}
        assert {name for name in row if name.startswith("rlad/")} == expected
        assert not [name for name in row if name.startswith("clip_ratio/")]
        assert math.isfinite(row["loss"])


@pytest.mark.parametrize("method", ["rlad", "kdrl-k2"])
def test_what_is_logged_is_of_all_tokens_alike(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four micro-batches an update, of different numbers of tokens: each token weighs the same in the means."""
    seen: list[tuple[Any, Any]] = []
    log = RLADTrainer._log_terms
    monkeypatch.setattr(RLADTrainer, "_log_terms", lambda self, *terms: (seen.append(terms), log(self, *terms))[1])
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 1}
    trainer = tiny.trainer(tmp_path, METHODS[method], max_completion_length=12, **sizes)
    trainer.train()
    assert len({int(signals.mask.sum()) for signals, _ in seen}) > 1
    (row,) = [row for row in trainer.state.log_history if "loss" in row]

    def mean(of: Any) -> float:
        return float(torch.cat([of(signals, terms)[signals.mask].float() for signals, terms in seen]).mean())

    expected = {
        "ratio": mean(lambda signals, terms: terms.log_ratio.exp()),
        "objective": mean(lambda signals, terms: terms.objective.detach()),
        "clip_high": mean(lambda signals, terms: terms.clipped_high),
        "clip_low": mean(lambda signals, terms: terms.clipped_low),
        "clamped": mean(lambda signals, terms: terms.clamped),
        "student_minus_teacher": mean(lambda signals, terms: signals.logps.detach() - signals.teacher_logps),
    }
    if method == "kdrl-k2":  # beta 0.5 (log S - log T)^2
        gap = mean(lambda signals, terms: (signals.logps.detach() - signals.teacher_logps) ** 2)
        expected["penalty"] = 0.1 * 0.5 * gap
        assert row["rlad/penalty"] > 0
    for name, value in expected.items():
        assert row[f"rlad/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    ("changed", "may"),
    [
        ({}, True),
        ({"trim_padding": False}, False),
        ({"loss_type": "bnpo"}, False),
        ({"top_entropy_quantile": 0.5}, False),
        ({"entropy_coef": 0.1}, False),
        ({"use_adaptive_entropy": True}, False),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, False),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 2}, True),
    ],
)
def test_rows_are_moved_only_where_the_loss_does_not_see_it(changed: dict[str, Any], may: bool, tmp_path: Path) -> None:
    sizes = {"per_device_train_batch_size": tiny.GROUP}
    assert tiny.trainer(tmp_path, "grpo", **(sizes | changed))._may_balance() is may


def test_a_routers_balance_is_of_a_whole_micro_batch(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, "grpo")
    trainer.aux_loss_enabled = True
    assert trainer._may_balance() is False


def test_a_teacher_is_asked_wherever_the_rollouts_will_need_it(tmp_path: Path) -> None:
    """Four micro-batches an update and three a generation: the first generation is used in the first two updates."""

    @dataclass(frozen=True, kw_only=True)
    class Later(GRPO):
        def at(self, progress: float) -> Any:
            return GRPO() if progress < 0.25 else RLAD()

    sizes = {"per_device_train_batch_size": tiny.GROUP, "gradient_accumulation_steps": 4, "steps_per_generation": 3}
    trainer = tiny.trainer(tmp_path, "rlad", max_steps=6, **sizes)
    trainer.state.max_steps = 6
    for method, step, asked in ((Later(), 0, False), (Later(), 1, True), (RLAD(), 0, True), (GRPO(), 0, False)):
        trainer.method, trainer.state.global_step = method, step
        assert trainer._teacher_is_asked() is asked, (method, step)  # updates 0 and 1, or 1 and 2, of 6


def test_the_first_ratio_is_what_the_method_says(tmp_path: Path) -> None:
    """On the student's own fresh tokens S = old: GRPO's ratio is 1; RLAD's is (S/T)^(1 - alpha), held to e^+-0.5."""
    rows = {}
    for name in ("grpo", "rlad"):
        trainer = tiny.trainer(tmp_path / name, name, max_steps=1)
        trainer.train()
        rows[name] = trainer.state.log_history[0]
    assert rows["grpo"]["rlad/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert rows["grpo"]["rlad/clip_low"] == rows["grpo"]["rlad/clip_high"] == rows["grpo"]["rlad/clamped"] == 0
    assert 0.1 < rows["rlad"]["rlad/log_ratio_abs"] <= 0.5
    assert rows["rlad"]["rlad/clamped"] > 0.1 and rows["rlad"]["rlad/clip_high"] > 0
    assert rows["rlad"]["rlad/student_minus_teacher"] > 0.1  # the student's own tokens are likelier to itself


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_the_teacher_is_scored_at_the_students_temperature(temperature: float, tmp_path: Path) -> None:
    """A teacher with the student's weights agrees with it to rounding, whatever the rollouts were sampled at."""
    trainer = tiny.trainer(tmp_path, teacher=tiny.model(1), temperature=temperature, max_steps=1)
    trainer.train()
    assert trainer.teacher.temperature == temperature
    assert trainer.state.log_history[0]["rlad/student_minus_teacher"] == pytest.approx(0.0, abs=1e-5)
    assert trainer.state.log_history[0]["entropy"] > 0.5  # at which a forgotten division would show


def test_opd_moves_the_student_towards_the_teacher_and_grpo_of_no_reward_does_not_move_it(tmp_path: Path) -> None:
    def no_reward(completions: list[Any], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    longer = {"max_steps": 40, "per_device_train_batch_size": 32, "lr_scheduler_type": "constant"}
    trainer = tiny.trainer(tmp_path, "opd", reward_funcs=no_reward, **longer)
    trainer.train()
    gaps = [row["rlad/student_minus_teacher"] for row in trainer.state.log_history if "reward" in row]
    assert sum(gaps[-5:]) < 0.7 * sum(gaps[:5])
    assert trainer.state.log_history[0]["rlad/zero_variance_groups"] == 1
    trainer = tiny.trainer(tmp_path, "rlad", reward_funcs=no_reward)
    before = tiny.weights(trainer.model)
    trainer.train()
    assert torch.equal(before, tiny.weights(trainer.model))  # exact zeros, where rounding would have moved it


# --- the teacher


class Stub:
    """A teacher that says -1 of every token and breaks those that `broken` picks, counted over the run."""

    def __init__(self, broken: Any, value: float = float("nan")) -> None:
        self.broken, self.value, self.seen, self.count = broken, value, 0, 0

    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Tensor]:
        rows = []
        for response in responses:
            row = torch.full((len(response),), -1.0)
            for t in range(len(response)):
                if self.broken(self.seen):
                    row[t] = self.value
                    self.count += 1
                self.seen += 1
            rows.append(row)
        return rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.5])
@pytest.mark.parametrize("method", ["rlad", "opd"])
def test_a_few_broken_teacher_tokens_are_counted_and_do_no_harm(method: str, value: float, tmp_path: Path) -> None:
    stub = Stub(lambda position: position == 3, value)
    trainer = tiny.trainer(tmp_path, method, stub, max_broken_teacher=0.05)
    trainer.train()
    assert torch.isfinite(tiny.weights(trainer.model)).all()
    assert (trainer._broken_teacher, trainer._scored_tokens) == (stub.count, stub.seen) and stub.count == 1
    first, second = (row["rlad/broken_teacher"] for row in trainer.state.log_history if "reward" in row)
    assert 0 < first < 0.05 and second == 0


def test_below_one_percent_of_broken_tokens_is_the_default_limit(tmp_path: Path) -> None:
    few = tiny.trainer(tmp_path, "rlad", Stub(lambda position: position == 0), per_device_train_batch_size=32)
    few.train()
    assert 0 < few._broken_teacher < 0.01 * few._scored_tokens
    many = tiny.trainer(tmp_path, "rlad", Stub(lambda position: position % 20 == 0))
    before = tiny.weights(many.model)
    with pytest.raises(RladError, match=r"teacher log-probs so far are NaN.*more than 1\.0% \(max_broken_teacher\)"):
        many.train()
    assert torch.equal(before, tiny.weights(many.model))


def test_a_teacher_that_returns_another_number_of_tokens_is_refused(tmp_path: Path) -> None:
    class Short(Stub):
        def score(self, prompts: Any, responses: Any) -> list[Tensor]:
            return [row[1:] for row in super().score(prompts, responses)]

    with pytest.raises(RladError, match=r"the teacher returned \(\d,\) log-probs for \d tokens of sequence 0"):
        tiny.trainer(tmp_path, "rlad", Short(lambda _: False)).train()


def test_a_teacher_is_asked_for_the_very_tokens_that_the_student_wrote(tmp_path: Path) -> None:
    asked = []

    class Spy(Stub):
        def score(self, prompts: Any, responses: Any) -> list[Tensor]:
            asked.extend(zip(prompts, responses, strict=True))
            return super().score(prompts, responses)

    trainer = tiny.trainer(tmp_path, "rlad", Spy(lambda _: False), max_steps=1)
    trainer.train()
    assert len(asked) == 2 * tiny.GROUP
    words = tiny.tokenizer()
    known = [words.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
             for text in tiny.PROMPTS]  # fmt: skip
    for i, (prompt, response) in enumerate(asked):
        assert words.decode(prompt) in known  # no padding, no token more
        assert prompt == asked[i - i % tiny.GROUP][0]
        ends = [t for t, token in enumerate(response) if token == words.eos_token_id]
        assert ends == [len(response) - 1] or (not ends and len(response) == tiny.RESPONSE)  # the end is scored too


@pytest.mark.parametrize("method", ["rlad", "kdrl", "opd", "opd-then-grpo"])
def test_no_teacher_is_refused_before_training(method: str, tmp_path: Path) -> None:
    with pytest.raises(RladError, match=f"method {method} needs a teacher"):
        RLADTrainer(
            tiny.model(1), tiny.reward, tiny.arguments(tmp_path, method), dataset(), processing_class=tiny.tokenizer()
        )


def dataset() -> Dataset:
    return Dataset.from_dict({"prompt": list(tiny.PROMPTS) * 4})


def made(tmp_path: Path, teacher: Any, words: Any = None) -> RLADTrainer:
    return RLADTrainer(
        tiny.model(1), tiny.reward, tiny.arguments(tmp_path), dataset(), processing_class=tiny.tokenizer(),
        teacher_model=teacher, teacher_processing_class=words,
    )  # fmt: skip


def test_a_teacher_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    other = tiny.tokenizer(("zebra quagga okapi giraffe",) * 4)
    with pytest.raises(RladError, match="do not share a tokenizer"):
        made(tmp_path, tiny.model(2), other)
    with pytest.raises(RladError, match="the teacher's tokenizer is unknown"):
        made(tmp_path, tiny.model(2))
    with pytest.raises(RladError, match="must be a name, a causal LM or have a score method, not int"):
        made(tmp_path, 3)


def test_a_teacher_by_path_brings_its_own_tokenizer(tmp_path: Path) -> None:
    folder = tiny.save(2, tmp_path / "teacher")
    trainer = made(tmp_path / "run", folder)
    assert torch.equal(tiny.weights(trainer.teacher.model), tiny.weights(tiny.model(2)))  # type: ignore[union-attr]
    tiny.tokenizer(("zebra quagga okapi giraffe",) * 4).save_pretrained(folder)
    with pytest.raises(RladError, match="do not share a tokenizer"):
        made(tmp_path / "run", folder)
    with pytest.raises(RladError, match="cannot be loaded"):
        made(tmp_path / "run", str(tmp_path / "nothing"), tiny.tokenizer())


# --- the configuration


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": "cispo"}, "loss_type: cispo is refused"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level: sequence is refused"),
        ({"scale_rewards": "batch"}, "scale_rewards: batch is refused"),
        ({"repetition_penalty": 1.1}, "repetition_penalty: 1.1 is refused"),
        ({"delta": 2.0}, "delta: 2.0 is refused"),
        ({"off_policy_mask_threshold": 0.1}, "off_policy_mask_threshold: 0.1 is refused"),
        ({"beta": 0.1, "use_bias_correction_kl": True}, "needs use_bias_correction_kl: false"),
        ({"num_iterations": 2, "save_strategy": "steps", "save_steps": 3}, "save_steps: 3 must be a multiple of 2"),
        ({"advantage_std": "batch"}, "advantage_std: must be one of .population., .sample."),
        ({"method": "sft"}, "methods: grpo, rlad"),
        ({"method": {"name": "rlad", "alpha": 1.5}}, "method rlad: alpha is 1.5"),
        ({"method": {"name": "kdrl", "form": "k1"}}, "method kdrl: kdrl form 'k1'"),
        ({"method": {"name": "grpo", "alpha": 0.5}}, "method.alpha: .*allowed for grpo"),
    ],
)
def test_options_that_do_not_fit_the_objective_are_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RladError, match=words):
        tiny.arguments(tmp_path, **options)


def test_a_grpo_config_is_not_enough(tmp_path: Path) -> None:
    from trl import GRPOConfig  # type: ignore[attr-defined]

    with pytest.raises(RladError, match="args must be an RLADConfig, not GRPOConfig"):
        RLADTrainer(tiny.model(1), tiny.reward, GRPOConfig(str(tmp_path), use_cpu=True, bf16=False), dataset())


def test_a_teacher_of_ones_own_at_another_temperature_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RladError, match=r"the teacher scores at temperature 1 and the student samples at 0\.5"):
        tiny.trainer(tmp_path, "rlad", LocalTeacher(tiny.model(2)), temperature=0.5)
    tiny.trainer(tmp_path, "rlad", LocalTeacher(tiny.model(2), temperature=0.5), temperature=0.5)


def test_method_and_trl_agree_on_the_clip_range(tmp_path: Path) -> None:
    config = tiny.arguments(tmp_path, RLAD(alpha=0.3, clip_high=0.4))
    assert (config.epsilon, config.epsilon_high) == (0.2, 0.4)
    assert config.method == {"name": "rlad", "clip_low": 0.2, "clip_high": 0.4, "alpha": 0.3, "teacher_clip": 1.0,
                             "teacher_clip_gradient": "literal"}  # fmt: skip
    config = tiny.arguments(tmp_path, "grpo", epsilon=0.1, epsilon_high=None)
    assert (config.method["clip_low"], config.method["clip_high"]) == (0.1, 0.1)
    assert RLADConfig(str(tmp_path), use_cpu=True, bf16=False).loss_type == "grpo"


@pytest.mark.parametrize(
    ("method", "clip", "words"),
    [
        (RLAD(alpha=0.5), {"epsilon": 0.1}, "epsilon=0.1 and the method's clip_low=0.2 contradict each other"),
        ({"name": "rlad", "clip_high": 0.4}, {"epsilon_high": 0.3}, "epsilon_high=0.3 and the method's clip_high=0.4"),
        (RLAD(), {"epsilon_high": None}, "epsilon_high=0.2 and the method's clip_high=0.28"),
    ],
)
def test_two_clip_ranges_are_refused(method: Any, clip: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RladError, match=re.escape(words)):
        tiny.arguments(tmp_path, method, **clip)


def test_a_config_can_be_made_again_from_its_fields(tmp_path: Path) -> None:
    first = tiny.arguments(tmp_path, RLAD(alpha=0.3, clip_low=0.1, clip_high=0.4))
    again = tiny.arguments(tmp_path, first.method, epsilon=first.epsilon, epsilon_high=first.epsilon_high)
    assert again.method == first.method and (again.epsilon, again.epsilon_high) == (0.1, 0.4)


# --- advantages


@pytest.mark.parametrize("options", [{}, {"advantage_std": "sample"}, {"scale_rewards": "none"}], ids=str)
def test_advantages_are_those_of_equation_1_also_over_several_updates_of_a_batch(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """By hand from the rewards that were given. Two updates share a batch, and its rollouts are shuffled between."""
    given: list[float] = []

    def reward(completions: list[Any], **_: Any) -> list[float]:
        given[:] = [float(i % tiny.GROUP == 0) if i < tiny.GROUP else 1.0 for i in range(len(completions))]
        return given

    trainer = tiny.trainer(tmp_path, "rlad", reward_funcs=reward, steps_per_generation=2, **options)
    seen: list[float] = []
    inner = trainer._put_objective

    def spy(batch: dict[str, Any], logps: Tensor) -> Tensor:
        assert batch["teacher_logps"].shape == batch["completion_mask"].shape
        seen.extend(batch["advantages"].tolist())
        result: Tensor = inner(batch, logps)
        return result

    trainer._put_objective = spy
    trainer.train()
    # Rewards 1, 0, 0, 0: mean 1/4, squares (9 + 1 + 1 + 1)/16 = 3/4, over 4: 3/16, over 3: 1/4.
    divisor = {"sample": 0.25**0.5}.get(options.get("advantage_std", ""), (3 / 16) ** 0.5)
    scale = 1.0 if options.get("scale_rewards") == "none" else divisor
    expected = [0.75 / scale, *[-0.25 / scale] * 3, *[0.0] * (len(seen) - 4)]
    assert len(seen) == 4 * tiny.GROUP
    assert sorted(seen) == pytest.approx(sorted(expected), abs=1e-6)
    assert seen.count(0.0) == len(seen) - 4  # exactly


def test_a_rollout_without_any_reward_is_refused_and_weights_of_rewards_count(tmp_path: Path) -> None:
    def none(completions: list[Any], **_: Any) -> list[float | None]:
        return [None] * len(completions)

    with pytest.raises(RladError, match="None from every reward function"):
        tiny.trainer(tmp_path, "grpo", reward_funcs=none).train()
    trainer = tiny.trainer(tmp_path, "grpo", reward_funcs=[tiny.reward, none], reward_weights=[2.0, 1.0], max_steps=1)
    trainer.train()
    assert trainer._rewards.max() <= 2 and trainer._rewards.unique().numel() > 1
    single = tiny.trainer(tmp_path, "grpo", max_steps=1)
    single.train()
    assert torch.allclose(trainer._rewards, 2 * single._rewards)


# --- padding that is not computed


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "num_iterations": 2},
        # Six micro-batches of two generations make three updates, so an update is not a run of one generation's.
        {"gradient_accumulation_steps": 2, "steps_per_generation": 3, "max_steps": 3},
        {"gradient_accumulation_steps": 4, "steps_per_generation": 2},
    ],
)
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo"])
def test_training_without_the_padding_ends_at_the_same_weights(
    loss_type: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """SGD, so that a difference in a gradient is one in the weights; a row in another update would be one of 1e-3."""
    ends = []
    for trim in (False, True):
        trainer = tiny.trainer(
            tmp_path / str(trim), per_device_train_batch_size=tiny.GROUP, trim_padding=trim, loss_type=loss_type,
            optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", **options,
        )  # fmt: skip
        start = tiny.weights(trainer.model)
        trainer.train()
        ends.append(tiny.weights(trainer.model))
    moved = (ends[0] - start).norm()
    assert moved > 1e-2 and (ends[1] - ends[0]).norm() < 1e-4 * moved
