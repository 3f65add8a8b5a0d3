"""Worker processes that grade answers and may be killed: in parallel, from any thread, in any process.

Each is a plain subprocess that imports math-verify alone (see worker.py): it inherits neither the caller's memory nor
its threads, signal handlers or CUDA context. The caller never uses a signal. A worker that dies costs the one answer it
was at; the answers that wait behind it go to another.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlad.errors import RladError

PROGRAM = Path(__file__).with_name("worker.py")
MOST_WORKERS = 8  # by default; a task's option asks for more
BATCH = 8  # answers that a worker is sent at once
MESSAGE = 60_000  # bytes that it is sent at once: they fit into an empty pipe, so that sending cannot block
STARTUP = 180.0  # seconds that a worker may take to import math-verify, on a machine that is busy with other things
WALL = 10.0  # an answer's limit of wall time, in limits of processor time
LEAST_WALL = 30.0  # and at least so many seconds
SHARE = 2  # a worker that holds more than one part in SHARE of its memory after its jobs is replaced
PAGE = os.sysconf("SC_PAGE_SIZE")
POLL = 0.05  # seconds between two looks at the memory of the workers
# Where the kernel tells what a process holds, one that holds too much is killed, and the reason known. RLIMIT_AS, so
# many times that, is what holds between two looks: where it fails an allocation, math-verify swallows the MemoryError.
SPARE = 4 if Path("/proc/self/statm").exists() else 1


@dataclass(frozen=True)
class Limits:
    """What grading may use. seconds: of processor time for an answer. memory: bytes of a worker. workers: at most."""

    seconds: float = 3.0
    memory: int = 1 << 30
    workers: int | None = None


@dataclass(frozen=True)
class Job:
    """One answer to grade: the arguments of `equivalence.verdicts`."""

    golds: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]
    tail: str


@dataclass(frozen=True)
class Outcome:
    """What came of a job. problem: why there is no verdict, a sentence; then both verdicts are False."""

    strict: bool = False
    lenient: bool = False
    problem: str = ""


def default_workers() -> int:
    """One for each core that this process may use, shared with the other ranks on the machine; at most MOST_WORKERS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, min(MOST_WORKERS, cores // max(1, int(ranks) if ranks.isdigit() else 1)))


class Worker:
    """A worker process, and the jobs that it was sent and has not answered."""

    def __init__(self, memory: int) -> None:
        line, self._lifeline = os.pipe()  # nothing is written to it: its end is what the worker watches
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM), str(PROGRAM.parents[3]), str(memory * SPARE), str(line)],
            pass_fds=(line,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in a terminal goes to the caller alone
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        )
        os.close(line)
        self.jobs: deque[int] = deque()
        self.ready = False
        self.deadline = time.monotonic() + STARTUP
        self._read = b""

    def send(self, jobs: Sequence[tuple[int, bytes]], wall: float) -> bool:
        """Give it jobs when it has none. False: it has died."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(b"".join(data for _, data in jobs))
        except OSError:
            return False
        self.jobs.extend(index for index, _ in jobs)
        self.extend(wall)
        return True

    def extend(self, wall: float) -> None:
        """Start the time that its next answer may take."""
        self.deadline = time.monotonic() + wall + (0 if self.ready else STARTUP)

    def replies(self) -> list[dict[str, Any]] | None:
        """The replies that have come in, without waiting for more. None: it has died."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self._read = (self._read + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def held(self) -> int:
        """Bytes of memory that it holds; 0 where the kernel does not tell."""
        try:
            return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE
        except (OSError, IndexError, ValueError):
            return 0

    def end(self) -> int:
        """Kill it, close its pipes, and return its exit status."""
        self.process.kill()
        self.close()
        return self.process.wait()

    def close(self) -> None:
        """Close this end of its pipes, at which it ends by itself unless another process holds them open too."""
        os.close(self._lifeline)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Pool:
    """Workers of one kind, started when they are needed and kept. A thread that grades borrows some of them."""

    def __init__(self, workers: int, memory: int) -> None:
        self.workers, self.memory = workers, memory
        self._changed = threading.Condition()
        self._idle: list[Worker] = []
        self.all: set[Worker] = set()

    def run(self, jobs: Sequence[Job], seconds: float) -> list[Outcome]:
        """The outcome of each job, in order. Raises RladError where no worker can be started."""
        return _Run(self, jobs, seconds).outcomes() if jobs else []

    def borrow(self, wanted: int, wait: bool) -> list[Worker]:
        """Up to `wanted` workers, idle or new. wait: until there is at least one; else there may be none."""
        with self._changed:
            while wait and not self._idle and len(self.all) >= self.workers:
                self._changed.wait()
            taken = [self._idle.pop() for _ in range(min(wanted, len(self._idle)))]
            while len(taken) < wanted and len(self.all) < self.workers:
                worker = Worker(self.memory)
                self.all.add(worker)
                taken.append(worker)
            return taken

    def give_back(self, worker: Worker) -> None:
        """Return a worker that has no jobs."""
        with self._changed:
            self._idle.append(worker)
            self._changed.notify()

    def discard(self, worker: Worker) -> int:
        """End a worker, and return its exit status."""
        status = worker.end()
        with self._changed:
            self.all.discard(worker)
            self._changed.notify()
        return status

    def close(self) -> None:
        """End every worker, also those at work."""
        for worker in list(self.all):
            self.discard(worker)
        self._idle.clear()


