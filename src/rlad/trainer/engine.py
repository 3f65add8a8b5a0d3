"""The student answers evaluations through vLLM where vLLM makes the trainer's rollouts: long responses would take hours
with transformers, whose cache of keys and values has no room beside the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlad.evaluation.backends import ServerBackend, vllm_responses
from rlad.evaluation.generate import Backend, Response, Sampling, check_length


def engine_backend(trainer: Any) -> Backend | None:
    """What generates evaluations for this trainer; None where that is transformers.

    trainer: a GRPOTrainer, or one without rollouts (SFT). An engine that several processes make up together
    (vllm_tensor_parallel_size above 1) is left out, because the first process evaluates alone.
    """
    if not getattr(trainer, "use_vllm", False):
        return None
    engine, args = trainer.vllm_generation, trainer.args
    if engine.mode == "server":
        url = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
        return TrainedServer(engine, url, trainer.processing_class)
    return Colocated(engine, trainer.processing_class) if engine.tensor_parallel_size == 1 else None


def _ends(tokenizer: Any) -> dict[str, list[int]]:
    """What ends a response, beside what vLLM has from the model's files: a recipe may have set another token."""
    return {"stop_token_ids": [tokenizer.eos_token_id]}


class Colocated:
    """The vLLM engine in this process, with the student's weights of now. See rlad.evaluation.generate.Backend.

    engine: trl.generation.vllm_generation.VLLMGeneration.
    """

    def __init__(self, engine: Any, tokenizer: Any) -> None:
        self.engine, self.tokenizer = engine, tokenizer

    def prepare(self, longest: int, max_new_tokens: int) -> None:
        """Give it the weights. See Backend."""
        check_length(self.engine.llm.llm_engine.model_config.max_model_len, longest, max_new_tokens)
        self.engine.sync_weights()

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[Response]:
        """See Backend."""
        engine = self.engine
        if engine.enable_sleep_mode:  # its weights were woken by sync_weights
            engine.llm.wake_up(tags=["kv_cache"])
        found = vllm_responses(engine.llm, self.tokenizer, prompts, seeds, sampling, **_ends(self.tokenizer))
        if engine.enable_sleep_mode:
            engine.llm.sleep(level=2)
            engine._llm_weights_sleeping = True
        return found


class TrainedServer(ServerBackend):
    """The vLLM server that makes the rollouts, with the student's weights of now."""

    def __init__(self, engine: Any, url: str, tokenizer: Any) -> None:
        super().__init__(url, tokenizer, more=_ends(tokenizer))
        self.engine = engine

    def prepare(self, longest: int, max_new_tokens: int) -> None:
        """See Backend."""
        super().prepare(longest, max_new_tokens)
        self.engine.sync_weights()
