"""Evaluation through the vLLM engine that makes the rollouts, with stand-ins for vLLM and for TRL's VLLMGeneration.

tests/integration/test_vllm_rollouts.py has the real ones.
"""

from __future__ import annotations

import sys
import types
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from rlad.errors import RladError
from rlad.evaluation.generate import Sampling
from rlad.trainer.engine import Colocated, TrainedServer, engine_backend

SAMPLING = Sampling(0.6, 0.95, 5)


class Engine:
    """VLLMGeneration with one vllm.LLM; `calls` has what was done to them, in order."""

    def __init__(self, sleeps: bool = False, mode: str = "colocate", size: int = 1) -> None:
        self.mode, self.tensor_parallel_size, self.enable_sleep_mode = mode, size, sleeps
        self._llm_weights_sleeping = sleeps
        self.calls: list[Any] = []
        model = SimpleNamespace(model_config=SimpleNamespace(max_model_len=40))
        self.llm = SimpleNamespace(
            llm_engine=model,
            generate=self.generate,
            wake_up=lambda tags: self.calls.append(("wake", *tags)),
            sleep=lambda level: self.calls.append(("sleep", level)),
        )

    def sync_weights(self) -> None:
        self._llm_weights_sleeping = False
        self.calls.append("weights")

    def generate(self, prompts: Any, params: Any, **options: Any) -> list[Any]:
        self.calls.append("generate")
        self.asked = list(zip((each["prompt_token_ids"] for each in prompts), params, strict=True))
        answer = SimpleNamespace(token_ids=[5, 6], finish_reason="stop")
        return [SimpleNamespace(outputs=[answer]) for _ in prompts]


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("vllm")
    module.SamplingParams = lambda **options: options  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)


def trainer(engine: Engine | None, **args: Any) -> Any:
    options = {"vllm_server_base_url": None, "vllm_server_host": "127.0.0.1", "vllm_server_port": 8123} | args
    return SimpleNamespace(
        use_vllm=engine is not None,
        vllm_generation=engine,
        args=SimpleNamespace(**options),
        processing_class=tiny.tokenizer(),
    )


def test_evaluations_go_where_the_rollouts_come_from() -> None:
    assert engine_backend(trainer(None)) is None
    assert engine_backend(SimpleNamespace()) is None  # SFTTrainer makes no rollouts
    assert isinstance(engine_backend(trainer(Engine())), Colocated)
    assert engine_backend(trainer(Engine(size=2))) is None  # the other half is in another process
    server = engine_backend(trainer(Engine(mode="server")))
    assert isinstance(server, TrainedServer) and server.url == "http://127.0.0.1:8123"
    named = engine_backend(trainer(Engine(mode="server"), vllm_server_base_url="http://box:9"))
    assert isinstance(named, TrainedServer) and named.url == "http://box:9"


def test_the_engine_has_the_weights_of_now_and_draws_by_seed() -> None:
    engine = Engine()
    backend = Colocated(engine, tiny.tokenizer())
    backend.prepare(3, 5)
    found = backend.sample([[1, 2], [3]], [11, 12], SAMPLING)
    assert engine.calls == ["weights", "generate"]
    assert [prompt for prompt, _ in engine.asked] == [[1, 2], [3]]
    first = engine.asked[0][1]
    assert (first["seed"], first["temperature"], first["top_p"], first["max_tokens"]) == (11, 0.6, 0.95, 5)
    # A recipe may end responses with another token than the model's files, which are all that vLLM reads.
    assert first["stop_token_ids"] == [tiny.tokenizer().eos_token_id]
    assert [response.tokens for response in found] == [2, 2] and not found[0].truncated


def test_an_engine_that_slept_sleeps_again_and_is_known_to() -> None:
    engine = Engine(sleeps=True)
    backend = Colocated(engine, tiny.tokenizer())
    backend.prepare(3, 5)
    backend.sample([[1]], [11], SAMPLING)
    assert engine.calls == ["weights", ("wake", "kv_cache"), "generate", ("sleep", 2)]
    assert engine._llm_weights_sleeping  # or TRL would generate with weights that are gone


def test_what_does_not_fit_the_engine_is_said_before_it_has_weights() -> None:
    engine = Engine()
    with pytest.raises(RladError, match="do not fit the model's 40 positions"):
        Colocated(engine, tiny.tokenizer()).prepare(36, 5)
    assert engine.calls == []


def test_a_server_is_asked_with_the_students_end() -> None:
    server = TrainedServer(Engine(mode="server"), "http://127.0.0.1:1", tiny.tokenizer())
    assert server.more == {"stop_token_ids": [tiny.tokenizer().eos_token_id]}
