"""The pictures of a study, each as PNG and SVG: learning by step and by the clock, Pass@k, difficulty, the values
of a grid, tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlad.compare.numbers import TOKENS, Group, accuracy_rows, numeric_grid, pass_rows
from rlad.evaluation.metrics import mean_interval
from rlad.report.curve import band, learning_curve, save, smoothed

SUFFIXES = (".png", ".svg")
LEAST_VALUES = 3
VALUES: dict[str, Callable[[Group], list[float]]] = {
    "held-out accuracy": lambda group: group.values("after"),
    "training accuracy, second half": Group.training,
}
GRID = 40  # places at which the curves of seeds by the clock are read


def draw(groups: Sequence[Group], folder: Path, baseline: str = "") -> list[str]:
    """Write every chart that the cells have something for; their names, without the suffix. baseline: a label."""
    made = []
    runs = {group.name: [cell.curve for cell in group.cells] for group in groups}
    runs = {label: curves for label, curves in runs.items() if any(_has(rows, "accuracy") for rows in curves)}
    if runs:
        for suffix in SUFFIXES:
            learning_curve(runs, folder / f"by-step{suffix}", title="Training accuracy by step")
        made.append("by-step")
        chart = by_clock(runs)
        made += _save(chart, folder, "by-clock")
    made += _save(pass_chart(groups), folder, "pass-at-k")
    made += _save(difficulty_chart(groups), folder, "by-difficulty")
    made += _save(value_chart(groups, baseline), folder, "by-value")
    made += _save(token_chart(groups), folder, "tokens")
    return made


def _save(chart: Any, folder: Path, name: str) -> list[str]:
    if chart is None:
        return []
    for suffix in SUFFIXES:
        save(chart, folder / f"{name}{suffix}")
    return [name]


def _has(rows: Sequence[Mapping[str, Any]], metric: str) -> bool:
    return any(row.get(metric) is not None for row in rows)


def by_clock(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], metric: str = "accuracy") -> Any:
    """Training accuracy over seconds of training: at each time a seed's value is the last that it had reached. A line
    ends where its fastest seed does. None where the cells do not know their seconds."""
    points: list[dict[str, Any]] = []
    labels: list[str] = []
    for label, seeds in runs.items():
        curves = [clock_curve(rows, metric) for rows in seeds if _has(rows, metric) and _has(rows, "seconds")]
        if not curves:
            continue
        first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
        if last < first:  # a seed had ended before another had begun
            continue
        label += "" if len(curves) == len(seeds) else f" ({len(curves)} of {len(seeds)} seeds)"
        labels.append(label)
        for i in range(GRID + 1):
            seconds = first + (last - first) * i / GRID
            mean, low, high = mean_interval([_at(curve, seconds) for curve in curves])
            points.append({"x": seconds, "y": mean, "label": label, **_limits(low, high)})
    return None if not points else band(points, "seconds of training", metric, labels, "Training accuracy by time")


def clock_curve(rows: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    """(seconds, smoothed value) of the steps that have both."""
    known = [row for row in rows if row.get(metric) is not None and row.get("seconds") is not None]
    values = smoothed([(i, row[metric]) for i, row in enumerate(known)], 5)
    return [(row["seconds"], values[i]) for i, row in enumerate(known)]


def _at(curve: Sequence[tuple[float, float]], seconds: float) -> float:
    """The last value that was there."""
    return [value for when, value in curve if when <= seconds + 1e-9][-1]


def pass_chart(groups: Sequence[Group]) -> Any:
    """Pass@k over k, a line a group, the student's among them."""
    rows = pass_rows(groups)
    points = [
        {"x": k, "y": mean, "label": row["label"], **_limits(low, high)}
        for row in rows
        for k, (mean, low, high) in row["pass_at"].items()
    ]
    if not points:
        return None
    return band(points, "k", "Pass@k", [row["label"] for row in rows], "Pass@k on held-out problems", log=True)


