"""Every method on the embedded pair, the same steps and seeds: `python recipes/kk-methods/study.py run|table`.

`run` trains what is missing (a finished cell is never trained again, a killed one starts anew), each in its own process
with one thread. `table` reads the cells and writes the table and the learning curves. Methods that have a coefficient
get three trials each on the validation split, one seed; the best one is then run on the test split. Cells are small
JSON files in results/kk-methods.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
RESULTS, RUNS = ROOT / "results" / "kk-methods", ROOT / "runs" / "kk-methods"
# label -> the method as the recipe writes it. The sweep is of the same size for both.
TRIALS = {
    "kdrl": ["{name: kdrl, form: reward, coefficient: 0.05}", "{name: kdrl, form: reward, coefficient: 0.2}",
             "{name: kdrl, coefficient: 0.05}"],
    "rlad": ["{name: rlad, alpha: 0.5}", "{name: rlad, alpha: 0.3}", "{name: rlad, alpha: 0.7}"],
}  # fmt: skip
FIXED = {"grpo": "{name: grpo}", "kdrl, paper's coefficient": "{name: kdrl}"}


def cell_name(method: str, seed: int, split: str) -> str:
    """A file name for one cell."""
    plain = "".join(c if c.isalnum() or c in ".-" else "-" for c in method.replace("name: ", "").strip("{}"))
    return f"{split}-{plain}-seed{seed}".replace("--", "-")


def run_cell(method: str, seed: int, split: str, overrides: list[str]) -> None:
    """Train one cell in its own process and keep its JSON; does nothing where that is there."""
    name = cell_name(method, seed, split)
    target = RESULTS / f"{name}.json"
    if target.is_file():
        return
    output = RUNS / name
    rlad = str(Path(sys.executable).with_name("rlad"))
    command = [rlad, "train", str(HERE.relative_to(ROOT) / "recipe.yaml"), f"method={method}"]
    command += [f"seed={seed}", f"evaluate.split={split}", f"evaluate.puzzles={400 if split == 'test' else 200}"]
    command += [*overrides, "--output", str(output.relative_to(ROOT))]  # the command runs in ROOT
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (RUNS / f"{name}.log").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    if done.returncode not in (0, 1):
        print(f"failed: {name}, see {RUNS / name}.log", flush=True)
        return
    summary = json.loads((output / "summary.json").read_text())
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    kept = {key: summary[key] for key in ("recipe", "steps", "seconds", "versions", "threads", "gain")}
    curve = [{key: row.get(key) for key in ("step", "accuracy", "rlad/clip_high", "rlad/clip_low")} for row in metrics]
    content = {
        "command": " ".join(["rlad", *command[1:]]),
        "commit": commit.stdout.strip(),
        **kept,
        "curve": curve,
    }
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(target)
    row = kept["gain"][-1]
    print(f"{name}: {row['before']:.3f} -> {row['after']:.3f} in {kept['seconds']:.0f} s", flush=True)


def load(method: str, seed: int, split: str) -> dict | None:
    """A finished cell, or None."""
    path = RESULTS / f"{cell_name(method, seed, split)}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def best_trial(label: str) -> str | None:
    """The trial with the highest accuracy on the validation split; None while one is missing."""
    cells = [(load(method, 0, "validation"), method) for method in TRIALS[label]]
    if any(cell is None for cell, _ in cells):
        return None
    return max(cells, key=lambda each: each[0]["gain"][-1]["after"])[1]


def run(seeds: int, jobs: int, overrides: list[str]) -> None:
    """Sweep, then test, `jobs` at a time."""
    RUNS.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda m: run_cell(m, 0, "validation", overrides), [m for ms in TRIALS.values() for m in ms]))
        chosen = [*FIXED.values(), *(best for label in TRIALS if (best := best_trial(label)))]
        cells = [(method, seed) for seed in range(1, seeds + 1) for method in chosen]
        list(pool.map(lambda each: run_cell(each[0], each[1], "test", overrides), cells))


def table(seeds: int) -> None:
    """Print the table in Markdown and draw docs/images/methods.png."""
    from rlad.evaluation.metrics import mean_interval
    from rlad.report.curve import learning_curve

    print("| trial (validation split, seed 0) | after |\n|---|---|")
    for method in (m for ms in TRIALS.values() for m in ms):
        cell = load(method, 0, "validation")
        print(f"| `{method}` | {'missing' if cell is None else format(cell['gain'][-1]['after'], '.1%')} |")
    print("\n| method | as run | seeds | before | after, mean | 95 % interval over seeds | 2 | 3 | 4 people |")
    print("|---|---|---|---|---|---|---|---|---|")
    curves = {}
    for label, method in {**FIXED, **{label: best_trial(label) for label in TRIALS}}.items():
        cells = [cell for s in range(1, seeds + 1) if method and (cell := load(method, s, "test"))]
        if not cells:
            print(f"| {label} | missing |")
            continue
        curves[label] = [cell["curve"] for cell in cells]
        before = sum(cell["gain"][-1]["before"] for cell in cells) / len(cells)
        mean, low, high = mean_interval([cell["gain"][-1]["after"] for cell in cells])
        by_people = [sum(cell["gain"][i]["after"] for cell in cells) / len(cells) for i in range(3)]
        print(
            f"| {label} | `{method}` | {len(cells)} | {before:.1%} | {mean:.1%} | {low:.1%} to {high:.1%} | "
            + " | ".join(f"{x:.1%}" for x in by_people)
            + " |"
        )
    if curves:
        learning_curve(curves, ROOT / "docs" / "images" / "methods.png", title="Knights & Knaves, embedded pair")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="recipe overrides for every cell")
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.seeds, arguments.jobs, arguments.overrides)
    table(arguments.seeds)


if __name__ == "__main__":
    main()
