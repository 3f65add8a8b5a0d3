"""Do the tests of rlad.objectives see a wrong sign? Each mutation in mutations.txt breaks the source in one place.

For every mutation the tests named with it must fail; on the unbroken source they pass, as pytest itself shows.
`test_every_objective_test_can_fail` then demands that each test of the objectives is named at least once.

The source on disk is not touched: a broken copy takes the place of rlad.objectives, and the test files are loaded
again on top of it. In mutations.txt: # what, @ file, - before, + after, ! the tests that must notice (key::test).
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

import rlad.objectives

SOURCE = Path(rlad.objectives.__file__).parent
TESTS = Path(__file__).parents[1]
FILES = {
    "rlad": "unit/test_objectives_rlad.py",
    "methods": "unit/test_objectives_methods.py",
    "signals": "unit/test_objectives_signals.py",
    "advantages": "unit/test_objectives_advantages.py",
    "divergences": "unit/test_objectives_divergences.py",
    "spans": "unit/test_objectives_spans.py",
    "naive": "unit/test_objectives_naive.py",
    "properties": "properties/test_objectives_properties.py",
    "trl": "equivalence/test_trl_anchor.py",
}


@dataclass(frozen=True)
class Mutation:
    """In `file`, `before` (which must occur once) becomes `after`; killed_by are (file key, test) that must fail."""

    what: str
    file: str
    before: str
    after: str
    killed_by: list[tuple[str, str]]


def read_mutations(text: str) -> list[Mutation]:
    mutations = []
    for block in text.strip().split("\n\n"):
        lines: dict[str, list[str]] = {mark: [] for mark in "#@-+!"}
        for line in block.split("\n"):
            lines[line[0]].append(line[2:])
        (what,), (file,) = lines["#"], lines["@"]
        named = [(key, test) for key, _, test in (name.partition("::") for name in " ".join(lines["!"]).split())]
        mutations.append(Mutation(what, file, "\n".join(lines["-"]), "\n".join(lines["+"]), named))
    return mutations


MUTATIONS = read_mutations(Path(__file__).with_name("mutations.txt").read_text())


@pytest.fixture
def mutant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Mutation], None]]:
    """Put a broken copy of rlad.objectives in the place of the real one until the test ends."""

    def install(mutation: Mutation) -> None:
        folder = tmp_path / "objectives"
        folder.mkdir()
        for path in SOURCE.glob("*.py"):
            text = path.read_text()
            if path.name == mutation.file:
                assert text.count(mutation.before) == 1, f"{mutation.what}: the source has changed, adapt the mutation"
                text = text.replace(mutation.before, mutation.after)
            (folder / path.name).write_text(text)
        for name in [name for name in sys.modules if name.split(".")[:2] == ["rlad", "objectives"]]:
            monkeypatch.delitem(sys.modules, name)
        package = load("rlad.objectives", folder / "__init__.py", monkeypatch)
        monkeypatch.setattr(rlad, "objectives", package)

    hypothesis.settings.register_profile(
        "mutants", phases=[hypothesis.Phase.generate], derandomize=True, database=None, deadline=None
    )
    profile = hypothesis.settings.get_current_profile_name()
    hypothesis.settings.load_profile("mutants")  # a failure is enough, the smallest one is not needed
    yield install
    hypothesis.settings.load_profile(profile)


def load(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folder)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def fails(test: Callable[..., None]) -> bool:
    """Whether the test fails for at least one of its parameters (the tests here use no fixtures)."""
    axes: list[list[dict[str, Any]]] = []
    for mark in getattr(test, "pytestmark", []):
        names = re.split(r",\s*", mark.args[0])
        axes.append([dict(zip(names, v if len(names) > 1 else (v,), strict=True)) for v in mark.args[1]])
    for combination in itertools.product(*axes):
        arguments = {name: value for axis in combination for name, value in axis.items()}
        try:
            test(**arguments)
        except (Exception, pytest.fail.Exception):
            return True
    return False


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_mutation_is_noticed(
    mutation: Mutation, mutant: Callable[[Mutation], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(mutation)
    modules: dict[str, ModuleType] = {}
    assert mutation.killed_by
    for file, test in mutation.killed_by:
        if file not in modules:
            modules[file] = load(f"mutated_{file}", TESTS / FILES[file], monkeypatch)
        assert fails(getattr(modules[file], test)), f"{FILES[file]}::{test} passes although: {mutation.what}"


def test_every_objective_test_can_fail() -> None:
    seen = {killer for mutation in MUTATIONS for killer in mutation.killed_by}
    written = {
        (file, node.name)
        for file, path in FILES.items()
        for node in ast.parse((TESTS / path).read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert seen == written
