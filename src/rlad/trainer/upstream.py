"""Every private name of TRL that rlad leans on, in one place; `problems()` says which of them are gone.

TRL moves these every month; pyproject.toml pins the minor version, and an upgrade starts by reading this file.
"""

from __future__ import annotations

import inspect
from typing import Any

from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head, pad, use_adapter

__all__ = ["add_fused_lm_head", "pad", "problems", "use_adapter"]

# method of GRPOTrainer that we override -> its first parameters, in order
METHODS: dict[str, tuple[str, ...]] = {
    "_prepare_inputs": ("self", "generation_batch"),
    "_generate_and_score_completions": ("self", "inputs"),
    "_generate": ("self", "prompts"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_compute_loss": ("self", "model", "inputs"),
    "_get_per_token_logps_and_entropies": (
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
    ),
    "_run_epoch": ("self",),
    "_save_checkpoint": ("self", "model", "trial"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
}
# the same of those that we only call
CALLED: dict[str, tuple[str, ...]] = {"_get_output_dir": ("self", "trial")}
# attributes that GRPOTrainer sets and we read or write
ATTRIBUTES = (
    "_metrics",
    "_tokenizer",
    "_buffered_inputs",
    "_step",
    "aux_loss_enabled",
    "top_entropy_quantile",
    "num_generations",
    "num_generations_eval",
    "reward_weights",
    "reward_func_names",
    "scale_rewards",
    "loss_type",
    "tools",
    "eos_token_ids",
    "chat_template_kwargs",
    "vllm_generation",
)
# the same of VLLMGeneration, through which evaluations go where vLLM makes the rollouts
ENGINE = ("llm", "mode", "tensor_parallel_size", "enable_sleep_mode", "_llm_weights_sleeping")
# keys of the batch: read, or replaced on a copy
BATCH_KEYS = (
    "prompt_ids",
    "prompt_mask",
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "advantages",
    "old_per_token_logps",
    "ref_per_token_logps",
    "num_items_in_batch",
)


def problems() -> list[str]:
    """What the installed TRL no longer has as we use it; empty when everything fits."""
    found = []
    for name, expected in (METHODS | CALLED).items():
        method: Any = getattr(GRPOTrainer, name, None)
        if method is None:
            found.append(f"GRPOTrainer.{name} is gone")
            continue
        parameters = tuple(inspect.signature(method).parameters)
        if parameters[: len(expected)] != expected:
            found.append(f"GRPOTrainer.{name}{parameters} does not begin with {expected}")
    source = inspect.getsource(GRPOTrainer)
    found += [f"GRPOTrainer no longer has self.{name}" for name in ATTRIBUTES if f"self.{name}" not in source]
    engine = inspect.getsource(VLLMGeneration)
    found += [f"VLLMGeneration no longer has self.{name}" for name in ENGINE if f"self.{name}" not in engine]
    if not hasattr(VLLMGeneration, "sync_weights"):
        found.append("VLLMGeneration.sync_weights is gone")
    found += [f"the batch no longer has {name!r}" for name in BATCH_KEYS if f'"{name}"' not in source]
    return found
