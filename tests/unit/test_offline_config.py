"""What a recipe of rlad sft may say, and what it is told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlad.cli.main import main
from rlad.errors import RladError
from rlad.offline.config import SftRecipe
from rlad.trainer.config import RecipeError

SMALLEST: dict[str, Any] = {"model": "embedded:student", "teacher": "embedded:teacher", "task": "knights_knaves"}


def test_the_smallest_recipe_and_its_defaults() -> None:
    recipe = SftRecipe.from_mapping(SMALLEST)
    assert (recipe.sft.samples, recipe.sft.per_problem, recipe.sft.problems) == (4, 2, None)
    assert recipe.traces == "runs/sft-traces"
    arguments = recipe.trainer_arguments()
    assert arguments["completion_only_loss"] is True and arguments["max_length"] is None
    made = SftRecipe.from_mapping(SMALLEST | {"trainer": {"max_length": 64, "validate": {"every": 3}}, "seed": 4})
    assert made.trainer_arguments() | {"max_length": 64, "seed": 4} == made.trainer_arguments()
    assert "validate" not in made.trainer_arguments()
    assert made.validate_spec is not None and made.validate_spec.every == 3


def test_a_recipe_that_is_written_out_is_read_as_the_same(tmp_path: Path) -> None:
    for data in (SMALLEST, SMALLEST | {"teacher": None, "sft": {"traces": "somewhere"}, "seed": 3}):
        made = SftRecipe.from_mapping(data)
        path = tmp_path / "recipe.yaml"
        path.write_text(made.to_yaml(), encoding="utf-8")
        assert SftRecipe.resolve(str(path)) == made


SERVED = {"url": "http://localhost:8000", "tokenizer": "embedded:teacher"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"method": "rlad"}, "method: is for rlad train"),
        ({"sft": {"sample": 2}}, "sft.sample: unknown key; did you mean sft.samples?"),
        ({"sft": {"samples": 0}}, "sft.samples: "),
        ({"sft": {"temperature": 0.0}}, "sft.samples: at temperature 0 all 4 samples of a problem are the same"),
        ({"sft": {"backend": "llama"}}, "sft.backend: "),
        ({"trainer": {"learning_rat": 1.0}}, "trainer.learning_rat: unknown key; did you mean trainer.learning_rate?"),
        ({"trainer": {"max_steps": "4"}}, "trainer.max_steps: must be int"),
        ({"trainer": {"completion_only_loss": False}}, "the loss is of the response alone"),
        ({"trainer": {"chat_template_path": "x"}}, "rlad writes the prompt and the response as token ids"),
        ({"trainer": {"eval_strategy": "steps"}}, "say it with `evaluate`"),
        ({"trainer": {"validate": {"evry": 2}}}, "trainer.validate.evry"),
        ({"task": {}}, "task: needs `name`"),
        ({"teacher": None}, "teacher: is missing: name one, or the folder of its traces"),
        (
            {"teacher": None, "sft": {"traces": "t", "samples": 2, "seed": 1}},
            "sft.samples, sft.seed: without a teacher",
        ),
        ({"teacher": {"adapter": "a"}}, "samples from one whole model"),
        ({"teacher": {"by_task": {"a": "b"}}}, "samples from one whole model"),
        ({"teacher": {"path": "a", "alignment": "spans"}}, "teacher.alignment: leave it out"),
        ({"teacher": "http://localhost:8000"}, "teacher.tokenizer: say the hub id"),
        ({"teacher": SERVED, "sft": {"backend": "vllm"}}, "sft.backend: leave it out"),
        ({"teacher": {"urls": ["http://a", "http://b"]}}, "teacher.urls: rlad sft samples from one server"),
        ({"teacher": {"path": "a", "device_map": "auto"}, "sft": {"backend": "vllm"}}, "sft.backend: vllm takes no"),
    ],
)
def test_what_cannot_run_is_refused_with_what_to_do(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(RladError) as caught:
        SftRecipe.from_mapping(SMALLEST | changed)
    assert said in "; ".join(getattr(caught.value, "problems", [str(caught.value)]))


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        SftRecipe.from_mapping(SMALLEST | {"sft": {"samples": -1}, "trainer": {"max_stepz": 1}})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["sft.samples", "trainer.max_stepz"]


def test_a_served_teacher_is_one_url_and_a_tokenizer() -> None:
    assert str(SftRecipe.from_mapping(SMALLEST | {"teacher": SERVED}).teacher) == "http://localhost:8000"


def test_the_command_reads_overrides_and_says_what_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SMALLEST), encoding="utf-8")
    assert main(["sft", str(path), "sft.samples=0", "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: sft.samples: ")
    cpu = ["trainer.use_cpu=true", "trainer.bf16=false"]
    assert main(["sft", str(path), "teacher=null", f"sft.traces={tmp_path / 'none'}", *cpu]) == 2
    assert "there are no records at" in capsys.readouterr().err


def test_the_recipe_in_the_repository_passes(repository: Path) -> None:
    recipe = SftRecipe.resolve(str(repository / "recipes" / "kk-sft"))
    methods = yaml.safe_load((repository / "recipes" / "kk-methods" / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe.evaluate is not None  # on the same problems, and as many updates of as many sequences
    assert recipe.evaluate.model_dump() | methods["evaluate"] == recipe.evaluate.model_dump()
    assert recipe.task == methods["task"]
    assert recipe.trainer["max_steps"] == methods["trainer"]["max_steps"]
    batch = recipe.trainer["per_device_train_batch_size"] * recipe.trainer["gradient_accumulation_steps"]
    assert batch == methods["trainer"]["per_device_train_batch_size"]
