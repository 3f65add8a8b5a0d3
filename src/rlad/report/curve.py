"""Learning curves as a picture, from the metrics.jsonl of one or more runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlad.errors import RladError


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without a last line that a kill cut short. None where a run that logged nothing has
    no such file. Raises RladError for anything else."""
    rows: list[dict[str, Any]] = []
    if not Path(path).is_file():
        return rows
    try:
        lines = Path(path).read_bytes().rstrip(b"\n").split(b"\n")
    except OSError as error:
        raise RladError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise RladError(f"{path}, line {number}: no JSON object; is this a metrics.jsonl of rlad train?")
    return rows


def learning_curve(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    path: str | Path,
    metric: str = "accuracy",
    title: str = "",
    window: int = 5,
) -> None:
    """Draw `metric` over steps and write it to `path` (.png or .svg).

    runs: label -> the metrics of one or more seeds. A line is the mean over seeds of the mean over `window` steps; the
    band is its 95 % interval over seeds (Student's t), drawn from two seeds on.
    """
    from rlad.evaluation.metrics import mean_interval

    points = []
    for label, seeds in runs.items():
        smooth = [
            smoothed([(row["step"], row[metric]) for row in rows if row.get(metric) is not None], window)
            for rows in seeds
        ]
        for step in sorted(set.intersection(*(set(each) for each in smooth)) if smooth else ()):
            mean, low, high = mean_interval([each[step] for each in smooth])
            limits = {"low": low, "high": high} if math.isfinite(low) else {}
            points.append({"x": step, "y": mean, "label": label, **limits})
    if not points:
        raise RladError(f"there is nothing to draw: no row has both a step and {metric!r}")
    save(band(points, "optimiser step", metric, list(runs), title), path)


def band(
    points: Sequence[Mapping[str, Any]], x: str, y: str, labels: Sequence[str], title: str = "", log: bool = False
) -> Any:
    """A chart of lines with bands. points: x, y, label, and low and high where there is an interval. x, y: titles.
    log: a logarithmic x axis, to base 2."""
    import altair as alt

    scale = alt.Scale(type="log", base=2) if log else alt.Scale()
    legend = alt.Legend(symbolOpacity=1)  # as the line, not as the band
    base = alt.Chart(alt.Data(values=list(points))).encode(
        x=alt.X("x:Q", title=x, scale=scale), color=alt.Color("label:N", title=None, sort=list(labels), legend=legend)
    )
    line = base.mark_line(strokeWidth=2).encode(y=alt.Y("y:Q", title=y, scale=alt.Scale(zero=False)))
    area = base.transform_filter("isValid(datum.low)").mark_area(opacity=0.15).encode(y="low:Q", y2="high:Q")
    return (area + line).properties(width=560, height=320, title=title)


def save(chart: Any, path: str | Path) -> None:
    """Write a chart (.png or .svg), in full or not at all. Makes the folder."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}-{target.name}")  # the ending says the format
    chart.save(str(temporary), **({"scale_factor": 2} if target.suffix == ".png" else {}))
    temporary.replace(target)


def smoothed(points: Sequence[tuple[int, float]], window: int) -> dict[int, float]:
    """Trailing means: the value at a step never knows what came after it."""
    values = [value for _, value in points]
    return {
        step: math.fsum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window)
        for i, (step, _) in enumerate(points)
    }
