"""A folder of records is one evaluation's, is written by one process, and is whole before it is told."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlad.errors import RladError
from rlad.evaluation import identity
from rlad.evaluation.generate import Response, Sampling
from rlad.evaluation.results import load_run
from rlad.evaluation.run import Settings, respond
from rlad.evaluation.store import LOCK, Store, set_aside
from rlad.files import FileLock
from rlad.records import Writer, part, parts, read_about, read_rows
from rlad.tasks import Score
from rlad.tasks.custom import PromptsTask

EXAMPLES = [{"prompt": [{"role": "user", "content": f"q{i}"}]} for i in range(4)]
WRITING = "is being written to by another evaluation: wait for its end, stop it, or choose another folder"


class Toy:
    """Everything is right."""

    name = "toy"

    def score(self, response: str, example: Any) -> Score:
        return Score(1.0, True, response, "right")


class Stop(Exception):
    """A kill, as far as one process can show it."""


class Backend:
    """Answers "yes"; calls `hook` before its batch number `at`, from 1."""

    class tokenizer:
        chat_template = "x"

        def apply_chat_template(self, *_: Any, **__: Any) -> list[int]:
            return [1, 2]

    def __init__(self, hook: Any = None, at: int = 0) -> None:
        self.tokenizer, self.hook, self.at, self.calls = Backend.tokenizer(), hook, at, 0

    def prepare(self, *_: Any) -> None:
        pass

    def sample(self, prompts: Any, *_: Any) -> list[Response]:
        self.calls += 1
        if self.calls == self.at:
            self.hook()
        return [Response("yes", 1, False) for _ in prompts]


def stop() -> None:
    raise Stop


def store(folder: Path, task: Any = None, seed: int = 0, size: int = 1) -> Store:
    settings = Settings(1, Sampling(), seed, size).to_json()
    return Store(task or Toy(), EXAMPLES, settings, {"model": "m"}, folder)


def run(folder: Path, backend: Backend | None = None, task: Any = None, seed: int = 0, size: int = 1) -> Store:
    made = store(folder, task, seed, size)
    respond(made, Settings(1, Sampling(), seed, size), lambda: backend or Backend())
    return made


def orders(folder: Path) -> list[int]:
    return sorted(row["order"] for row in read_rows(folder, "response", ["order"]))


# --- one process


def test_a_second_evaluation_in_the_folder_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    refused: list[str] = []

    def second() -> None:
        for attempt in (lambda: store(tmp_path / "run"), lambda: set_aside(tmp_path / "run")):
            with pytest.raises(RladError) as caught:
                attempt()
            refused.append(str(caught.value))

    run(tmp_path / "run", Backend(second, 3))
    assert refused == [f"{tmp_path / 'run'} {WRITING}"] * 2
    assert orders(tmp_path / "run") == [0, 1, 2, 3] and not list(tmp_path.glob("run.*"))
    with pytest.raises(Stop):  # neither does an evaluation that failed keep the folder
        run(tmp_path / "two", Backend(stop, 2))
    again = run(tmp_path / "two").evaluation()
    assert len(again.problems) == 4 and orders(tmp_path / "two") == [0, 1, 2, 3]


def test_a_store_that_is_gone_or_refused_leaves_the_folder_to_others(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(RladError, match="made in another way: seed was 0 and is 1") as kept:
        store(tmp_path, seed=1)
    assert kept.value.__traceback__ is not None  # which has the refused store
    first = store(tmp_path)
    with pytest.raises(RladError, match=WRITING):
        store(tmp_path)
    del first
    store(tmp_path)


def test_another_process_is_kept_out_until_it_is_killed(tmp_path: Path) -> None:
    code = "import sys, time; from rlad.files import FileLock; a = FileLock(sys.argv[1])"
    code += "; print('.', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / LOCK)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b".\n"
        with pytest.raises(RladError, match=WRITING):
            store(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    store(tmp_path)


@pytest.mark.parametrize("gone", ["renamed", "removed"])
def test_an_evaluation_whose_folder_was_taken_writes_nothing_into_the_new_one(tmp_path: Path, gone: str) -> None:
    folder = tmp_path / "run"

    def take() -> None:
        if gone == "renamed":
            folder.rename(tmp_path / "elsewhere")
        else:
            for each in folder.iterdir():
                each.unlink()
            folder.rmdir()
        run(folder, seed=1)

    with pytest.raises(RladError, match="was renamed or removed while this evaluation wrote to it"):
        run(folder, Backend(take, 2))
    assert load_run(folder).settings["seed"] == 1 and orders(folder) == [0, 1, 2, 3]
    assert gone == "removed" or orders(tmp_path / "elsewhere") == [0]


def test_without_locks_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: int) -> None:
        raise OSError("the file system has none")

    monkeypatch.setattr("rlad.files.fcntl.flock", unknown)
    assert FileLock(tmp_path / LOCK).held and FileLock(tmp_path / LOCK, wait=False).held
    one, two = store(tmp_path), store(tmp_path)
    monkeypatch.setattr("rlad.files.fcntl", None)
    three = store(tmp_path)
    assert one.folder == two.folder == three.folder
    assert run(tmp_path).evaluation().accuracies == [1.0] * 4


def test_a_folder_that_can_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any) -> None:
        raise PermissionError

    run(tmp_path)
    monkeypatch.setattr("rlad.files.os.open", read_only)
    assert run(tmp_path).evaluation().accuracies == [1.0] * 4


def test_a_lock_that_is_waited_for_and_let_go_twice(tmp_path: Path) -> None:
    with FileLock(tmp_path / "a") as lock:
        assert lock.held
        with pytest.raises(BlockingIOError):
            FileLock(tmp_path / "a", wait=False)
    lock.release()
    assert not lock.held
    other = FileLock(tmp_path / "a", wait=False)
    assert other.held and not lock.held  # though the system may give both the same number
    (tmp_path / "a").unlink()
    assert not other.held


# --- whole, and of one evaluation


def copied(folder: Path, number: int, to: int) -> None:
    part(folder, to).write_bytes(part(folder, number).read_bytes())


def test_a_response_that_is_there_twice_is_not_counted_twice(tmp_path: Path) -> None:
    made = run(tmp_path)
    copied(tmp_path, 2, 4)
    says = f"{tmp_path} has two responses for sample 0 of problem 2, .*: begin it anew with --restart, or in another"
    for told in (made.evaluation, lambda: load_run(tmp_path), lambda: run(tmp_path)):
        with pytest.raises(RladError, match=says):
            told()


def test_a_response_that_is_lost_is_missed_also_where_another_is_there_twice(tmp_path: Path) -> None:
    made = run(tmp_path)
    part(tmp_path, 2).unlink()
    for told in (made.evaluation, lambda: load_run(tmp_path)):
        with pytest.raises(RladError, match="has 3 of 4 responses: the command that began it will finish it"):
            told()
    copied(tmp_path, 1, 2)  # as many rows as there should be
    for told in (made.evaluation, lambda: load_run(tmp_path)):
        with pytest.raises(RladError, match="has two responses for sample 0 of problem 1"):
            told()


def test_what_is_in_memory_must_be_whole_too() -> None:
    made = Store(Toy(), EXAMPLES, {"samples": 1})  # type: ignore[arg-type]
    made.add([(0, 0)], [Response("yes", 1, False)], [Score(1.0, True, None, "")])
    with pytest.raises(RladError, match="the evaluation has 1 of 4 responses"):
        made.evaluation()


def test_more_responses_than_there_are_problems_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    row = {**next(iter(read_rows(tmp_path, "response"))), "order": 4}
    about = {"identity": read_about(tmp_path)["identity"]}
    Writer(tmp_path, "response", about).append([row])
    with pytest.raises(RladError, match="has 5 responses, and its evaluation only 4"):
        load_run(tmp_path)


def test_parts_of_two_evaluations_are_of_neither(tmp_path: Path) -> None:
    """Which part is the first tells nothing of the others."""
    made = run(tmp_path / "one")
    run(tmp_path / "two", seed=1)
    part(tmp_path / "one", 3).write_bytes(part(tmp_path / "two", 3).read_bytes())
    attempts = (made.evaluation, lambda: load_run(tmp_path / "one"), lambda: store(tmp_path / "one"))
    for told in attempts:
        with pytest.raises(
            RladError, match=r"holds responses of two evaluations: seed was 0 and is 1\. Of neither: begin"
        ):
            told()


# --- what scored them


def old_records(folder: Path) -> None:
    """Two parts of the four, as an rlad wrote them that kept neither its version nor the scorer."""
    with pytest.raises(Stop):
        run(folder, Backend(stop, 3))
    rows = [list(read_rows(path, "response")) for path in parts(folder).values()]
    about = read_about(folder)
    about["identity"] = {name: value for name, value in about["identity"].items() if name not in identity.NEWER}
    writer = Writer(folder, "response", {name: about[name] for name in ("identity", "responses", "settings")})
    for number, each in enumerate(rows):
        writer.append(each, number)


def test_another_version_of_rlad_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stop):
        run(tmp_path / "new", Backend(stop, 3))
    old_records(tmp_path / "old")
    monkeypatch.setattr(identity, "__version__", "99.0")
    with pytest.raises(RladError, match=r"another way: rlad was '[\d.]+' and is '99\.0'\. .* anew with --restart"):
        store(tmp_path / "new")
    assert len(run(tmp_path / "old").evaluation().problems) == 4  # what did not say which goes on
    assert len(load_run(tmp_path / "old").problems) == 4
    monkeypatch.setattr(identity, "__version__", "100.0")
    with pytest.raises(RladError, match=r"rlad was '99\.0' and is '100\.0'"):  # its later parts say it
        store(tmp_path / "old")


def test_another_scorer_does_not_go_on(tmp_path: Path) -> None:
    class Other(Toy):
        pass

    with pytest.raises(Stop):
        run(tmp_path / "run", Backend(stop, 3))
    with pytest.raises(RladError, match=r"way: the scorer is another, or its source file has changed\. Go on"):
        store(tmp_path / "run", Other())


def prompts_task(folder: Path, reward: Any) -> PromptsTask:
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n', "utf-8")
    return PromptsTask(str(folder / "prompts.jsonl"), reward)


def test_a_reward_function_is_known_by_its_source_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def reward(response, example, worth=1.0):\n    return worth\n"
    (tmp_path / "rewards_of_store_test.py").write_text(source, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("rewards_of_store_test")
    task = prompts_task(tmp_path, "rewards_of_store_test:reward")
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        run(folder, Backend(stop, 3), task)
    assert str(identity.scorer(task)).startswith("reward ")
    assert identity.scorer(prompts_task(tmp_path, functools.partial(module.reward, worth=2.0))) == identity.scorer(task)
    (tmp_path / "rewards_of_store_test.py").write_text(source.replace("1.0", "0.0"), "utf-8")
    with pytest.raises(RladError, match="its source file has changed"):
        store(folder, task)
    (tmp_path / "rewards_of_store_test.py").write_text(source, "utf-8")
    assert run(folder, task=task).evaluation().accuracies == [1.0] * 4


def test_what_has_no_source_file_says_nothing_of_it(tmp_path: Path) -> None:
    from rlad.tasks import load_task

    assert identity.scorer(load_task({"name": "knights_knaves", "people": [2]})) is None  # rlad's version says it
    assert identity.scorer(prompts_task(tmp_path, max)) is None
    made: dict[str, Any] = {}
    exec("def reward(response, example): return 1.0", made)
    assert identity.scorer(prompts_task(tmp_path, made["reward"])) is None
    assert str(identity.scorer(Toy())).startswith("Toy ")  # type: ignore[arg-type]
