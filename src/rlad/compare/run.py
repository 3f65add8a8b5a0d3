"""Run what is missing of a study: the sweeps first, then every cell with the point that won, some at a time."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rlad.compare.cells import Finished, Results
from rlad.compare.study import Cell, Row, Study, digest
from rlad.compare.worker import INTERRUPTED, cell_problems, environment_of, make_job, run_job
from rlad.errors import RladError
from rlad.files import check_writable

Say = Callable[[str], None]
_COMMIT = threading.Lock()


@dataclass(frozen=True)
class Options:
    """results, runs: folders. workers: processes at a time; 0 runs the cells in this one. only: cells with this in
    their name. seeds: cells of these seeds alone (trials have a seed of their own, and are always run); () for all of
    the study. commit: put each finished cell into git."""

    results: str = "results"
    runs: str = "runs"
    workers: int = 1
    threads: int = 1
    only: str = ""
    seeds: tuple[int, ...] = ()
    commit: bool = False


def chosen_row(study: Study, row: Row, results: Results) -> Row | None:
    """The row with the point of its sweep that has the highest accuracy on the validation split (the first of equals);
    None while a trial is missing."""
    if row.chosen is not None:
        return row
    found = [results.find(cell) for cell in study.trials(row)]
    scores = [None if each is None else each.accuracy("after") for each in found]
    if any(score is None for score in scores):
        return None
    best = max(range(len(scores)), key=lambda i: (scores[i], -i))
    return row.at(row.points[best])


def missing(study: Study, results: Results, only: str = "", seeds: Sequence[int] = ()) -> tuple[list[Cell], list[Cell]]:
    """(trials, cells) that are not there yet; cells of a row whose trials are missing are not among them.

    Raises RladError for a seed or a name that the study does not have.
    """
    if not any(only in row.label for row in study.rows):
        raise RladError(f"{study.path} has no cell with {only!r} in its name: {', '.join(r.label for r in study.rows)}")
    if other := sorted(set(seeds) - set(study.spec.seeds)):
        raise RladError(f"{study.path} has no seed {other[0]}: its seeds are {', '.join(map(str, study.spec.seeds))}")
    trials: dict[str, Cell] = {}
    cells: list[Cell] = []
    for row in study.rows:
        if only not in row.label:
            continue
        chosen = chosen_row(study, row, results)
        if chosen is None:
            trials |= {cell.digest: cell for cell in study.trials(row) if results.find(cell) is None}
        else:
            wanted = [cell for cell in study.cells(chosen) if not seeds or cell.seed in seeds]
            cells += [cell for cell in wanted if results.find(cell) is None]
    by_seed = {seed: i for i, seed in enumerate(study.spec.seeds)}
    return list(trials.values()), sorted(cells, key=lambda cell: by_seed[cell.seed])


def run_study(study: Study, options: Options, say: Say) -> int:
    """Run what is missing. Returns 0, 1 when a cell failed, 130 when it was stopped; what is finished stays."""
    results = Results(options.results, study.name)
    failed = 0
    missing(study, results, options.only, options.seeds)  # a wrong seed is said before anything is taken over
    for folder in (options.results, options.runs):
        check_writable(folder)
    _check_surroundings(study, results, options)
    _adopt(study, results, options, say)
    for phase in ("trials", "cells"):
        todo = missing(study, results, options.only, options.seeds)[phase == "cells"]
        if todo:
            say(f"{phase} to run: {len(todo)}, {max(1, options.workers)} at a time")
        statuses = _run_all(study, todo, results, options, say)
        if INTERRUPTED in statuses:
            say(f"stopped; go on with: rlad compare {study.path}")
            return INTERRUPTED
        failed += sum(status != 0 for status in statuses)
    return 1 if failed else 0


def _check_surroundings(study: Study, results: Results, options: Options) -> None:
    """Raises RladError for what a missing cell would stumble over, and not when the cells before it have run."""
    checked: set[str] = set()
    for row in study.rows:
        if options.only not in row.label:
            continue
        chosen = chosen_row(study, row, results)
        for cell in study.trials(row) if chosen is None else study.cells(chosen):
            known = digest({**cell.recipe, "seed": 0})  # seeds change nothing of it
            if known in checked or results.find(cell) is not None:
                continue
            checked.add(known)
            if problems := cell_problems(cell):
                more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
                raise RladError(f"{study.path}: {cell.label}: {problems[0]}{more}")


def _adopt(study: Study, results: Results, options: Options, say: Say) -> None:
    """Take over what another study has run, so that this one's folder is whole."""
    for row in study.rows:
        chosen = chosen_row(study, row, results)
        for cell in [*study.trials(row), *([] if chosen is None else study.cells(chosen))]:
            _taken(study, cell, results, options, say)


