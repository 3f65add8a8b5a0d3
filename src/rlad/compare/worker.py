"""One cell, in a process of its own: `python -m rlad.compare.worker JOB.json`, which `rlad compare` starts."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from rlad.compare.cells import Results, finished_data, write_cell
from rlad.compare.study import Cell, differences, digest, evaluated_by, normal, rollouts_a_step
from rlad.errors import RladError

BEFORE = "evaluation-before.json"
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

    def write(self, path: Path) -> None:
        """To be read again in another process."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """What `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**data, "cell": Cell(**data["cell"])})


def make_job(cell: Cell, results: Results, runs: str | Path, command: str) -> Job:
    """Its folder below `runs`: the study's, or the sweeps'."""
    path = results.path(cell)
    return Job(cell, str(path), str(Path(runs) / path.parent.name / cell.slug), str(Path(runs) / "before"), command)


def run_job(job: Job, say: Say) -> int:
    """Run the cell and write its file; does nothing where that is there. Returns 0, or 130 when it was stopped.

    Goes on from the run's last checkpoint where there is one. Whoever runs the same cell meanwhile, in this study or
    another, waits, and takes it over.
    """
    folder, result = Path(job.folder), Path(job.result)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(Path(job.shared).with_name("locks") / f"{job.cell.digest}.lock"):
        if Results(result.parents[1], result.parent.name).adopt(job.cell) is not None or result.is_file():
            return 0
        run = _evaluate if job.cell.kind == "evaluate" else _train
        data = run(job.cell, folder, Path(job.shared), job.command, say)
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


def _train(cell: Cell, folder: Path, shared: Path, command: str, say: Say) -> dict[str, Any] | None:
    """train or sft: the run of a recipe, as `rlad train` and `rlad sft` make it; None when it was stopped."""
    from rlad.report.curve import read_metrics

    known = shared / f"{digest(evaluated_by(cell.recipe))}.json"
    _set_other_aside(cell, folder, say)
    if (folder / "summary.json").is_file():
        say(f"{folder} is finished: only its result was missing")
    elif _run_recipe(cell, folder, _prepare(folder, known), say) == INTERRUPTED:
        return None
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    before, after = _loaded(folder / BEFORE), _loaded(folder / "evaluation-after.json")
    if before is not None and _loaded(known) is None:
        before.save(known)
    about = {"seed": cell.seed, "command": command, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    about["rollouts"] = summary["steps"] * rollouts_a_step(cell.kind, cell.recipe)
    return finished_data(cell, summary, read_metrics(folder / "metrics.jsonl"), before, after, about)


def _run_recipe(cell: Cell, folder: Path, resume: bool, say: Say) -> int:
    data = {**cell.recipe, "output": str(folder)}
    if cell.kind == "sft":
        from rlad.offline.config import SftRecipe
        from rlad.offline.sft import train_offline

        return train_offline(SftRecipe.from_mapping(data), resume=resume, emit=say)
    from rlad.trainer.config import Recipe
    from rlad.trainer.run import train

    recipe = Recipe.from_mapping(data)
    if cell.seconds is None:
        return train(recipe, resume=resume, emit=say)
    from rlad.compare.clock import StopAfter

    return train(recipe, resume=resume, emit=say, callbacks=[StopAfter(cell.seconds, folder / "metrics.jsonl")])


def _set_other_aside(cell: Cell, folder: Path, say: Say) -> None:
    """A run of another recipe may stand where this cell's goes: it is kept, under another name."""
    from rlad.trainer.session import set_aside

    written = folder / "recipe.yaml"
    if not written.is_file():
        return
    try:
        theirs = normal(cell.kind, yaml.safe_load(written.read_text(encoding="utf-8")))
    except (RladError, yaml.YAMLError, UnicodeDecodeError):
        theirs = {}
    if differences(normal(cell.kind, cell.recipe), theirs):
        set_aside(folder, say)


def _prepare(folder: Path, known: Path) -> bool:
    """Whether there is a checkpoint to go on from. Else what a killed run left is taken away, but its evaluation."""
    from rlad.trainer.saving import last_checkpoint

    if (folder / "recipe.yaml").is_file() and last_checkpoint(folder / "checkpoints") is not None:
        return True
    if _loaded(known) is None and (found := _loaded(folder / BEFORE)) is not None:
        found.save(known)
    shutil.rmtree(folder, ignore_errors=True)
    if (found := _loaded(known)) is not None:
        found.save(folder / BEFORE)
    return False


def _loaded(path: Path) -> Any:
    """The Evaluation in a file; None where there is none, or half of one."""
    from rlad.evaluation.run import Evaluation

    try:
        return Evaluation.load(path) if path.is_file() else None
    except RladError:
        return None


def _evaluate(cell: Cell, folder: Path, shared: Path, command: str, say: Say) -> dict[str, Any] | None:
    """The model of the recipe, as it is."""
    from rlad.evaluation.run import evaluate
    from rlad.tasks import load_task
    from rlad.trainer.config import Recipe
    from rlad.trainer.environment import environment
    from rlad.trainer.session import device_of, load_student

    recipe = Recipe.from_mapping({**cell.recipe, "output": str(folder)})
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
    result.save(folder / "evaluation-after.json")
    say(result.table())
    about = {"seed": cell.seed, "command": command, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    summary = {"seconds": time.monotonic() - started, **environment()}
    return finished_data(cell, summary, [], None, result, about)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone with this cell, on this machine; a process that dies lets go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _end_with_parent() -> None:
    """A study that was killed must not leave runs behind that the next one would make twice."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    """Exit status 0: there; 1: failed, with one line why; 130: stopped."""
    _end_with_parent()
    try:
        return run_job(Job.read(Path(arguments[0])), lambda line: print(line, flush=True))
    except (RladError, OSError) as error:
        print(f"error: {error}", flush=True)
        return 1


def environment_of(threads: int) -> Mapping[str, str]:
    """Variables that keep a worker to so many threads: idle ones spin where cores are shared."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
