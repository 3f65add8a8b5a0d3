"""One self-contained HTML file of one or more runs: nothing is fetched, nothing that a model wrote is markup."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlad import __version__
from rlad.errors import RladError
from rlad.files import whole_file
from rlad.report import words as w
from rlad.report.pack import Words, brief, packed
from rlad.report.runs import Run, curves, header, read_runs, result, result_words
from rlad.report.view import Figures, read_steps

FOLDER = Path(__file__).parent / "page"
MEGABYTE = 1_000_000
MOST = 8.0  # megabytes of a page, unless more are asked for


@dataclass(frozen=True)
class Written:
    """What a page holds: its size in bytes, and the rollouts in it and in the records."""

    size: int
    shown: int
    recorded: int


def write_report(folders: Sequence[str | Path], path: str | Path, megabytes: float = MOST) -> Written:
    """Write the report of the runs in `folders` to `path`, of at most so many megabytes.

    Where the records of a run do not fit, evenly spaced updates are kept, and the page says how much was left out.
    Raises RladError for a folder without a run, records that cannot be read, and a limit below what the page itself
    takes.
    """
    if not 0 < megabytes < math.inf:
        raise RladError(f"the limit of the page must be a finite number of megabytes above 0, not {megabytes}")
    html, shown, recorded = rendered(read_runs(folders), int(megabytes * MEGABYTE))
    with whole_file(path) as file:
        file.write(html)
    return Written(len(html), shown, recorded)


def rendered(runs: Sequence[Run], limit: int) -> tuple[bytes, int, int]:
    """(the page, rollouts in it, rollouts in the records)."""
    shared = Words()
    views: list[dict[str, Any]] = []
    packs: list[dict[int, str]] = []
    for number, run in enumerate(runs):
        view, pack = _run(number, run, shared)
        views.append(view)
        packs.append(pack)
    base = len(_html(_index(runs, views, shared), []))
    room = limit - base - 200 * sum(len(pack) for pack in packs)
    if room < 0:
        raise RladError(f"the page takes {base / MEGABYTE:.1f} MB without any record: allow more, or name fewer runs")
    blocks, shown, recorded = [], 0, 0
    for number, (run, view, pack) in enumerate(zip(runs, views, packs, strict=True)):
        kept = chosen({step: len(text) for step, text in pack.items()}, room // len(runs))
        counts = view.pop("counts")
        view["left"] = left_out(run, counts, kept)
        for step in view["steps"]:
            step["here"] = int(step["n"] in kept)
        shown, recorded = shown + sum(counts[step] for step in kept), recorded + sum(counts.values())
        blocks += [(f"p-{number}-{step}", pack[step]) for step in kept]
    return _html(_index(runs, views, shared), blocks), shown, recorded


def chosen(sizes: dict[int, int], room: int) -> list[int]:
    """The updates that are shown: all where they fit, else every second, third, ..., with the last where it fits too;
    none where not even one does."""
    steps = sorted(sizes)
    for apart in range(1, len(steps) + 1):
        every = steps[::apart]
        for kept in ({*every, steps[-1]}, set(every)):
            if sum(sizes[step] for step in kept) <= room:
                return sorted(kept)
    return []


def left_out(run: Run, counts: dict[int, int], kept: Sequence[int]) -> str:
    """What of the records is in the page, in words."""
    total, here = sum(counts.values()), sum(counts[step] for step in kept)
    if not run.parts:
        return w.NO_RECORDS
    if here == total:
        return f"All {total} recorded rollouts of {len(counts)} updates are in this page."
    return (
        f"{here} of {total} recorded rollouts are in this page, those of {len(kept)} of {len(counts)} recorded "
        f"updates, evenly spaced; {total - here} rollouts were left out to keep the page small, and stay in "
        f"{run.folder / 'records'} (rlad report --max-mb, rlad show)."
    )


def _run(number: int, run: Run, shared: Words) -> tuple[dict[str, Any], dict[int, str]]:
    """(what the page knows of a run at once, its updates packed)."""
    vocabulary, figures = run.vocabulary(), Figures()
    steps: list[dict[str, Any]] = []
    pack: dict[int, str] = {}
    counts: dict[int, int] = {}
    worst = 0.0
    for step in read_steps(run):
        figures.add(step)
        counts[step.number] = sum(1 for _ in step.rollouts)
        worst = max(worst, step.mismatch or 0.0)
        steps.append({"n": step.number, "of": step.about.get("groups"), "groups": brief(step)})
        pack[step.number] = packed(step, number, vocabulary, shared)
    view = {
        "name": run.name,
        "method": run.method.get("name", "?"),
        "header": header(run),
        "recipe": run.recipe_text,
        "result": [result_words(row) for row in result(run)],
        "curves": curves(run),
        "figures": [asdict(figure) for figure in figures.lines()] if steps else [],
        "kept": run.about.get("kept", ""),
        "mismatch": worst,
        "steps": steps,
        "counts": counts,
    }
    return view, pack


def _index(runs: Sequence[Run], views: Sequence[dict[str, Any]], shared: Words) -> dict[str, Any]:
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "runs": views,
        "words": shared.shown,
        "channels": [asdict(channel) for channel in w.CHANNELS],
        "filters": [[name, *texts] for name, texts in w.FILTERS.items()],
        "units": {title: unit for _, title, unit in w.CURVES},
        "token": w.TOKEN,
        "branches": w.BRANCHES,
        "clamp": [w.CLAMPED[False], w.CLAMPED[True]],
        "masked": w.MASKED,
        "untrained": w.NOT_TRAINED,
        "flat": w.FLAT,
        "stops": w.STOPS,
        "dropped": w.DROPPED,
        "verdicts": [w.VERDICTS[False], w.VERDICTS[True], w.VERDICTS[None]],
    }


def _html(index: dict[str, Any], blocks: Sequence[tuple[str, str]]) -> bytes:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    text = environment.get_template("report.html").render(
        title=", ".join(run["name"] for run in index["runs"]),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        index=as_data(index),
        blocks=blocks,
    )
    return text.encode("utf-8", "replace")  # a lone surrogate, in a name, has no bytes


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def as_data(value: Any) -> str:
    """JSON that can stand inside of a <script>: no text in it can end the element or begin another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
