"""`rlad train` with vLLM in the training process: rollouts, and the evaluations before and after, go through it.

RLAD_TEST_VLLM names a virtual environment with vllm, trl and rlad in it (docs/trainer.md says how to make one that runs
on a CPU); without it, or where they are not there, these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlad.evaluation.run import Evaluation, evaluate
from rlad.models import resolve
from rlad.tasks import load_task

pytestmark = [pytest.mark.server, pytest.mark.slow]

PUZZLES = 16  # whose prompts fit one pass of the engine: seeded draws fail in vLLM's CPU build where one is cut in two
TASK = {"name": "knights_knaves", "people": [2, 3]}
RECIPE = {
    "model": "embedded:student",
    "teacher": "embedded:teacher",
    "task": TASK,
    "method": "rlad",
    "trainer": {
        "max_steps": 2, "per_device_train_batch_size": 32, "num_generations": 8, "max_completion_length": 128,
        "learning_rate": 1e-3, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no",
        "use_vllm": True, "vllm_gpu_memory_utilization": 0.1, "vllm_max_model_length": 512,
    },
    "evaluate": {"puzzles": PUZZLES, "temperature": 0},
}  # fmt: skip
# The CPU build packs its weights, which TRL's load_weights cannot replace: they are loaded anew, the tied head too.
PROGRAM = """
import sys
from trl.generation.vllm_generation import VLLMGeneration

def sync_weights(self):
    weights = [(name, each.data) for name, each in self.model.named_parameters()]
    weights.append(("lm_head.weight", self.model.get_input_embeddings().weight.data))
    self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
    self.llm.reset_prefix_cache()

VLLMGeneration.sync_weights = sync_weights
from rlad.cli.main import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of RECIPE."""
    named = os.environ.get("RLAD_TEST_VLLM")
    if not named:
        pytest.skip("RLAD_TEST_VLLM is not set")
    place = Path(named).expanduser()
    python = str(place if place.is_file() else place / "bin" / "python")
    if subprocess.run([python, "-c", "import trl, rlad, vllm"], capture_output=True).returncode:
        pytest.skip("RLAD_TEST_VLLM has no trl or no rlad")
    folder = tmp_path_factory.mktemp("rollouts")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"output": str(folder / "run")}))
    (folder / "program.py").write_text(PROGRAM)
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [python, str(folder / "program.py"), "train", str(folder / "recipe.yaml")],
        env=environment, capture_output=True, text=True, cwd=folder, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run"


def answered(model: str) -> list[float]:
    """Accuracy of each puzzle by transformers, in this process, taking the likeliest token each time."""
    task = load_task(TASK)
    examples = list(task.evaluation("test", PUZZLES))
    weights: Any = AutoModelForCausalLM.from_pretrained(resolve(model))
    tokenizer = AutoTokenizer.from_pretrained(resolve(model))
    return evaluate(weights, tokenizer, examples, task, temperature=0, max_new_tokens=128).accuracies


def by_vllm(run: Path, when: str) -> list[float]:
    path = run / f"evaluation-{when}.json"
    settings = json.loads(path.read_text())["settings"]
    assert settings["batch_size"] == PUZZLES  # all at once, which transformers would not be asked for
    return Evaluation.load(path).accuracies


def test_its_evaluations_are_those_of_the_weights_before_and_after(run: Path) -> None:
    before, after = answered("embedded:student"), answered(str(run / "model"))
    assert before != after  # or this would not see weights that stayed as they were
    assert by_vllm(run, "before") == before
    assert by_vllm(run, "after") == after


def test_rollouts_are_drawn_from_the_student_that_is_trained(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:  # old policy over vLLM, of each token: the second step's only if the weights followed
        assert row["sampling/sampling_logp_difference/mean"] < 0.01
        assert row["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=0.01)
    assert all(row["rlad/seconds/teacher"] > 0 for row in rows)
