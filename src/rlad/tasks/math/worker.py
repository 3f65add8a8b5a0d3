"""A process that grades answers: one JSON object a line in, one a line out. `pool.py` starts it, and kills it.

It imports math-verify and nothing heavy. Its limits are the kernel's, so they hold inside C code too: RLIMIT_AS for
memory, and for each answer a timer of processor time (SIGPROF) and one of wall time (SIGALRM), whose signals end it.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import sys
from typing import Any, BinaryIO


def main() -> None:
    """Answer jobs on standard input until it closes.

    Arguments: the folder that rlad is in, bytes of address space, and a pipe that is open as long as the caller lives.
    """
    sys.path.append(sys.argv[1])  # last, so that nothing beside rlad hides a module of Python's own
    limit, lifeline = int(sys.argv[2]), int(sys.argv[3])
    if hasattr(os, "O_ASYNC"):  # the kernel sends SIGIO, which ends this process, when the caller is gone
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints is no reply
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        from rlad.tasks.math.equivalence import verdicts

        verdicts(
            ["\\frac{1}{2}"], [("box", "x+1")], ""
        )  # so that the first answer does not pay for the parser's tables
    except Exception as error:  # a missing library, or a limit that is too low
        _send(replies, {"failed": f"{type(error).__name__}: {error}"})
        return
    _send(replies, {"ready": True})
    for line in sys.stdin.buffer:
        job = json.loads(line)
        _timers(job["seconds"], job["wall"])
        reply = _reply(verdicts, job)
        _timers(0, 0)
        _send(replies, reply)


def _timers(seconds: float, wall: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, wall)


def _reply(verdicts: Any, job: dict[str, Any]) -> dict[str, Any]:
    try:
        strict, lenient = verdicts(job["golds"], [tuple(answer) for answer in job["answers"]], job["tail"])
    except MemoryError:
        return {"problem": "memory"}
    except Exception as error:  # math-verify and sympy raise anything; RecursionError is the most common
        return {"problem": type(error).__name__}
    return {"strict": strict, "lenient": lenient}


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    data = json.dumps(reply).encode() + b"\n"
    while data:
        data = data[replies.write(data) :]


if __name__ == "__main__":
    main()
