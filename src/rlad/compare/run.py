"""Run what is missing of a study: the sweeps first, then every cell with the point that won, some at a time."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rlad.compare.cells import Finished, Results
from rlad.compare.identity import digest
from rlad.compare.study import Cell, Row, Study
from rlad.compare.worker import INTERRUPTED, Job, cell_problems, environment_of, make_job, run_job
from rlad.errors import RladError
from rlad.files import check_writable

Say = Callable[[str], None]
_COMMIT = threading.Lock()


@dataclass(frozen=True)
class Options:
    """results, runs: folders. workers: processes at a time; 0 runs the cells in this one. only: see `selected`.
    seeds: cells of these seeds alone (trials have a seed of their own, and are always run); () for all of the study.
    commit: put each finished cell into git."""

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


def selected(study: Study, only: str) -> list[Row]:
    """The row that is called exactly so, or else those with this in their name: one row's name may be part of
    another's. Raises RladError where there is none."""
    exact = [row for row in study.rows if row.label == only]
    rows = exact or [row for row in study.rows if only in row.label]
    if not rows:
        raise RladError(f"{study.path} has no cell with {only!r} in its name: {', '.join(r.label for r in study.rows)}")
    return rows


def waiting(study: Study, results: Results, only: str = "", seeds: Sequence[int] = ()) -> int:
    """How many cells `missing` leaves out, because their row's point is not chosen yet."""
    rows = [row for row in selected(study, only) if chosen_row(study, row, results) is None]
    return sum(seed in (seeds or study.spec.seeds) for row in rows for seed in study.seeds(row))


def missing(study: Study, results: Results, only: str = "", seeds: Sequence[int] = ()) -> tuple[list[Cell], list[Cell]]:
    """(trials, cells) that are not there yet; cells of a row whose trials are missing are not among them (`waiting`).

    Raises RladError for a seed or a name that the study does not have.
    """
    rows = selected(study, only)
    if other := sorted(set(seeds) - set(study.spec.seeds)):
        raise RladError(f"{study.path} has no seed {other[0]}: its seeds are {', '.join(map(str, study.spec.seeds))}")
    trials: dict[str, Cell] = {}
    cells: list[Cell] = []
    for row in rows:
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
        statuses = _run_all(study, todo, options, say)
        if INTERRUPTED in statuses:
            say(f"stopped; go on with: rlad compare {study.path}")
            return INTERRUPTED
        failed += sum(status != 0 for status in statuses)
    return 1 if failed else 0


def _check_surroundings(study: Study, results: Results, options: Options) -> None:
    """Raises RladError for what a missing cell would stumble over, and not when the cells before it have run."""
    checked: set[str] = set()
    for row in selected(study, options.only):
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
    """Take over what another study has run, so that this one's folder is whole; commit what was finished, and not
    committed, when an earlier call was killed."""
    finished: dict[Path, None] = {}
    for row in study.rows:
        chosen = chosen_row(study, row, results)
        for cell in [*study.trials(row), *([] if chosen is None else study.cells(chosen))]:
            if not _taken(study, cell, results, options, say) and results.find(cell) is not None:
                finished[results.path(cell)] = None
    if options.commit:
        for path in _uncommitted(list(finished)):
            _commit(study, path, say)


def _taken(study: Study, cell: Cell, results: Results, options: Options, say: Say) -> bool:
    """Whether the cell was there elsewhere, and is now here."""
    taken = results.adopt(cell)
    if taken is None:
        return False
    say(f"{cell.label}, seed {cell.seed}: taken from {taken.data['from']}")
    if options.commit:
        _commit(study, taken.path, say)
    return True


def _run_all(study: Study, cells: Sequence[Cell], options: Options, say: Say) -> list[int]:
    stopped = threading.Event()

    def run(cell: Cell) -> int:
        status = INTERRUPTED if stopped.is_set() else _attempt(study, cell, options, say)
        if status == INTERRUPTED:
            stopped.set()
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


def _attempt(study: Study, cell: Cell, options: Options, say: Say) -> int:
    """Run a cell and say what came of it. Whatever it fails of, the others go on."""
    results = Results(options.results, study.name)
    log = _log(results, cell, options)
    said = log.stat().st_size if log.is_file() else 0
    try:
        if _taken(study, cell, results, options, say):  # finished meanwhile, elsewhere
            return 0
        started = time.monotonic()
        status = _run_one(study, cell, results, options)
        if status == 0:
            found = results.find(cell)
            assert found is not None
            say(_line(found, time.monotonic() - started))
            if options.commit:
                _commit(study, found.path, say)
        elif status != INTERRUPTED:
            say(f"failed: {cell.label}, seed {cell.seed}: {_why(log, said)}")
    except (RladError, OSError) as error:  # no log, no result, or one that is no cell
        say(f"failed: {cell.label}, seed {cell.seed}: {error}")
        return 1
    return status


def _run_one(study: Study, cell: Cell, results: Results, options: Options) -> int:
    words = ["rlad", "compare", str(study.path), "--only", cell.row or cell.label]
    command = shlex.join(words if cell.trial else [*words, "--seed", str(cell.seed)])
    job, log = make_job(cell, results, options.runs, command), _log(results, cell, options)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        if options.workers == 0:
            return _run_here(job, file)
        # By a pipe: a file would be the next call's, whose cell of this name may be another.
        worker = subprocess.Popen(
            [sys.executable, "-m", "rlad.compare.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(environment_of(options.threads)),
        )
        worker.communicate(job.to_json().encode())
    return INTERRUPTED if worker.returncode in (INTERRUPTED, -2) else abs(worker.returncode)


def _run_here(job: Job, log: TextIO) -> int:
    """As a worker would. A library's own exception is one cell's failure too."""
    try:
        return run_job(job, lambda line: print(line, file=log, flush=True))
    except (RladError, OSError) as error:
        print(f"error: {error}", file=log)
    except Exception:
        traceback.print_exc(file=log)
    return 1


def _log(results: Results, cell: Cell, options: Options) -> Path:
    return Path(options.runs) / results.path(cell).parent.name / f"{cell.slug}.log"


def _why(path: Path, start: int) -> str:
    """The last error in a log from this byte on, or else its last line: another call may write there too."""
    lines = path.read_bytes()[start:].decode(errors="replace").split("\n")
    printed = [line for line in lines if line.strip()] or ["nothing was printed"]
    errors = [line for line in printed if line.startswith("error: ")]
    return f"{(errors or printed)[-1]} (see {path})"


def _line(cell: Finished, seconds: float) -> str:
    before, after = cell.accuracy("before"), cell.accuracy("after")
    gain = "" if after is None else f": {after:.1%}" if before is None else f": {before:.1%} -> {after:.1%}"
    return f"{cell.data['cell']}, seed {cell.seed}{gain} in {seconds:.0f} s"


def _uncommitted(paths: Sequence[Path]) -> list[Path]:
    """Those that git does not know, or knows otherwise; none where it has nothing to say."""
    found = []
    for folder in {path.parent: None for path in paths}:
        names = [path.name for path in paths if path.parent == folder]
        words = ["git", "status", "--porcelain", "-z", "--untracked-files=all", "--", *names]
        said = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False).stdout
        changed = {Path(line[3:]).name for line in said.split("\0")}  # "?? results/STUDY/CELL.json"
        found += [folder / name for name in names if name in changed]
    return found


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
