"""The table of TRL's options covers the installed GRPOConfig, and agrees with what TRL's loss does."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from rlad.objectives import METHODS
from rlad.trainer.config import SAID_ELSEWHERE, grpo_fields
from rlad.trainer.options import OPTIONS, PAPER_DEFAULTS, refusals
from rlad.trainer.rules import batches, conflicts

# Fields that the oldest transformers we take does not have yet.
YOUNG = {"activation_checkpointing", "activation_checkpointing_kwargs"}


def test_every_field_of_the_installed_grpo_config_is_in_the_table_and_no_other() -> None:
    assert grpo_fields().keys() - OPTIONS.keys() == set()
    assert OPTIONS.keys() - grpo_fields().keys() - YOUNG == set()


def test_every_option_says_what_it_means() -> None:
    for name, option in OPTIONS.items():
        assert option.note.strip(), name
        assert option.status != "refused" or option.allowed is not None, name


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.status == "refused"])
def test_a_refused_option_may_stay_at_trls_default_and_at_nothing_else(name: str) -> None:
    default = grpo_fields()[name][1]
    assert refusals({name: default}) == []
    problem = refusals({name: "something else"}, "trainer.")
    assert len(problem) == 1 and problem[0].startswith(f"trainer.{name}: something else is refused: ")


def test_the_papers_defaults_are_allowed_for_every_method() -> None:
    values = {name: default for name, (_, default) in grpo_fields().items()} | PAPER_DEFAULTS
    for method in METHODS.values():
        assert conflicts(values, method(), has_teacher=True) == []


def test_every_loss_type_of_trl_is_decided() -> None:
    """A loss type that TRL adds is found here: its loss compares self.loss_type with each name."""
    from trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer._compute_loss)
    listed = re.findall(r'self\.loss_type (?:==|in) (\[[^\]]*\]|"\w+")', source)
    known = {name for each in listed for name in re.findall(r'"(\w+)"', each)}
    assert known >= {"grpo", "bnpo", "dr_grpo", "dapo"}
    assert known == {"grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo"}
    assert {name for name in known if not refusals({"loss_type": name})} == {"grpo", "bnpo", "dr_grpo", "dapo"}


@pytest.mark.parametrize("name", ["delta", "epsilon", "off_policy_mask_threshold", "use_bias_correction_kl"])
def test_what_the_table_says_of_trls_ratio_is_still_read_by_its_loss(name: str) -> None:
    """Were one of these no longer read there, its reason would be out of date."""
    from trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert re.search(rf"self\.(args\.)?{name}", source)


def configured(**values: Any) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(**{"output_dir": "unused", "use_cpu": True, "bf16": False, "report_to": "none"} | values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"gradient_accumulation_steps": 4},
        {"gradient_accumulation_steps": 2, "steps_per_generation": 6, "num_iterations": 2},
        {"generation_batch_size": 32, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 16, "num_generations": 4, "num_iterations": 3},
    ],
)
def test_the_batch_arithmetic_is_trls(values: dict[str, Any]) -> None:
    config = configured(**values)
    defaults = {name: default for name, (_, default) in grpo_fields().items()}
    plan = batches(defaults | values)
    assert plan == batches(vars(config))
    assert plan.rollouts == config.generation_batch_size
    # A generated batch is used up after steps_per_generation * num_iterations micro-batches (TRL's _prepare_inputs).
    window, accumulation = config.steps_per_generation * config.num_iterations, config.gradient_accumulation_steps
    used_up = [update for update in range(1, 100) if update * accumulation % window == 0]
    assert plan.boundary == used_up[0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_generations": 3}, "must be divisible by num_generations"),
        ({"generation_batch_size": 12}, "must be divisible by the global batch size"),
        ({"num_generations": 1}, "at least 2 generations"),
    ],
)
def test_what_trl_refuses_we_refuse_before_it(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        configured(**values)
    defaults = {name: default for name, (_, default) in grpo_fields().items()} | PAPER_DEFAULTS
    assert len(conflicts(defaults | values, METHODS["grpo"](), has_teacher=False)) == 1


def test_a_finished_configuration_passes_the_same_rules() -> None:
    """The trainer checks a GRPOConfig that exists: enumerations in the place of texts, derived sizes filled in."""
    config = configured(**PAPER_DEFAULTS | {"num_iterations": 2, "save_steps": 3})
    found = conflicts(vars(config), METHODS["grpo"](), has_teacher=False)
    assert len(found) == 1 and found[0].startswith("save_steps: 3 must be a multiple of 2")


def test_fields_that_a_recipe_says_elsewhere_exist() -> None:
    assert SAID_ELSEWHERE.keys() <= OPTIONS.keys()