class _Run:
    """One call of Pool.run: which jobs wait, which worker is at which."""

    def __init__(self, pool: Pool, jobs: Sequence[Job], seconds: float) -> None:
        self.pool, self.seconds = pool, seconds
        self.wall = max(LEAST_WALL, WALL * seconds)
        self.lines = [_line(job, seconds, self.wall) for job in jobs]
        self.found: list[Outcome | None] = [None] * len(jobs)
        self.waiting = deque(range(len(jobs)))
        self.crashed: set[int] = set()  # jobs that a worker has died at once
        self.held: list[Worker] = []
        self.failed_starts = 0

    def outcomes(self) -> list[Outcome]:
        try:
            while any(outcome is None for outcome in self.found):
                self._hire()
                for worker in list(self.held):
                    if not worker.jobs and self.waiting:
                        self._hand_out(worker)
                self._listen()
        finally:  # also after Ctrl-C: what a worker still has to answer must not be the next caller's
            for worker in self.held:
                if worker.jobs:
                    self.pool.discard(worker)
                else:
                    self.pool.give_back(worker)
        return [outcome for outcome in self.found if outcome is not None]

    def _hire(self) -> None:
        if not self.waiting:  # other threads may use those that are done here
            for worker in [each for each in self.held if not each.jobs]:
                self.held.remove(worker)
                self.pool.give_back(worker)
        idle = sum(not worker.jobs for worker in self.held)
        wanted = min(len(self.waiting), self.pool.workers) - idle
        if wanted > 0:
            self.held += self.pool.borrow(wanted, wait=not self.held)

    def _hand_out(self, worker: Worker) -> None:
        share = max(1, min(BATCH, len(self.waiting) // (2 * len(self.held))))
        batch: list[tuple[int, bytes]] = []
        size = 0
        while self.waiting and len(batch) < share and (not batch or size + len(self.lines[self.waiting[0]]) <= MESSAGE):
            index = self.waiting.popleft()
            batch.append((index, self.lines[index]))
            size += len(self.lines[index])
        if not worker.send(batch, self.wall):
            self.waiting.extendleft(index for index, _ in reversed(batch))
            self._bury(worker)

    def _listen(self) -> None:
        busy = [worker for worker in self.held if worker.jobs]
        if not busy:
            return
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
            first = min(worker.deadline for worker in busy) - time.monotonic()
            events = selector.select(min(POLL, max(0.0, first)))
        for key, _ in events:
            self._hear(key.data)
        now = time.monotonic()
        for worker in busy:
            if worker not in self.held or not worker.jobs:
                continue
            if worker.deadline < now:
                self._bury(worker, "wall")
            elif SPARE > 1 and worker.held() > self.pool.memory:
                self._bury(worker, "memory")

    def _hear(self, worker: Worker) -> None:
        replies = worker.replies()
        if replies is None:
            self._bury(worker)
            return
        for reply in replies:
            if "failed" in reply:
                raise RladError(f"a process that grades answers cannot start: {reply['failed']}")
            if not worker.ready:
                worker.ready = True
            else:
                self.found[worker.jobs.popleft()] = _outcome(reply, self.pool.memory)
            worker.extend(self.wall)
        if not worker.jobs and worker.held() > self.pool.memory // SHARE:
            self._bury(worker)

    def _bury(self, worker: Worker, why: str = "") -> None:
        """End a worker. The job it was at gets its outcome, or another chance where the job may not be to blame."""
        self.held.remove(worker)
        jobs = list(worker.jobs)
        worker.jobs.clear()
        status = self.pool.discard(worker)
        if not worker.ready:
            self.failed_starts += 1
            if self.failed_starts > 3:
                raise RladError(f"processes that grade answers end before they can start (exit status {status})")
        elif jobs:
            culprit = jobs.pop(0)
            problem = self._cause(status, why, culprit)
            if problem:
                self.found[culprit] = Outcome(problem=problem)
            else:
                self.crashed.add(culprit)
                jobs.insert(0, culprit)
        self.waiting.extendleft(reversed(jobs))

    def _cause(self, status: int, why: str, culprit: int) -> str:
        """Why a worker died at a job; "" where the job may not be to blame, and is tried again."""
        if status == -signal.SIGPROF:
            return f"grading took more than {self.seconds:g} s of processor time"
        if why == "memory":
            return f"grading needed more than {self.pool.memory >> 20} MiB"
        if why == "wall" or status == -signal.SIGALRM:
            return f"grading took more than {self.wall:g} s"
        if culprit not in self.crashed:
            return ""
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"grading ended the process that did it, twice ({name})"


def _line(job: Job, seconds: float, wall: float) -> bytes:
    fields = {"golds": job.golds, "answers": job.answers, "tail": job.tail, "seconds": seconds, "wall": wall}
    line = json.dumps(fields).encode() + b"\n"
    if len(line) > MESSAGE:  # a response of control characters, or the like: what was found in it is still compared
        line = json.dumps({**fields, "tail": ""}).encode() + b"\n"
    return line


def _outcome(reply: dict[str, Any], memory: int) -> Outcome:
    problem = reply.get("problem")
    if problem is None:
        return Outcome(reply["strict"], reply["lenient"])
    if problem == "memory":
        return Outcome(problem=f"grading needed more than {memory >> 20} MiB")
    return Outcome(problem=f"grading failed ({problem})")


_pools: dict[tuple[int, int], Pool] = {}
_lock = threading.Lock()


def run_jobs(jobs: Sequence[Job], limits: Limits) -> list[Outcome]:
    """The outcome of each job within `limits`, from this process's workers of that kind."""
    kind = (limits.workers or default_workers(), limits.memory)
    with _lock:
        if kind not in _pools:
            _pools[kind] = Pool(*kind)
        pool = _pools[kind]
    return pool.run(jobs, limits.seconds)


@atexit.register
def close_pools() -> None:
    """End this process's workers. Grading starts new ones."""
    with _lock:
        pools = list(_pools.values())
        _pools.clear()
    for pool in pools:
        pool.close()


def _forget() -> None:
    """In a child after a fork: the workers are the parent's; the child closes its copies of their pipes."""
    global _lock
    _lock = threading.Lock()
    for pool in _pools.values():
        for worker in pool.all:
            worker.process.returncode = 0  # not the child's to wait for
            worker.close()
    _pools.clear()


os.register_at_fork(after_in_child=_forget)
