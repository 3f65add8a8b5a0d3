"""Grading of mathematics: `RLAD_TEST_DATA=... python benchmarks/grading.py [--hostile]`.

Agreement with verdicts of others, by source, beside math-verify alone; the rate of the worker pool over that of bare
math-verify on the same answers, in one run; and the time that responses made to blow up a grader take.

Rates are per core: answers over seconds of processor time, the caller's and the worker's together, of one worker. Bare
math-verify parses gold and response and verifies, in this process, without timeouts; "$alone$" is that with the gold
between dollars. Both go over the answers in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlad.tasks.math import pool as pools
from rlad.tasks.math.grade import Verdict, grade_all
from rlad.tasks.math.pool import Limits

ONE = Limits(seconds=10.0, workers=1)
ROUNDS = 5
Row = dict[str, Any]


def rows_of(name: str) -> list[Row]:
    """The rows of a file of verdicts outside the repository."""
    path = Path(os.environ["RLAD_TEST_DATA"]) / "grading" / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def alone(response: str, gold: str) -> bool:
    """The verdict of math-verify alone, with its timeouts off."""
    from math_verify import parse, verify

    return bool(verify(parse(gold, parsing_timeout=None), parse(response, parsing_timeout=None), timeout_seconds=None))


def agreement() -> None:
    """Agreement by source, and every row where the lenient reading says something else."""
    responses = rows_of("math_responses.jsonl")
    triples = [row for row in rows_of("math_triples.jsonl") if "caution" not in row]
    rows = [
        *((row["response"], row["gold"], row["expected"], "responses") for row in responses),
        *((row["pred"], row["gold"] or "?", row["expected"], row["repo"]) for row in triples),
    ]
    verdicts = grade_all([row[0] for row in rows], [row[1] for row in rows], None, ONE)
    counts: dict[str, Counter[str]] = {}
    different: list[tuple[bool, str, str, str]] = []
    for (response, gold, expected, source), verdict in zip(rows, verdicts, strict=True):
        count = counts.setdefault(source, Counter())
        count["n"] += 1
        count["lenient"] += verdict.lenient == expected
        count["strict"] += verdict.strict == expected
        count["alone"] += alone(response, gold) == expected
        count["dollars"] += alone(response, f"${gold}$") == expected
        if verdict.lenient != expected:
            different.append((verdict.lenient, source, response[-60:], gold[:60]))
    print(f"{'source':32} {'n':>4} {'lenient':>8} {'strict':>8} {'alone':>8} {'$alone$':>8}")
    total: Counter[str] = sum((counts[source] for source in counts if source != "responses"), Counter())
    for source, count in [*counts.items(), ("triples together", total)]:
        n = count["n"]
        shares = [count[name] / n for name in ("lenient", "strict", "alone", "dollars")]
        print(f"{source:32} {n:4} " + " ".join(f"{share:8.2%}" for share in shares))
    for wrong, title in ((True, "false positives"), (False, "false negatives")):
        print(f"{title}:")
        for _, source, response, gold in [each for each in different if each[0] is wrong]:
            print(f"  {source}: {response!r} for {gold!r}")


def worker_seconds() -> float:
    """Processor time of this process's workers so far."""
    seconds = 0.0
    for pool in pools._pools.values():
        for worker in pool.all:
            fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def seconds_of(work: Callable[[], Any]) -> tuple[float, float]:
    """(processor time, wall time) of a call."""
    cpu, wall = time.process_time() + worker_seconds(), time.perf_counter()
    work()
    return time.process_time() + worker_seconds() - cpu, time.perf_counter() - wall


def rates() -> None:
    """The pool's rate over that of bare math-verify."""
    rows = rows_of("math_responses.jsonl") * 2
    responses, golds = [row["response"] for row in rows], [row["gold"] for row in rows]

    def bare() -> None:
        for response, gold in zip(responses, golds, strict=True):
            alone(response, f"${gold}$")

    def pooled() -> list[Verdict]:
        return grade_all(responses, golds, None, ONE)

    alone("1", "1"), grade_all(["1"], ["1"], None, ONE)  # parser's tables; no answer of the rows is in a cache yet
    (first, _), (pool_first, _) = seconds_of(bare), seconds_of(pooled)
    print(f"first pass: bare {len(rows) / first:.0f}/s, pool {len(rows) / pool_first:.0f}/s, {first / pool_first:.2f}")
    cpu, wall = [], []
    for _ in range(ROUNDS):
        (bare_cpu, bare_wall), (pool_cpu, pool_wall) = seconds_of(bare), seconds_of(pooled)
        cpu.append(bare_cpu / pool_cpu)
        wall.append(bare_wall / pool_wall)
        print(f"bare {len(rows) / bare_cpu:7.0f}/s  pool {len(rows) / pool_cpu:7.0f}/s of processor time")
    print(f"pool over bare, per core: {statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f})")
    print(f"pool of one worker over bare, by the clock: {statistics.median(wall):.2f}")


def hostile() -> None:
    """Time of the hostile responses at the default limits, with two workers."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from fixtures.math_hostile import HEAVY, LONG, STRANGE

    for name, corpus in (("heavy", HEAVY), ("long", LONG), ("strange", STRANGE)):
        start, cpu = time.perf_counter(), time.process_time()
        verdicts = grade_all(list(corpus.values()), ["42"] * len(corpus), None, Limits(workers=2))
        killed = sum(not verdict.graded for verdict in verdicts)
        spent = (
            f"{time.perf_counter() - start:6.1f} s, {time.process_time() - cpu:.2f} s of the caller's processor time"
        )
        right = sum(verdict.lenient for verdict in verdicts)
        print(f"{name:8} {len(corpus):3} responses, {killed:2} not graded, {right} right, {spent}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hostile", action="store_true", help="time the hostile responses too (minutes)")
    arguments = parser.parse_args()
    if "RLAD_TEST_DATA" in os.environ:
        rates()
        agreement()
    else:
        print("RLAD_TEST_DATA is not set: no agreement and no rate", file=sys.stderr)
    if arguments.hostile:
        hostile()


if __name__ == "__main__":
    main()
