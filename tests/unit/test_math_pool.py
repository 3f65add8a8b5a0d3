"""Worker processes that grade: killed, stopped, forked away, shared by threads; and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.math_hostile import HEAVY, HOSTILE, LONG, STRANGE
from rlad.errors import RladError
from rlad.tasks.math import pool as pools
from rlad.tasks.math.grade import Verdict, grade, grade_all
from rlad.tasks.math.pool import Limits, Pool, run_jobs

LIMITS = Limits(seconds=5.0, workers=2)
QUICK = Limits(seconds=0.3, workers=2)
TOWER = HEAVY["tower in braces"]


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> Iterator[None]:
    """After the tests of this file no worker of this process is there, not even as a zombie."""
    yield
    pools.close_pools()
    assert children() == []


def children() -> list[int]:
    """This process's children that are workers, zombies included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and b"worker.py" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def numbers(count: int) -> tuple[list[str], list[str]]:
    """Responses and golds of which every third is wrong."""
    return [f"\\boxed{{{i}}}" for i in range(count)], [str(i if i % 3 else i + 1) for i in range(count)]


def rights(verdicts: list[Verdict]) -> list[bool]:
    return [verdict.strict for verdict in verdicts]


def test_every_answer_gets_its_own_verdict_in_order() -> None:
    responses, golds = numbers(100)
    assert rights(grade_all(responses, golds, None, LIMITS)) == [i % 3 != 0 for i in range(100)]


def test_nothing_to_grade_starts_nothing() -> None:
    assert run_jobs([], Limits(workers=1, memory=300 << 20)) == []


def test_an_answer_that_takes_too_long_is_wrong_with_the_reason_and_the_others_have_theirs() -> None:
    responses, golds = numbers(12)
    responses[5] = responses[7] = TOWER
    verdicts = grade_all(responses, golds, None, QUICK)
    assert rights(verdicts) == [i % 3 != 0 and i not in (5, 7) for i in range(12)]
    assert verdicts[5].problem == "grading took more than 0.3 s of processor time"
    assert [verdict.graded for verdict in verdicts] == [i not in (5, 7) for i in range(12)]


def test_an_answer_that_takes_too_much_memory_is_wrong_with_the_reason() -> None:
    limits = Limits(seconds=60.0, workers=1, memory=128 << 20)
    verdict = grade("\\boxed{(x+y+z+w)^{200}}", "42", "", limits)
    assert verdict == Verdict(False, False, "(x+y+z+w)^{200}", "grading needed more than 128 MiB", False)
    assert grade("\\boxed{42}", "42", "", limits).strict


def test_a_stopped_worker_is_given_up_by_the_clock_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(1, 1 << 30)
    assert grade_with(pool, ["1"]) == [True]
    monkeypatch.setattr(pools, "LEAST_WALL", 0.5)
    monkeypatch.setattr(pools, "WALL", 0.0)
    (worker,) = pool.all
    os.kill(worker.process.pid, signal.SIGSTOP)
    (outcome,) = pool.run([pools.Job(("1",), (("box", "1"),), "")], 5.0)
    assert outcome.problem == "grading took more than 0.5 s" and not outcome.strict
    pool.close()


def grade_with(pool: Pool, answers: list[str], seconds: float = 5.0) -> list[bool]:
    return [found.strict for found in pool.run([pools.Job((a,), (("box", a),), "") for a in answers], seconds)]


def test_a_worker_killed_from_outside_costs_no_verdict() -> None:
    pool = Pool(2, 1 << 30)
    assert grade_with(pool, ["1", "2", "3"]) == [True] * 3
    stop = threading.Event()

    def kill() -> None:
        for _ in range(4):
            stop.wait(0.3)
            for worker in list(pool.all)[:1]:
                os.kill(worker.process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    answers = [f"(x+{i})^{{{3 + i % 5}}}" for i in range(150)]
    assert grade_with(pool, answers) == [True] * 150
    stop.set()
    killer.join()
    pool.close()


def test_an_idle_worker_that_died_is_replaced() -> None:
    pool = Pool(1, 1 << 30)
    assert grade_with(pool, ["1"]) == [True]
    (worker,) = pool.all
    worker.process.kill()
    worker.process.wait()
    assert grade_with(pool, ["1", "2"]) == [True, True]
    assert worker not in pool.all
    pool.close()


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for text, words in (("raise SystemExit(3)", "exit status 3"), (FAILS, "no module named math_verify")):
        program = tmp_path / "one" / "two" / "three" / "worker.py"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text, encoding="utf-8")
        monkeypatch.setattr(pools, "PROGRAM", program)
        pool = Pool(1, 1 << 30)
        with pytest.raises(RladError, match=words):
            grade_with(pool, ["1"])
        pool.close()


FAILS = """print('{"failed": "no module named math_verify"}', flush=True)"""


