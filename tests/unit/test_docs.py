"""What the documentation shows can be run: recipes in it pass, and `rlad` commands in it parse."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from rlad.cli.main import app
from rlad.trainer.config import Recipe
from rlad.trainer.options import markdown

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "recipes", "src/rlad/recipes")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])


def recipes_in(path: Path) -> list[dict[str, Any]]:
    """Blocks of YAML that are whole recipes: they name a model and a task."""
    blocks = re.findall(r"^```ya?ml\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    loaded = [yaml.safe_load(block) for block in blocks]
    return [each for each in loaded if isinstance(each, dict) and {"model", "task"} <= each.keys()]


def commands_in(path: Path) -> list[list[str]]:
    """Lines of code that call rlad, after a pipe, an assignment or a launcher too; a backslash joins lines."""
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    code = re.findall(r"^(?: {4,}|\$ )(\S.*)$", text, re.MULTILINE)
    code += [
        line
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in block.split("\n")
    ]
    called = [
        each
        for line in code
        if (each := re.search(r"(?:^|\| )(?:[A-Z_]+=\S+ )*(?:accelerate launch .*-m )?(rlad [a-z].*)$", line))
    ]
    return [shlex.split(each[1].split(" < ")[0].split(" > ")[0].replace("...", ""), comments=True) for each in called]


RECIPES = [(path, recipe) for path in DOCUMENTS for recipe in recipes_in(path)]
COMMANDS = [(path, words) for path in DOCUMENTS for words in commands_in(path)]


def test_the_documentation_has_recipes_and_commands() -> None:
    assert RECIPES and COMMANDS


@pytest.mark.parametrize(("path", "data"), RECIPES, ids=[path.name for path, _ in RECIPES])
def test_recipes_in_the_documentation_pass(path: Path, data: dict[str, Any]) -> None:
    Recipe.from_mapping(data)


@pytest.mark.parametrize(("path", "words"), COMMANDS, ids=[" ".join(words[1:]) for _, words in COMMANDS])
def test_commands_in_the_documentation_parse(path: Path, words: list[str]) -> None:
    """By the command line's own parser, which runs nothing: options, their values, and what must be given."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(words[1], rest)


TRAINED = [(path, words) for path, words in COMMANDS if words[1] in ("train", "check")]


@pytest.mark.parametrize(("path", "words"), TRAINED, ids=[" ".join(words[1:]) for _, words in TRAINED])
def test_commands_in_the_documentation_name_recipes_and_keys_that_exist(
    path: Path, words: list[str], tmp_path: Path
) -> None:
    reference, *rest = words[2:]
    if reference.endswith(".yaml"):  # a file of the reader's own
        mine = tmp_path / "mine.yaml"
        mine.write_text(Recipe.resolve("quickstart").to_yaml(), encoding="utf-8")
        reference = str(mine)
    Recipe.resolve(reference, [word for word in rest if "=" in word and not word.startswith("-")])


def test_the_options_table_is_what_the_module_prints() -> None:
    assert markdown() in (ROOT / "docs" / "trainer.md").read_text(encoding="utf-8")


def equations() -> list[tuple[str, str, str, str]]:
    """(function, file, line number, code) of each row of the table in docs/objective.md."""
    text = (ROOT / "docs" / "objective.md").read_text(encoding="utf-8")
    row = r"^\| .* \| `([\w.]+)` \| \[[^\]]*\]\(\.\./([^#)]+)#L(\d+)\) \| `(.*)` \|$"
    return re.findall(row, text, re.MULTILINE)


@pytest.mark.parametrize(("function", "path", "line", "code"), equations(), ids=[each[3][:40] for each in equations()])
def test_an_equation_leads_to_its_line(function: str, path: str, line: str, code: str) -> None:
    """The line holds the code that the table shows, and lies in the function that it names."""
    source = (ROOT / path).read_text(encoding="utf-8")
    assert source.splitlines()[int(line) - 1].strip() == code
    inside: ast.AST = ast.parse(source)
    for name in function.split("."):
        inside = next(node for node in ast.iter_child_nodes(inside) if getattr(node, "name", None) == name)
    assert isinstance(inside, ast.FunctionDef)
    assert inside.lineno <= int(line) <= (inside.end_lineno or 0)


def test_the_table_of_equations_has_all_of_them() -> None:
    assert len(equations()) >= 12
    text = (ROOT / "docs" / "objective.md").read_text(encoding="utf-8")
    for equation in ("Eq. 1", "Eq. 2", "Eq. 3", "Eq. 4", "Eq. 5", "Appendix B", "KDRL"):
        assert equation in text


def test_every_metric_that_the_trainer_logs_is_in_the_documentation() -> None:
    folder = ROOT / "src" / "rlad" / "trainer"
    source = "".join((folder / name).read_text(encoding="utf-8") for name in ("trainer.py", "groups.py"))
    named = set(re.findall(r'\._metric\("(\w+)"', source)) | set(re.findall(r'parts\["(\w+)"\]', source))
    parts = re.search(r"parts = \{(.*?)\}", source, re.DOTALL)
    assert parts is not None
    named |= set(re.findall(r'"(\w+)":', parts[1]))
    named |= {f"seconds/{name}" for name in re.findall(r'_timers\.part\("(\w+)"\)', source)}
    text = (ROOT / "docs" / "trainer.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `rlad/([\w/]+)`", text, re.MULTILINE)) == named
    assert len(named) >= 15
