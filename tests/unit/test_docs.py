"""What the documentation shows can be run: recipes in it pass, and `rlad` commands in it parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlad.trainer.config import Recipe

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "recipes", "src/rlad/recipes")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])


def recipes_in(path: Path) -> list[dict[str, Any]]:
    """Blocks of YAML that are whole recipes: they name a model and a task."""
    blocks = re.findall(r"^```ya?ml\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    loaded = [yaml.safe_load(block) for block in blocks]
    return [each for each in loaded if isinstance(each, dict) and {"model", "task"} <= each.keys()]


def commands_in(path: Path) -> list[list[str]]:
    """Lines of code that train or check a packaged recipe."""
    lines = re.findall(r"^(?: {4,}|\$ )?(rlad (?:train|check) .*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


RECIPES = [(path, recipe) for path in DOCUMENTS for recipe in recipes_in(path)]
COMMANDS = [(path, words) for path in DOCUMENTS for words in commands_in(path)]


def test_the_documentation_has_recipes_and_commands() -> None:
    assert RECIPES and COMMANDS


@pytest.mark.parametrize(("path", "data"), RECIPES, ids=[path.name for path, _ in RECIPES])
def test_recipes_in_the_documentation_pass(path: Path, data: dict[str, Any]) -> None:
    Recipe.from_mapping(data)


@pytest.mark.parametrize(("path", "words"), COMMANDS, ids=[" ".join(words[1:]) for _, words in COMMANDS])
def test_commands_in_the_documentation_name_recipes_and_keys_that_exist(
    path: Path, words: list[str], tmp_path: Path
) -> None:
    reference, *rest = words[2:]
    if reference.endswith(".yaml"):  # a file of the reader's own
        mine = tmp_path / "mine.yaml"
        mine.write_text(Recipe.resolve("quickstart").to_yaml(), encoding="utf-8")
        reference = str(mine)
    Recipe.resolve(reference, [word for word in rest if "=" in word and not word.startswith("-")])