def difficulty_chart(groups: Sequence[Group]) -> Any:
    """Accuracy by difficulty, a bar a group, with its 95 % interval over seeds."""
    import altair as alt

    rows = accuracy_rows(groups)
    points = [
        {"difficulty": name, "label": row["label"], "accuracy": mean, **_limits(low, high)}
        for row in rows
        for name, (mean, low, high) in row["by_difficulty"].items()
    ]
    if not points:
        return None
    order = [row["label"] for row in rows]
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("difficulty:N", title="difficulty", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("label:N", sort=order),
        color=alt.Color("label:N", title=None, sort=order),
    )
    bars = base.mark_bar().encode(y=alt.Y("accuracy:Q", title="accuracy", scale=alt.Scale(domain=[0, 1])))
    rules = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(color="black")
        .encode(y="low:Q", y2="high:Q", color=alt.value("black"))
    )
    return (bars + rules).properties(width=560, height=320, title="Accuracy by difficulty")


def value_chart(groups: Sequence[Group], baseline: str = "") -> Any:
    """Accuracy over the number that a grid varies, held out and in training (`numbers.training_accuracy`), two panels
    for each grid of at least LEAST_VALUES: a dot a seed, a line through the means, and dashed the baseline's mean.
    None where no grid varies a number alone."""
    import altair as alt

    base = next((group for group in groups if group.label == baseline), None)
    panels = []
    for (family, key), found in _numeric_grids(groups).items():
        for title, measure in VALUES.items():
            dots = [{"x": x, "y": value} for x, group in found for value in measure(group)]
            means = [{"x": x, "y": math.fsum(v) / len(v)} for x, group in found if (v := measure(group))]
            if len(means) < LEAST_VALUES:
                continue
            x = alt.X("x:Q", title=key, scale=alt.Scale(zero=False))
            y = alt.Y("y:Q", title=title, scale=alt.Scale(zero=False))
            layers = [
                alt.Chart(alt.Data(values=means)).mark_line().encode(x=x, y=y),
                alt.Chart(alt.Data(values=dots)).mark_point(filled=True, size=40, opacity=0.7).encode(x=x, y=y),
            ]
            theirs = [] if base is None else measure(base)
            if theirs:
                mean = alt.Data(values=[{"y": math.fsum(theirs) / len(theirs)}])
                layers.append(alt.Chart(mean).mark_rule(strokeDash=[4, 4], color="gray").encode(y=y))
            heading = family + (f" (dashed: {baseline})" if theirs else "")
            panels.append(alt.layer(*layers).properties(width=360, height=260, title=heading))
    return alt.concat(*panels, columns=2) if panels else None


def _numeric_grids(groups: Sequence[Group]) -> dict[tuple[str, str], list[tuple[float, Group]]]:
    """(family, key) -> (value, group) in the order of the values."""
    found: dict[tuple[str, str], list[tuple[float, Group]]] = {}
    for group in groups:
        if (place := numeric_grid(group)) is not None:
            found.setdefault(place[:2], []).append((place[2], group))
    return {name: sorted(each, key=lambda pair: pair[0]) for name, each in found.items()}


def token_chart(groups: Sequence[Group]) -> Any:
    """What was logged of tokens over training, a panel a metric, means over seeds."""
    import altair as alt

    points = []
    for column, metric in TOKENS.items():
        for group in groups:
            curves = [
                smoothed([(row["step"], row[metric]) for row in cell.curve if row.get(metric) is not None], 5)
                for cell in group.cells
                if _has(cell.curve, metric)
            ]
            for step in sorted(set.intersection(*map(set, curves))) if curves else ():
                value = math.fsum(curve[step] for curve in curves) / len(curves)
                sign = -1 if metric == "rlad/student_minus_teacher" else 1
                points.append({"step": step, "value": sign * value, "label": group.name, "metric": column})
    if not points:
        return None
    order = [group.name for group in groups if any(point["label"] == group.name for point in points)]
    line = alt.Chart(alt.Data(values=points)).mark_line(strokeWidth=1.5).encode(
        x=alt.X("step:Q", title="optimiser step"),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        color=alt.Color("label:N", title=None, sort=order),
    )  # fmt: skip
    panels = line.properties(width=260, height=150).facet(
        alt.Facet("metric:N", title=None, sort=list(TOKENS)), columns=3
    )
    return panels.resolve_scale(y="independent").properties(title="Tokens over training")


def _limits(low: float, high: float) -> dict[str, float]:
    """Of a rate, held in [0, 1]; none where one seed has no interval."""
    return {"low": max(low, 0.0), "high": min(high, 1.0)} if math.isfinite(low) and math.isfinite(high) else {}
