"""One cell, in a process of its own: `python -m rlad.compare.worker PID < JOB.json`, which `rlad compare` starts.

PID: its own, with which the worker ends too.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rlad import layout
from rlad.compare.cells import Results, finished_data, write_cell
from rlad.compare.identity import differences, digest, evaluated_by
from rlad.compare.study import Cell, rollouts_a_step
from rlad.errors import RladError
from rlad.files import FileLock, whole_file

INTERRUPTED = 130
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A cell and where it goes. folder: the run's own. shared: evaluations of untrained models, of all cells."""

    cell: Cell
    result: str
    folder: str
    shared: str
    command: str

    def to_json(self) -> str:
        """To be read again in another process."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Job:
        """What `to_json` made."""
        data = json.loads(text)
        return cls(**{**data, "cell": Cell(**data["cell"])})

    @property
    def path(self) -> Path:
        """Where the job of the last run in the folder is kept, to know whose traces lie beside it."""
        return Path(f"{self.folder}.job.json")


def make_job(cell: Cell, results: Results, runs: str | Path, command: str) -> Job:
    """Its folder below `runs`: the study's, or the sweeps'."""
    path = results.path(cell)
    return Job(cell, str(path), str(Path(runs) / path.parent.name / cell.slug), str(Path(runs) / "before"), command)


def run_job(job: Job, say: Say) -> int:
    """Run the cell and write its file; does nothing where that is there. Returns 0, or 130 when it was stopped.

    Goes on from the run's last checkpoint where there is one. Whoever runs the same cell meanwhile, in this study or
    another, waits, and takes it over. Raises RladError where a cell of another recipe runs in the folder.
    """
    from rlad.trainer.environment import source_commit

    commit = source_commit()  # now: the source may have moved on when training ends
    folder, result = Path(job.folder), Path(job.result)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(Path(job.shared).with_name("locks") / f"{job.cell.digest}.lock"):
        results = Results(result.parents[1], result.parent.name)
        if results.adopt(job.cell) is not None or results.find(job.cell) is not None:
            return 0
        with _alone(folder):
            _set_other_aside(job, say)
            with whole_file(job.path) as file:
                file.write(job.to_json().encode())
            run = _evaluate if job.cell.kind == "evaluate" else _train
            data = run(job, commit, say)
        if data is None:
            return INTERRUPTED
        write_cell(result, data)
    return 0


def cell_problems(cell: Cell) -> list[str]:
    """A sentence for each thing that would stop the cell on this machine, as far as it shows without a model."""
    from rlad.trainer.preflight import evaluation_problems, found_problems, sft_problems

    if cell.kind == "sft":
        from rlad.offline.config import SftRecipe

        return sft_problems(SftRecipe.from_mapping(cell.recipe), here=True)
    from rlad.trainer.config import Recipe

    recipe = Recipe.from_mapping(cell.recipe)
    return evaluation_problems(recipe) if cell.kind == "evaluate" else found_problems(recipe, here=True)


def _train(job: Job, commit: str | None, say: Say) -> dict[str, Any] | None:
    """train or sft: the run of a recipe, as `rlad train` and `rlad sft` make it; None when it was stopped."""
    from rlad.report.curve import read_metrics

    cell, folder = job.cell, Path(job.folder)
    known = Path(job.shared) / f"{digest(evaluated_by(cell.recipe))}.json"
    asked = None
    finished = (folder / layout.SUMMARY).is_file()
    if finished:
        say(f"{folder} is finished: only its result was missing")
    else:
        recipe = _recipe(cell, folder)
        asked = _asked(recipe)
        if _run_recipe(cell, recipe, folder, _prepare(folder, known, asked, say), say) == INTERRUPTED:
            return None
    summary = json.loads((folder / layout.SUMMARY).read_text(encoding="utf-8"))
    before, after = _loaded(folder / layout.BEFORE), _loaded(folder / layout.AFTER)
    if not finished:
        summary = _with_commits(summary, commit)
        if before is not None and _loaded(known, asked) is None:
            before.save(known)
    about = _about(job) | {"rollouts": summary["steps"] * rollouts_a_step(cell.kind, cell.recipe)}
    return finished_data(cell, summary, read_metrics(folder / layout.METRICS), before, after, about)


def _about(job: Job) -> dict[str, Any]:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"seed": job.cell.seed, "command": job.command, "finished": when}


def _with_commits(found: Mapping[str, Any], start: str | None) -> dict[str, Any]:
    """What is kept of a run, with the commit that it began at; where that of its end is another, with both."""
    end = found.get("commit")
    return {**found, "commit": start, "commit_at_end": end} if start and start != end else dict(found)


def _recipe(cell: Cell, folder: Path) -> Any:
    """Of `rlad sft` or `rlad train`."""
    data = {**cell.recipe, "output": str(folder)}
    if cell.kind == "sft":
        from rlad.offline.config import SftRecipe

        return SftRecipe.from_mapping(data)
    from rlad.trainer.config import Recipe

    return Recipe.from_mapping(data)


def _run_recipe(cell: Cell, recipe: Any, folder: Path, resume: bool, say: Say) -> int:
    if cell.kind == "sft":
        from rlad.offline.sft import train_offline

        return train_offline(recipe, resume=resume, emit=say)
    from rlad.trainer.run import train

    if cell.seconds is None:
        return train(recipe, resume=resume, emit=say)
    from rlad.compare.clock import StopAfter

    return train(recipe, resume=resume, emit=say, callbacks=[StopAfter(cell.seconds, folder / layout.METRICS)])


def _set_other_aside(job: Job, say: Say) -> None:
    """A run of another recipe may stand where this cell's goes: it is kept, under another name, and so are its traces,
    which no other recipe can go on from. A run that was killed while it made them has no recipe yet, but its job."""
    from rlad.trainer.session import set_aside

    folder = Path(job.folder)
    written = folder / layout.RECIPE
    if not written.is_file() and not job.path.is_file():
        return
    try:
        earlier = Job.from_json(job.path.read_text(encoding="utf-8")).cell if job.path.is_file() else job.cell
        if written.is_file():
            earlier = replace(earlier, recipe=yaml.safe_load(written.read_text(encoding="utf-8")))
        theirs = earlier.identity
    except (RladError, yaml.YAMLError, ValueError, KeyError, TypeError):
        theirs = {}
    if not differences(job.cell.identity, theirs):
        return
    set_aside(folder, say)
    traces = Path(f"{folder}-traces")  # where a recipe keeps them that does not say
    if traces.is_dir():
        aside = traces.with_name(f"{traces.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        traces.rename(aside)
        say(f"{traces} were made for another recipe: they are now {aside}")


def _prepare(folder: Path, known: Path, asked: Sequence[str] | None, say: Say) -> bool:
    """Whether there is a checkpoint to go on from. Else what a killed run left is taken away, but its evaluation.

    asked: the problems that there are now. An evaluation of others is not taken over: the file that they are read from
    may have changed, and the two evaluations could not be compared when training is over.
    """
    from rlad.trainer.saving import last_checkpoint

    for path in (folder / layout.BEFORE, folder / layout.AFTER, known):
        if path.is_file() and _loaded(path, asked) is None:
            say(f"{path} is not whole, or not of the problems that the task has now: it is made again")
            path.unlink(missing_ok=True)
    if (folder / layout.RECIPE).is_file() and last_checkpoint(folder / layout.CHECKPOINTS) is not None:
        return True
    if _loaded(known) is None and (found := _loaded(folder / layout.BEFORE)) is not None:
        found.save(known)
    shutil.rmtree(folder, ignore_errors=True)
    if (found := _loaded(known)) is not None:
        found.save(folder / layout.BEFORE)
    return False


def _asked(recipe: Any) -> list[str] | None:
    """The ids of the problems that the recipe evaluates on, as the task has them now; None where it does not."""
    from rlad.evaluation.problems import problem_id
    from rlad.tasks import load_task

    spec = recipe.evaluate
    if spec is None:
        return None
    return [problem_id(each) for each in load_task(recipe.task).evaluation(spec.split, spec.puzzles)]


def _loaded(path: Path, asked: Sequence[str] | None = None) -> Any:
    """The Evaluation in a file; None where there is none, or half of one, or one of other problems than are asked."""
    from rlad.evaluation.pairs import check_same_problems
    from rlad.evaluation.run import Evaluation

    try:
        found = Evaluation.load(path) if path.is_file() else None
        if found is not None and asked is not None:
            check_same_problems([problem.problem for problem in found.problems], asked)
    except RladError:
        return None
    return found


def _evaluate(job: Job, commit: str | None, say: Say) -> dict[str, Any] | None:
    """The model of the recipe, as it is."""
    from rlad.evaluation.run import evaluate
    from rlad.tasks import load_task
    from rlad.trainer.environment import environment
    from rlad.trainer.session import device_of, load_student

    folder = Path(job.folder)
    recipe = _recipe(job.cell, folder)
    spec, arguments = recipe.evaluate, recipe.all_arguments()
    assert spec is not None
    model, tokenizer = load_student(recipe.model)
    task = load_task(recipe.task)
    started = time.monotonic()
    result = evaluate(
        model.to(device_of(recipe.trainer)).eval(),
        tokenizer,
        list(task.evaluation(spec.split, spec.puzzles)),
        task,
        samples=spec.samples,
        temperature=spec.temperature,
        top_p=spec.top_p,
        max_new_tokens=spec.max_new_tokens or arguments["max_completion_length"],
        seed=recipe.seed,
        batch_size=spec.batch_size,
        chat_template_kwargs=arguments["chat_template_kwargs"],
    )
    result.save(folder / layout.AFTER)
    say(result.table())
    summary = {"seconds": time.monotonic() - started, **_with_commits(environment(), commit)}
    return finished_data(job.cell, summary, [], None, result, _about(job))


def _locked(path: Path) -> FileLock:
    """Alone with this cell, on this machine; a process that dies lets go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def _alone(folder: Path) -> FileLock:
    """Alone in a run's folder, which is that of a label and a seed, whatever their recipe. Raises RladError."""
    try:
        return FileLock(f"{folder}.lock", wait=False)
    except BlockingIOError:
        raise RladError(
            f"{folder}: a cell of this name and another recipe is running there: wait for its end, or give the "
            "study's file another name"
        ) from None


def _end_with_parent(parent: int) -> None:
    """A study that was killed must not leave runs behind that the next one would make twice: not either where it was
    killed before this process had come so far."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    """Exit status 0: there; 1: failed, with one line why; 130: stopped."""
    _end_with_parent(int(arguments[0]))
    try:
        return run_job(Job.from_json(sys.stdin.read()), lambda line: print(line, flush=True))
    except (RladError, OSError) as error:
        print(f"error: {error}", flush=True)
        return 1


def environment_of(threads: int) -> Mapping[str, str]:
    """Variables that keep a worker to so many threads: idle ones spin where cores are shared."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
