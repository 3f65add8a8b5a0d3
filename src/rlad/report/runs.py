"""What is on disk of a run: its recipe, its metrics, its summary, and its records."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from rlad import layout, records
from rlad.errors import RladError
from rlad.report.curve import read_metrics
from rlad.report.tokens import Vocabulary
from rlad.report.words import COVERAGE, CURVES, SECONDS, method_words

TOKENIZER = "tokenizer.json"
GAIN = "before after difference low high problems".split()  # the numbers of a row of `gain` in summary.json


@dataclass(frozen=True)
class Run:
    """A run as it was found. parts: records by update, none where it has none; about: how the first was made."""

    name: str
    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    parts: dict[int, Path] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> dict[str, Any]:
        """The method's name and options."""
        found = self.recipe.get("method") or self.about.get("method")
        if isinstance(found, str):
            return {"name": found}
        return dict(found) if isinstance(found, Mapping) else {}

    def vocabulary(self) -> Vocabulary:
        """Of the student, as recorded, or as saved beside the trained model."""
        places = (self.folder / layout.RECORDS / TOKENIZER, self.folder / layout.MODEL / TOKENIZER)
        return Vocabulary(next((path for path in places if path.is_file()), None))


def read_runs(folders: Iterable[str | Path]) -> list[Run]:
    """The runs in folders; one that was trained in stages gives each of its stages. Names are made to differ.

    Raises RladError for a folder without a run.
    """
    found: list[Run] = []
    for each in folders:
        folder = Path(each)
        recipes = folder.glob(f"{layout.STAGE.format('*')}/{layout.RECIPE}")
        stages = sorted(recipes, key=lambda path: (len(path.parent.name), path.parent.name))
        for place in [path.parent for path in stages] or [folder]:
            run = _read(place, f"{folder.name}, {place.name}" if stages else folder.resolve().name)
            taken = sum(run.name == other.name or other.name.startswith(f"{run.name} (") for other in found)
            found.append(run if not taken else Run(**{**vars(run), "name": f"{run.name} ({taken + 1})"}))
    if not found:
        raise RladError("name at least one folder that a run was written to")
    return found


def _read(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise RladError(f"there is no folder {folder}: give what `rlad train` wrote to, or the output_dir of a script")
    metrics = folder / layout.METRICS
    parts = records.parts(folder / layout.RECORDS)
    recipe = folder / layout.RECIPE
    if not (recipe.is_file() or metrics.is_file() or parts):
        raise RladError(f"{folder} holds no run: no recipe.yaml, no metrics.jsonl and no records")
    text = _text(recipe)
    return Run(
        name=name,
        folder=folder,
        recipe=_mapping(text, recipe, yaml.safe_load),
        recipe_text=text,
        summary=_summary(folder / layout.SUMMARY),
        metrics=read_metrics(metrics),
        parts=parts,
        about=records.read_about(next(iter(parts.values()))) if parts else {},
    )


def _summary(path: Path) -> dict[str, Any]:
    return _mapping(_text(path), path, json.loads)


def _text(path: Path) -> str:
    """What a file holds; "" where it is not there."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise RladError(f"{path} cannot be read: {error}") from None


def _mapping(text: str, path: Path, read: Any) -> dict[str, Any]:
    try:
        found = read(text) if text else {}
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise RladError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value that was read is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < sys.float_info.max


def header(run: Run) -> list[tuple[str, str]]:
    """What to know about a run before its numbers: (what, value)."""
    recipe, summary, about = run.recipe, run.summary, run.about
    model, teacher = recipe.get("model"), recipe.get("teacher")
    versions = summary.get("versions") or ({"rlad": about["rlad"]} if "rlad" in about else {})
    versions = versions if isinstance(versions, Mapping) else {}
    logged = [row["step"] for row in run.metrics if isinstance(row.get("step"), int)]
    steps = summary.get("steps") or max(logged, default=None)
    lines: list[tuple[str, Any]] = [
        ("folder", run.folder),
        ("method", _method(run) if run.method else None),
        ("student", _path(model)),
        ("teacher", _path(teacher)),
        ("task", json.dumps(recipe["task"], default=str) if recipe.get("task") else None),
        ("updates", steps if summary else f"{steps}, not finished" if steps else None),
        ("time", _seconds(run)),
        ("seed", recipe.get("seed", about.get("seed"))),
        ("commit", summary.get("commit") or about.get("commit") or "not recorded"),
        ("machine", ", ".join(str(summary[key]) for key in ("device", "machine") if summary.get(key)) or None),
        ("threads", summary.get("threads")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or None),
        ("begun", about.get("created")),
    ]
    return [(what, str(value)) for what, value in lines if value is not None]


def _method(run: Run) -> str:
    from rlad.objectives import METHODS

    known = run.method.get("name") in METHODS
    # Nothing that a run names is imported here: it may be somebody else's.
    unknown = " (not known to this process: clip bounds and contributions are left out, which need its code)"
    return method_words(run.method) + ("" if known else unknown)


def _path(spec: Any) -> str | None:
    """A model section as a text: its path, or all of it where it is something else."""
    if spec is None:
        return None
    if isinstance(spec, Mapping):
        return str(
            spec.get("path")
            or json.dumps({key: value for key, value in spec.items() if value is not None}, default=str)
        )
    return str(spec)


def _seconds(run: Run) -> str | None:
    if is_number(run.summary.get("seconds")):
        return f"{run.summary['seconds']:.0f} s of training"
    times = [row["time"] for row in run.metrics if is_number(row.get("time"))]
    return f"{times[-1] - times[0]:.0f} s from the first logged update to the last" if len(times) > 1 else None


def result(run: Run) -> list[dict[str, Any]]:
    """The gain of the evaluation after training over that before, a row for each difficulty; [] where there is none.
    A row that lacks a number is left out."""
    gain = run.summary.get("gain")
    rows = [row for row in gain if isinstance(row, dict)] if isinstance(gain, list) else []
    return [row for row in rows if "difficulty" in row and all(is_number(row.get(name)) for name in GAIN)]


def result_words(row: Mapping[str, Any]) -> str:
    """A row of `result` in words: accuracy before and after, and the difference with its paired 95 % interval."""
    return (
        f"{row['difficulty']}: {row['before']:.1%} before, {row['after']:.1%} after, {row['difference']:+.1%} "
        f"(95 % interval {row['low']:+.1%} to {row['high']:+.1%}, {row['problems']} problems)"
    )


def curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Title -> (update, value), for each curve that the run has."""
    found = {title: _points(run.metrics, metric) for metric, title, _ in CURVES}
    names = sorted({name for row in run.metrics for name in row if name.startswith(SECONDS)})
    found |= {f"seconds: {name.removeprefix(SECONDS)}": _points(run.metrics, name) for name in names}
    return {title: points for title, points in found.items() if points}


def _points(metrics: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    value_of = _coverage if name == COVERAGE else (lambda row: row.get(name))
    found = [(row.get("step"), value_of(row)) for row in metrics]
    return [(step, float(value)) for step, value in found if isinstance(step, int) and is_number(value)]


def _coverage(row: Mapping[str, Any]) -> float | None:
    """The share of tokens with a teacher value, of which a row says what is missing."""
    broken, unaligned = row.get("rlad/broken_teacher"), row.get("rlad/unaligned", 0.0)
    return 1 - broken - unaligned if is_number(broken) and is_number(unaligned) else None
