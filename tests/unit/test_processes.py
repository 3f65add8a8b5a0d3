"""Several processes and GPUs: what cannot work is refused before a model loads, and what is saved is whole."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.fsdp import StateDictType

import letters_task
from rlad.errors import RladError
from rlad.offline.config import SftRecipe
from rlad.trainer.config import Recipe, RecipeError
from rlad.trainer.rules import in_parts
from rlad.trainer.saving import _whole_state
from rlad.trainer.session import check_one_gpu

PARTS = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "ACCELERATE_DEEPSPEED_CONFIG_FILE",
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PARTS, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def zero(stage: int) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage}}


@pytest.mark.parametrize(
    ("trainer", "environment", "found"),
    [
        ({}, {}, None),
        ({"fsdp": "full_shard"}, {}, "trainer.fsdp"),
        ({"deepspeed": zero(2)}, {}, None),
        ({"deepspeed": zero(3)}, {}, "trainer.deepspeed (ZeRO-3)"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "FSDP (accelerate's configuration)"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, None),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, None),
        ({}, {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, None),  # of a configuration that is not in use
        (
            {},
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            "ZeRO-3 (accelerate's configuration)",
        ),
    ],
)
def test_a_student_in_parts_is_known_by_its_recipe_and_by_its_launcher(
    trainer: dict[str, Any], environment: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert in_parts(trainer) == found


@pytest.mark.parametrize(("stage", "found"), [(3, True), (2, False)])
def test_a_deepspeed_file_is_read(stage: int, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(zero(stage)))
    assert (in_parts({"deepspeed": str(path)}) is not None) == found
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    assert (in_parts({}) is not None) == found


def test_a_deepspeed_file_that_is_none_is_left_to_deepspeed(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    assert in_parts({"deepspeed": str(tmp_path / "broken.json")}) is None
    assert in_parts({"deepspeed": str(tmp_path / "nowhere.json")}) is None


def problems(tmp_path: Path, **more: Any) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        letters_task.recipe("./base", tmp_path, more.pop("trainer", {}), **more)
    return caught.value.problems


def test_one_process_does_not_evaluate_a_student_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = problems(tmp_path, trainer={"deepspeed": zero(3)})
    assert found.startswith("trainer.deepspeed (ZeRO-3): the student is in parts") and "evaluate=null" in found
    letters_task.recipe("./base", tmp_path, {"deepspeed": zero(3)}, evaluate=None)
    letters_task.recipe("./base", tmp_path, {"deepspeed": zero(2)})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    (found,) = problems(tmp_path)
    assert found.startswith("FSDP (accelerate's configuration): the student is in parts")
    sft = {"model": "./base", "teacher": "./teacher", "task": "letters_task:Letters", "evaluate": {"puzzles": 4}}
    with pytest.raises(RecipeError, match="only the main process would evaluate it"):
        SftRecipe.from_mapping(sft)
    SftRecipe.from_mapping({**sft, "evaluate": None})


def test_a_base_in_parts_is_no_teachers(tmp_path: Path) -> None:
    model = {"path": "./base", "lora": {}}
    asked = {"method": "rlad", "teacher": {"adapter": "./adapter"}, "evaluate": None}
    (found,) = problems(tmp_path, model=model, trainer={"fsdp": "full_shard"}, **asked)
    assert "teacher.adapter shares with the student is in parts" in found
    letters_task.recipe("./base", tmp_path, {}, model=model, **asked)


def test_a_teacher_is_spread_over_the_gpus_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = {"path": "./teacher", "device_map": "auto"}
    letters_task.recipe("./base", tmp_path, {}, method="rlad", teacher=teacher)
    monkeypatch.setenv("WORLD_SIZE", "2")
    (found,) = problems(tmp_path, method="rlad", teacher=teacher)
    assert found.startswith("teacher.device_map: each of 2 processes")


def test_one_process_takes_one_gpu() -> None:
    check_one_gpu(SimpleNamespace(n_gpu=0))
    check_one_gpu(SimpleNamespace(n_gpu=1))
    with pytest.raises(RladError, match=r"^2 GPUs are visible to one process: .*CUDA_VISIBLE_DEVICES=0.*torchrun"):
        check_one_gpu(SimpleNamespace(n_gpu=2))


def test_checkpoints_do_not_go_to_the_hub_from_a_recipe(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, trainer={"push_to_hub": True})
    assert found.startswith("trainer.push_to_hub: upload what is finished, with hf upload")


@pytest.mark.parametrize("kind", [StateDictType.SHARDED_STATE_DICT, StateDictType.FULL_STATE_DICT])
def test_fsdp_gathers_a_model_that_is_saved(kind: StateDictType) -> None:
    plugin = SimpleNamespace(state_dict_type=kind)
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    with _whole_state(SimpleNamespace(is_fsdp_enabled=True, accelerator=accelerator)):
        assert "FULL_STATE_DICT" in str(plugin.state_dict_type)  # what transformers looks for
    assert plugin.state_dict_type is kind  # checkpoints stay as they were asked for


def test_without_fsdp_there_is_nothing_to_gather() -> None:
    with _whole_state(SimpleNamespace(is_fsdp_enabled=False)):
        pass


def test_the_recipe_waits_longer_for_the_process_that_evaluates(tmp_path: Path) -> None:
    recipe = letters_task.recipe("./base", tmp_path, {})
    assert recipe.trainer_arguments()["ddp_timeout"] == 7_200
    given = Recipe.from_mapping(recipe.model_dump() | {"trainer": {**recipe.trainer, "ddp_timeout": 60}})
    assert given.trainer_arguments()["ddp_timeout"] == 60
