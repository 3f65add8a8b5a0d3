"""What recording costs: its seconds as a share of a step's, in one run of the quickstart's training at the defaults.

    OMP_NUM_THREADS=1 python benchmarks/recorder.py --steps 10

Prints the share over all steps (what a run pays), the largest share of a single step (one that records), and the bytes
of records and of the page.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from rlad.report.curve import read_metrics
from rlad.report.page import write_report
from rlad.trainer.config import Recipe
from rlad.trainer.run import train


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--run", help="a finished run to read, in place of a new one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(options.run or folder) / ("" if options.run else "run")
        if not options.run:
            overrides = [f"trainer.max_steps={options.steps}", "evaluate=null", f"output={json.dumps(str(run))}"]
            train(Recipe.resolve("quickstart", [*overrides, "trainer.save_strategy='no'"]))
        rows = [(row["rlad/seconds/recorder"], row["step_time"]) for row in read_metrics(run / "metrics.jsonl")]
        started = time.perf_counter()
        written = write_report([run], Path(folder) / "report.html")
        found = {
            "steps": len(rows),
            "recorder over steps": sum(ours for ours, _ in rows) / sum(step for _, step in rows),
            "largest of one step": max(ours / step for ours, step in rows),
            "seconds a step": sum(step for _, step in rows) / len(rows),
            "bytes of records": sum(path.stat().st_size for path in (run / "records").glob("part-*")),
            "rollouts": written.recorded,
            "bytes of the page": written.size,
            "seconds of the report": time.perf_counter() - started,
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
