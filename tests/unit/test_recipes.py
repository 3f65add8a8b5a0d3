"""Every recipe of the repository passes `rlad check` on a machine without a GPU and without the hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlad.cli.main import main
from rlad.trainer.config import Recipe

ROOT = Path(__file__).parents[2] / "recipes"
MADE_FIRST = {"other-tokenizer"}  # its README makes the teacher that its recipe names
OTHER_FORMATS = {"studies"}  # checked by their own tests
RECIPES = sorted(path for path in ROOT.glob("*/*.yaml") if path.parent.name not in MADE_FIRST | OTHER_FORMATS)
PAPER = [path for path in RECIPES if path.parent.name.startswith(("kk-qwen3", "math-qwen3"))]


def of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.mark.parametrize("path", RECIPES, ids=of)
def test_a_recipe_passes_check(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(path)]) == 0, capsys.readouterr().err
    assert "nothing wrong was found" in capsys.readouterr().out


@pytest.mark.parametrize("path", PAPER, ids=of)
def test_the_paper_s_recipes_have_the_paper_s_settings(path: Path) -> None:
    """RLAD's experiments section: batch 256, groups of 8, learning rate 1e-6, alpha 0.5, clip 0.2 and 0.28, temperature
    1; evaluated at 0.6 and 0.95. Its micro-batch of 16 changes memory and not the update."""
    recipe = Recipe.resolve(str(path))
    arguments = recipe.trainer_arguments()
    micro = arguments["per_device_train_batch_size"]
    assert micro <= 16 and micro * arguments["gradient_accumulation_steps"] == 256
    assert micro * arguments["max_completion_length"] <= 16 * 2048  # activations beside vLLM and the teacher
    assert arguments["save_total_limit"] == 3
    assert recipe.model.eos_token == ("<|im_end|>" if recipe.model.path.endswith("-Base") else None)
    assert (arguments["num_generations"], arguments["learning_rate"], arguments["temperature"]) == (8, 1e-6, 1.0)
    method = recipe.make_method()
    assert (method.name, getattr(method, "alpha", None), method.clip_low, method.clip_high) == ("rlad", 0.5, 0.2, 0.28)
    asked = recipe.evaluate or recipe.validate_spec
    assert asked is not None and (asked.temperature, asked.top_p) == (0.6, 0.95)
    if recipe.task["name"] == "math":
        assert arguments["groups"] == "refill" and arguments["use_adaptive_entropy"]
        assert recipe.validate_spec is not None and recipe.validate_spec.keep_best
    readme = (path.parent / "README.md").read_text(encoding="utf-8")
    assert "paper, not reproduced here" in readme and "Not run" in readme


def test_there_are_the_paper_s_recipes() -> None:
    logic = [f"kk-qwen3-{size}/recipe{context}.yaml" for size in ("0.6b", "1.7b") for context in ("", "-8k")]
    math = [f"math-qwen3-{model}/recipe.yaml" for model in ("1.7b", "1.7b-base", "8b-base")]
    assert {of(path) for path in PAPER} == {*logic, *math}


def test_rlad_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "rlad", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("rlad ")