def test_many_threads_share_the_workers() -> None:
    responses, golds = numbers(20)
    found: dict[int, list[bool]] = {}

    def work(i: int) -> None:
        found[i] = rights(grade_all(responses[i:], golds[i:], None, QUICK if i == 3 else LIMITS))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [j % 3 != 0 for j in range(i, 20)] for i in range(8)}
    assert len(children()) <= 3  # two, and the one with less memory of another test


def test_the_caller_keeps_its_signals() -> None:
    """No alarm of ours rings in the caller, and its own one rings while an answer is graded."""
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert not grade(TOWER, "42", "", QUICK).graded
        assert rung == [signal.SIGALRM]
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_after_ctrl_c_no_answer_is_anothers() -> None:
    """The job that was interrupted is not answered to the next caller, and the workers live on or are replaced."""
    grade("\\boxed{1}", "1", "", LIMITS)
    main = threading.get_ident()
    timer = threading.Timer(0.4, signal.pthread_kill, (main, signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            grade_all([TOWER] * 8, ["42"] * 8, None, LIMITS)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert grade("\\boxed{1}", "1", "", LIMITS).strict
    responses, golds = numbers(20)
    assert rights(grade_all(responses, golds, None, LIMITS)) == [i % 3 != 0 for i in range(20)]


def forked(queue: multiprocessing.SimpleQueue[tuple[list[bool], set[int]]]) -> None:
    """What a child grades while its parent has workers, and the workers that it does so with."""
    responses, golds = numbers(10)
    found = rights(grade_all(responses, golds, None, LIMITS))
    queue.put((found, {worker.process.pid for pool in pools._pools.values() for worker in pool.all}))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_training_process_grades_with_workers_of_its_own(method: str) -> None:
    responses, golds = numbers(10)
    expected = [i % 3 != 0 for i in range(10)]
    assert rights(grade_all(responses, golds, None, LIMITS)) == expected
    mine = set(children())
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=forked, args=(queue,))
    process.start()
    found, theirs = queue.get()
    assert found == expected and theirs and not theirs & mine
    process.join(60)
    assert process.exitcode == 0
    assert mine <= set(children())  # the child ended none of its parent's
    assert rights(grade_all(responses, golds, None, LIMITS)) == expected
    assert mine & set(children())


PROGRAM = """
import atexit, os, signal, sys
pids = []
atexit.register(lambda: print([pid for pid in pids if os.path.exists(f"/proc/{pid}")], flush=True))  # runs last
from rlad.tasks.math.grade import grade_all
from rlad.tasks.math.pool import Limits, _pools
print([v.strict for v in grade_all(["\\\\boxed{1}", "\\\\boxed{2}"], ["1", "1"], None, Limits(workers=2))], flush=True)
pids += [w.process.pid for pool in _pools.values() for w in pool.all]
print(*pids, flush=True)
print(sorted({"torch", "sympy", "math_verify"} & set(sys.modules)), flush=True)
"""
ENDINGS = {
    "ends": "",
    "raises": "raise SystemExit(7)",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "is ended at work": "signal.alarm(1); grade_all(['\\\\boxed{9^{9^{9^9}}}'] * 4, ['1'] * 4, None, Limits(300))",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_worker_outlives_its_caller(ending: str) -> None:
    program = PROGRAM + ENDINGS[ending]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    verdicts, pids, heavy, *left_at_exit = done.stdout.splitlines()
    assert left_at_exit == (["[]"] if ending in ("ends", "raises") else [])  # not as zombies either
    assert verdicts == "[True, False]" and pids and heavy == "[]"
    end = time.monotonic() + 10
    while (left := [pid for pid in pids.split() if is_running(int(pid))]) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert left == []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_there_are_enough_hostile_responses() -> None:
    assert len(HOSTILE) == len(HEAVY) + len(LONG) + len(STRANGE) >= 60


def hostile(responses: dict[str, str], limits: Limits) -> list[Verdict]:
    """Grade them; none may be right, and an ordinary answer among them is graded as ever."""
    texts = [*responses.values(), "\\boxed{42}"]
    verdicts = grade_all(texts, ["42"] * len(texts), None, limits)
    assert [name for name, verdict in zip(responses, verdicts, strict=False) if verdict.lenient] == []
    assert all(verdict.graded or verdict.problem for verdict in verdicts)
    assert verdicts[-1].strict
    return verdicts


def test_long_and_strange_responses_are_graded_in_bounded_time() -> None:
    start = time.process_time()
    hostile({**LONG, **STRANGE}, LIMITS)
    assert time.process_time() - start < 5  # of the caller: 64 responses, 26 of a megabyte


@pytest.mark.slow
def test_heavy_responses_kill_nothing_but_workers() -> None:
    limits = Limits(seconds=0.2, workers=2)
    start = time.process_time()
    verdicts = hostile(HEAVY, limits)
    assert time.process_time() - start < 5
    assert sum(not verdict.graded for verdict in verdicts) > 20  # else they were not heavy
    assert len(children()) <= 4
