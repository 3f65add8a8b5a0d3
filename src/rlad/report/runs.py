"""What is on disk of a run: its recipe, its metrics, its summary, and its records."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlad import records
from rlad.errors import RladError
from rlad.report.curve import read_metrics
from rlad.report.tokens import Vocabulary
from rlad.report.words import CURVES, SECONDS, method_words

RECORDS, TOKENIZER = "records", "tokenizer.json"


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
        found = self.recipe.get("method") or self.about.get("method") or {}
        return {"name": found} if isinstance(found, str) else dict(found)

    def vocabulary(self) -> Vocabulary:
        """Of the student, as recorded, or as saved beside the trained model."""
        places = (self.folder / RECORDS / TOKENIZER, self.folder / "model" / TOKENIZER)
        return Vocabulary(next((path for path in places if path.is_file()), None))


def read_runs(folders: Iterable[str | Path]) -> list[Run]:
    """The runs in folders; one that was trained in stages gives each of its stages. Names are made to differ.

    Raises RladError for a folder without a run.
    """
    found: list[Run] = []
    for each in folders:
        folder = Path(each)
        stages = sorted(folder.glob("stage-*/recipe.yaml"), key=lambda path: (len(path.parent.name), path.parent.name))
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
    metrics = folder / "metrics.jsonl"
    parts = records.parts(folder / RECORDS)
    recipe = folder / "recipe.yaml"
    if not (recipe.is_file() or metrics.is_file() or parts):
        raise RladError(f"{folder} holds no run: no recipe.yaml, no metrics.jsonl and no records")
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    return Run(
        name=name,
        folder=folder,
        recipe=_mapping(text, recipe, yaml.safe_load),
        recipe_text=text,
        summary=_summary(folder / "summary.json"),
        metrics=read_metrics(metrics),
        parts=parts,
        about=records.read_about(next(iter(parts.values()))) if parts else {},
    )


def _summary(path: Path) -> dict[str, Any]:
    return _mapping(path.read_text(encoding="utf-8"), path, json.loads) if path.is_file() else {}


def _mapping(text: str, path: Path, read: Any) -> dict[str, Any]:
    try:
        found = read(text) if text else {}
    except (ValueError, yaml.YAMLError) as error:
        raise RladError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    return found if isinstance(found, dict) else {}


def header(run: Run) -> list[tuple[str, str]]:
    """What to know about a run before its numbers: (what, value)."""
    recipe, summary, about = run.recipe, run.summary, run.about
    model, teacher = recipe.get("model"), recipe.get("teacher")
    versions = summary.get("versions") or ({"rlad": about["rlad"]} if "rlad" in about else {})
    steps = summary.get("steps") or max((row.get("step", 0) for row in run.metrics), default=None)
    lines: list[tuple[str, Any]] = [
        ("folder", run.folder),
        ("method", method_words(run.method) if run.method else None),
        ("student", _path(model)),
        ("teacher", _path(teacher)),
        ("task", json.dumps(recipe["task"]) if recipe.get("task") else None),
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


def _path(spec: Any) -> str | None:
    """A model section as a text: its path, or all of it where it is something else."""
    if spec is None:
        return None
    if isinstance(spec, Mapping):
        return str(spec.get("path") or json.dumps({key: value for key, value in spec.items() if value is not None}))
    return str(spec)


def _seconds(run: Run) -> str | None:
    if run.summary.get("seconds") is not None:
        return f"{run.summary['seconds']:.0f} s of training"
    times = [row["time"] for row in run.metrics if "time" in row]
    return f"{times[-1] - times[0]:.0f} s from the first logged update to the last" if len(times) > 1 else None


def result(run: Run) -> list[dict[str, Any]]:
    """The gain of the evaluation after training over that before, a row for each difficulty; [] where there is none."""
    return [row for row in run.summary.get("gain") or [] if isinstance(row, dict)]


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
    points = []
    for row in metrics:
        value = row.get(name)
        if name == "coverage" and row.get("rlad/broken_teacher") is not None:
            value = 1 - row["rlad/broken_teacher"] - row.get("rlad/unaligned", 0.0)
        if isinstance(value, (int, float)) and isinstance(row.get("step"), int) and math.isfinite(value):
            points.append((row["step"], float(value)))
    return points
