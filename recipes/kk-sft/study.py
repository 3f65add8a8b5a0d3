"""SFT on the embedded pair beside recipes/kk-methods: `python recipes/kk-sft/study.py run|table`.

Two budgets, with one trace of each problem. `steps`: as many updates of the student as there, 40 of 64 traces, each
used once. `tokens`: as many tokens of the teacher as it scores there (428,939 in 40 steps of RLAD with alpha 0.5 and
seed 1; the first 2,462 problems' traces are 428,709), and four times round them.
The learning rate is the best of three on the validation split (40 updates, seed 0). `run` trains what is missing, one
cell after the other, each in its own process with one thread. Cells are small JSON files in results/kk-methods.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
RESULTS, RUNS = ROOT / "results" / "kk-methods", ROOT / "runs" / "kk-sft"
RATES = ("1e-4", "3e-4", "1e-3")
BUDGETS = {"steps": (40, 2560), "tokens": (154, 2462)}  # updates, problems
KEPT = ("recipe", "steps", "seconds", "versions", "threads", "traces", "gain")


def run_cell(name: str, split: str, seed: int, rate: str, budget: str) -> None:
    """Train one cell in its own process and keep its JSON; does nothing where that is there."""
    target, output = RESULTS / f"{name}.json", RUNS / name
    updates, problems = BUDGETS[budget]
    if target.is_file():
        return
    rlad = str(Path(sys.executable).with_name("rlad"))
    command = [rlad, "sft", str(HERE.relative_to(ROOT) / "recipe.yaml"), f"seed={seed}", f"sft.problems={problems}"]
    command += [f"trainer.learning_rate={rate}", f"trainer.max_steps={updates}", f"evaluate.split={split}"]
    command += [f"evaluate.puzzles={400 if split == 'test' else 200}", "--output", str(output.relative_to(ROOT))]
    output.mkdir(parents=True, exist_ok=True)
    before = RUNS / f"before-{split}-seed{seed}.json"
    if before.is_file():  # the same model on the same problems with the same seed
        shutil.copy(before, output / "evaluation-before.json")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (RUNS / f"{name}.log").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"failed: {name}, see {RUNS / name}.log")
    shutil.copy(output / "evaluation-before.json", before)
    summary = json.loads((output / "summary.json").read_text())
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    content = {
        "command": " ".join(["rlad", *command[1:]]),
        "commit": commit.stdout.strip(),
        **{key: summary[key] for key in KEPT},
        "curve": [
            {key: row[key] for key in ("step", "loss", "mean_token_accuracy")} for row in metrics if "loss" in row
        ],
    }
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(target)
    row = content["gain"][-1]
    print(f"{name}: {row['before']:.3f} -> {row['after']:.3f} in {content['seconds']:.0f} s", flush=True)


def load(name: str) -> dict | None:
    """A finished cell, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def validation_name(rate: str) -> str:
    """The cell of a learning rate."""
    return f"validation-sft-lr-{rate}-seed0"


def best_rate() -> str | None:
    """The learning rate with the highest accuracy on the validation split; None while one is missing."""
    cells = {rate: load(validation_name(rate)) for rate in RATES}
    if not all(cells.values()):
        return None
    return max(RATES, key=lambda rate: cells[rate]["gain"][-1]["after"])


def run(seeds: int) -> None:
    """Sweep, then test."""
    RUNS.mkdir(parents=True, exist_ok=True)
    for rate in RATES:
        run_cell(validation_name(rate), "validation", 0, rate, "steps")
    rate = best_rate()
    for budget in BUDGETS:
        for seed in range(1, seeds + 1):
            run_cell(f"test-sft-{budget}-seed{seed}", "test", seed, rate, budget)


def table(seeds: int) -> None:
    """Print the tables in Markdown."""
    from rlad.evaluation.metrics import mean_interval

    print("| learning rate (validation split, seed 0) | after |\n|---|---|")
    for rate in RATES:
        cell = load(validation_name(rate))
        print(f"| {rate} | {'missing' if cell is None else format(cell['gain'][-1]['after'], '.1%')} |")
    print("\n| budget | updates | teacher tokens | seeds | before | after, mean | 95 % interval | 2 | 3 | 4 people |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for budget, (updates, _) in BUDGETS.items():
        cells = [cell for s in range(1, seeds + 1) if (cell := load(f"test-sft-{budget}-seed{s}"))]
        if not cells:
            print(f"| {budget} | missing |")
            continue
        before = sum(cell["gain"][-1]["before"] for cell in cells) / len(cells)
        mean, low, high = mean_interval([cell["gain"][-1]["after"] for cell in cells])
        people = [sum(cell["gain"][i]["after"] for cell in cells) / len(cells) for i in range(3)]
        print(
            f"| {budget} | {updates} | {cells[0]['traces']['teacher_tokens']:,} | {len(cells)} | {before:.1%} | "
            f"{mean:.1%} | {low:.1%} to {high:.1%} | " + " | ".join(f"{x:.1%}" for x in people) + " |"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.seeds)
    table(arguments.seeds)


if __name__ == "__main__":
    main()
