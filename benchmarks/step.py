"""Where a training step's seconds go: RLAD beside TRL's stock GRPOTrainer, same models, batch and lengths, one run.

    OMP_NUM_THREADS=1 python benchmarks/step.py --steps 30

The student is the embedded one; the teacher has its shape and layers enough for twice its parameters (random weights
cost what trained ones do). Both trainers take turns, so that whatever else the machine does falls on both. Responses
are forced to one length (no end of sequence), so both do the same work.

"ours" is the advantages and the objective, forward (the trainer's own timer) and backward (from the gradient's arrival
at the objective to its arrival at the student's log-probs, timed here). Prints medians, and ratios that do not depend
on the machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from rlad import RLADConfig, RLADTrainer
from rlad.models import resolve
from rlad.tasks import load_task


class _Steps(TrainerCallback):
    """Keeps TRL's own step_time and our timers of every step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "step_time" in logs:
            self.rows.append(dict(logs))


class _TimedRLADTrainer(RLADTrainer):
    """RLADTrainer that also times the objective's backward pass."""

    def _put_objective(self, batch: dict[str, Any], logps: torch.Tensor) -> torch.Tensor:
        stored = super()._put_objective(batch, logps)
        started: list[float] = []
        batch["advantages"].register_hook(lambda grad: started.append(time.perf_counter()))
        logps.register_hook(lambda grad: self._timers.add("ours_backward", time.perf_counter() - started.pop()))
        return stored


def _reward(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(len(completion[-1]["content"]) % 2) for completion in completions]


def _trainer(kind: type, student: Any, tokenizer: Any, data: Dataset, arguments: dict[str, Any], **kwargs: Any) -> Any:
    config = RLADConfig(output_dir=tempfile.mkdtemp(), **arguments)
    steps = _Steps()
    trainer = kind(
        copy.deepcopy(student), _reward, config, data, processing_class=tokenizer, callbacks=[steps], **kwargs
    )
    trainer.remove_callback(PrinterCallback)
    trainer.steps = steps
    return trainer


def _size(model: Any) -> int:
    return sum(each.numel() for each in model.parameters())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3, help="turns that the two trainers take")
    options = parser.parse_args()
    folder = resolve("embedded:student")
    student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    config = copy.deepcopy(student.config)
    config.layer_types = None
    teacher = student
    while _size(teacher) < 2 * _size(student):
        config.num_hidden_layers += 1
        teacher = AutoModelForCausalLM.from_config(type(config)(**config.to_dict()), dtype=torch.float32)
    data = Dataset.from_list(load_task({"name": "knights_knaves", "people": [3]}).train())
    shared = {
        "max_steps": options.steps // options.rounds + 1,  # the first step of each turn warms up and is left out
        "per_device_train_batch_size": options.rollouts,
        "max_completion_length": options.tokens,
        "generation_kwargs": {"min_new_tokens": options.tokens},
        "learning_rate": 1e-6,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    rows: dict[str, list[dict[str, float]]] = {"grpo (TRL)": [], "rlad": []}
    for _ in range(options.rounds):
        stock = _trainer(GRPOTrainer, student, tokenizer, data, {**shared, "method": "grpo"})
        ours = _trainer(
            _TimedRLADTrainer, student, tokenizer, data, shared, teacher_model=copy.deepcopy(teacher),
            teacher_processing_class=tokenizer,
        )  # fmt: skip
        for name, trainer in (("grpo (TRL)", stock), ("rlad", ours)):
            trainer.train()
            rows[name] += trainer.steps.rows[1:]
    medians = {name: statistics.median(row["step_time"] for row in each) for name, each in rows.items()}
    parts = {
        part: statistics.median(row[f"rlad/seconds/{part}"] for row in rows["rlad"])
        for part in ("generation", "rewards", "rollouts", "teacher", "ours", "ours_backward")
    }
    step = medians["rlad"]
    print(
        json.dumps(
            {
                "threads": torch.get_num_threads(),
                "steps": {name: len(each) for name, each in rows.items()},
                "median seconds a step": medians,
                "rlad over grpo": step / medians["grpo (TRL)"],
                "parts of a step (share)": {
                    "generation": parts["generation"] / step,
                    "teacher": parts["teacher"] / step,
                    "ours": (parts["ours"] + parts["ours_backward"]) / step,
                    "update and the rest": 1
                    - (parts["rollouts"] + parts["teacher"] + parts["ours"] + parts["ours_backward"]) / step,
                    "rewards and TRL's rollout bookkeeping": (parts["rollouts"] - parts["generation"]) / step,
                },
                "teacher parameters over student's": _size(teacher) / _size(student),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
