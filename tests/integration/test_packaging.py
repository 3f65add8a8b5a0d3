"""The wheel, on its own, gives what the repository gives: recipes, fingerprints, models, types, the command."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The wheel, built from the working tree without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "-w", str(folder), str(repository)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("rlad-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked as pip would, with nothing of the repository near it."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_everything_in_the_package_travels_in_the_wheel(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("rlad/")}
    package = repository / "src" / "rlad"
    present = {
        f"rlad/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == present
    for name in (
        "py.typed",
        "recipes/quickstart/recipe.yaml",
        "tasks/knights_knaves/official_test_fingerprints.txt",
        "models/teacher/model.safetensors",
        "models/student/model.safetensors",
    ):
        assert f"rlad/{name}" in packed


def test_the_wheel_has_licence_command_and_version(wheel: Path) -> None:
    import rlad

    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = {name.rpartition("/")[2]: name for name in names if ".dist-info/" in name}
        assert "rlad = rlad.cli.main:main" in archive.read(about["entry_points.txt"]).decode()
        metadata = archive.read(about["METADATA"]).decode()
    assert f"\nVersion: {rlad.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_quickstart_is_ready_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    program = "import sys; from rlad.cli.main import main; sys.exit(main(['check', 'quickstart']))"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(installed / "rlad" / "recipes") in done.stdout  # not the repository's own copy
    assert list(tmp_path.iterdir()) == []


def test_tested_versions_lie_in_the_ranges_that_are_declared(repository: Path) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    tested = {canonicalize_name(name): version for name, version in pins.items()}
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        version = tested[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement} was not what {version} was tested for"
        assert "+" not in version, "a local version tag ties the file to one index"


def test_trl_is_held_to_the_minor_version_that_was_read(repository: Path) -> None:
    import trl

    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "trl>=1.16,<1.17" in project["dependencies"]
    assert trl.__version__.startswith("1.16.")


def test_the_sdist_has_what_its_tests_read(tmp_path: Path, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(next(tmp_path.glob("rlad-*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "README.md", "CONTRIBUTING.md", "Makefile", "docs/objective.md", "docs/images/methods.png", "recipes/loop.py",
        "benchmarks/step.py", "results/table1/README.md", "results/table1/rlad-seed1.json", "tests/unit/mutations.txt",
        "src/rlad/models/teacher/model.safetensors",
    ):  # fmt: skip
        assert name in packed
    assert not {name.partition("/")[0] for name in packed} & {"runs", ".ci", ".venv"}