def _taken(study: Study, cell: Cell, results: Results, options: Options, say: Say) -> bool:
    """Whether the cell was there elsewhere, and is now here."""
    taken = results.adopt(cell)
    if taken is None:
        return False
    say(f"{cell.label}, seed {cell.seed}: taken from {taken.data['from']}")
    if options.commit:
        _commit(study, taken.path, say)
    return True


def _run_all(study: Study, cells: Sequence[Cell], results: Results, options: Options, say: Say) -> list[int]:
    stopped = threading.Event()

    def run(cell: Cell) -> int:
        if stopped.is_set():
            return INTERRUPTED
        if _taken(study, cell, Results(options.results, study.name), options, say):  # finished meanwhile, elsewhere
            return 0
        started = time.monotonic()
        status = _run_one(study, cell, results, options)
        if status == INTERRUPTED:
            stopped.set()
        elif status == 0:
            found = results.find(cell)
            assert found is not None
            say(_line(found, time.monotonic() - started))
            if options.commit:
                _commit(study, found.path, say)
        else:
            say(f"failed: {cell.label}, seed {cell.seed}: {_last_line(_log(results, cell, options))}")
        return status

    if options.workers == 0:  # not in a thread: training listens to signals
        return [run(cell) for cell in cells]
    with ThreadPoolExecutor(options.workers) as pool:
        futures = [pool.submit(run, cell) for cell in cells]
        try:
            return [future.result() for future in futures]
        except KeyboardInterrupt:  # the workers got it too, and end at their next checkpoint
            stopped.set()
            return [INTERRUPTED]


def _run_one(study: Study, cell: Cell, results: Results, options: Options) -> int:
    words = ["rlad", "compare", str(study.path), "--only", cell.label]
    command = shlex.join(words if cell.trial else [*words, "--seed", str(cell.seed)])
    job, log = make_job(cell, results, options.runs, command), _log(results, cell, options)
    path = log.with_suffix(".job.json")
    job.write(path)
    if options.workers == 0:
        with log.open("a", encoding="utf-8") as file:
            try:
                return run_job(job, lambda line: print(line, file=file, flush=True))
            except (RladError, OSError) as error:
                print(f"error: {error}", file=file)
                return 1
    with log.open("a", encoding="utf-8") as file:
        worker = subprocess.Popen(
            [sys.executable, "-m", "rlad.compare.worker", str(path)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(environment_of(options.threads)),
        )
        status = worker.wait()
    return INTERRUPTED if status in (INTERRUPTED, -2) else abs(status)


def _log(results: Results, cell: Cell, options: Options) -> Path:
    return Path(options.runs) / results.path(cell).parent.name / f"{cell.slug}.log"


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    return f"{next((line for line in reversed(lines) if line.strip()), 'nothing was printed')} (see {path})"


def _line(cell: Finished, seconds: float) -> str:
    before, after = cell.accuracy("before"), cell.accuracy("after")
    gain = "" if after is None else f": {after:.1%}" if before is None else f": {before:.1%} -> {after:.1%}"
    return f"{cell.data['cell']}, seed {cell.seed}{gain} in {seconds:.0f} s"


def _commit(study: Study, path: Path, say: Say) -> None:
    """Only this file, whatever else is changed or staged. A study goes on where git does not want it."""
    message = f"{study.name}: {path.stem}"
    done: subprocess.CompletedProcess[str] | None = None
    with _COMMIT:
        for words in (["add", "--", path.name], ["commit", "-q", "-m", message, "--", path.name]):
            for _ in range(20):  # git's lock may be somebody else's for a moment
                done = subprocess.run(["git", *words], cwd=path.parent, capture_output=True, text=True, check=False)
                if done.returncode == 0 or "index.lock" not in done.stderr:
                    break
                time.sleep(1)
    if done is not None and done.returncode:
        say(f"not committed: {path}: {' '.join((done.stderr or done.stdout).split())}")
