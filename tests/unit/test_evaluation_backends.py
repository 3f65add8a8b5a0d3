"""vLLM and a server, as stubs that hold what they are asked against the real programs' interfaces."""

from __future__ import annotations

import json
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from rlad.errors import RladError
from rlad.evaluation.backends import ServerBackend, VLLMBackend
from rlad.evaluation.generate import Response, Sampling
from rlad.evaluation.models import ModelName

# Of vllm.SamplingParams and vllm.LLM in vLLM 0.32.0.
SAMPLING_FIELDS = {
    "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p",
    "seed", "stop", "stop_token_ids", "ignore_eos", "max_tokens", "min_tokens", "logprobs", "detokenize",
}  # fmt: skip
ENGINE_FIELDS = {
    "model", "tokenizer", "dtype", "revision", "tokenizer_revision", "seed", "enforce_eager", "gpu_memory_utilization",
    "tensor_parallel_size", "max_model_len", "load_format", "enable_lora", "max_lora_rank",
}  # fmt: skip
SAMPLING = Sampling(0.6, 0.95, 7)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return tiny.save(1, tmp_path / "model")


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the module: it answers every prompt with the token that its seed says, and remembers."""
    seen = SimpleNamespace(engines=[], asked=[])

    class SamplingParams:
        def __init__(self, **fields: Any) -> None:
            assert fields.keys() <= SAMPLING_FIELDS
            self.fields = fields

    class LLM:
        def __init__(self, **fields: Any) -> None:
            assert fields.keys() <= ENGINE_FIELDS
            if fields.get("gpu_memory_utilization") == 2:
                raise ValueError("utilization\nmust be below 1")
            seen.engines.append(fields)

        def generate(self, prompts: Any, params: Any, *, use_tqdm: bool = True, lora_request: Any = None) -> Any:
            assert not use_tqdm and len(prompts) == len(params)
            seen.asked.append((prompts, [each.fields for each in params], lora_request))
            return [
                SimpleNamespace(
                    outputs=[
                        SimpleNamespace(
                            text="not read",
                            token_ids=(each.fields["seed"], tiny.tokenizer().eos_token_id),
                            finish_reason="length" if each.fields["seed"] == 40 else "stop",
                        )
                    ]
                )
                for each in params
            ]

    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    request = types.ModuleType("vllm.lora.request")
    request.LoRARequest = lambda *fields: fields  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.lora.request", request)
    return seen


def test_vllm_gets_token_ids_and_a_seed_for_each_response(model: str, vllm: SimpleNamespace) -> None:
    backend = VLLMBackend(ModelName(model, dtype="float32"), {"tensor_parallel_size": 2})
    assert vllm.engines == []  # it starts when the longest prompt is known
    backend.prepare(longest=11, max_new_tokens=7)
    (engine,) = vllm.engines
    assert engine["model"] == model and engine["dtype"] == "float32" and engine["tensor_parallel_size"] == 2
    assert engine["max_model_len"] == 18 and engine["load_format"] == "safetensors"
    found = backend.sample([[1, 2], [3]], [40, 41], SAMPLING)
    text = tiny.tokenizer().decode
    assert found == [Response(text([40]), 2, True), Response(text([41]), 2, False)]
    prompts, params, lora = vllm.asked[0]
    assert prompts == [{"prompt_token_ids": [1, 2]}, {"prompt_token_ids": [3]}] and lora is None
    # what a model's generation config says of top-k and penalties must not come in
    plain = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert params[1] == {"temperature": 0.6, "top_p": 0.95, "max_tokens": 7, "seed": 41, **plain}


def test_vllm_loads_an_adapter_on_its_base(model: str, vllm: SimpleNamespace, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapter = tmp_path / "adapter"
    get_peft_model(tiny.model(1), LoraConfig(r=12, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(
        adapter
    )
    backend = VLLMBackend(ModelName(str(adapter), base=model))
    backend.prepare(4, 4)
    backend.sample([[1]], [41], SAMPLING)
    assert vllm.engines[0]["model"] == model and vllm.engines[0]["enable_lora"]
    assert vllm.engines[0]["max_lora_rank"] == 16  # vLLM has 8, 16, 32, ...
    assert vllm.asked[0][2] == ("adapter", 1, str(adapter))


def test_vllm_that_is_not_there_or_does_not_start(
    model: str, vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RladError, match=r"vLLM cannot load .*: utilization must be below 1"):
        VLLMBackend(ModelName(model), {"gpu_memory_utilization": 2}).prepare(1, 1)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RladError, match=r"pip install 'trl\[vllm\]', or choose --backend transformers"):
        VLLMBackend(ModelName(model))


class Server(ThreadingHTTPServer):
    """OpenAI's completions: the token that the seed says. `answer` may be replaced."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.models: Any = {"data": [{"id": "m", "max_model_len": 20}]}
        self.tokens = True
        self.broken: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, body: dict[str, Any]) -> Any:
        if self.broken is not None:
            return self.broken
        choice = {"text": "as the server has it", "finish_reason": "length" if body["seed"] == 40 else "stop"}
        if self.tokens:
            choice["token_ids"] = [body["seed"], tiny.tokenizer().eos_token_id]
        return {"choices": [choice], "usage": {"completion_tokens": 2}}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._send(200 if self.path == "/v1/models" else 404, self.server.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if body["seed"] == 13:
            self._send(400, {"error": {"message": "an unlucky seed"}})
        else:
            self._send(200, self.server.answer(body))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_a_server_gets_token_ids_and_a_seed_for_each_response(server: Server) -> None:
    backend = ServerBackend(server.url + "/v1/", tiny.tokenizer(), concurrency=3)
    backend.prepare(5, 7)
    seeds = list(range(40, 60))
    found = backend.sample([[1, seed] for seed in seeds], seeds, SAMPLING)
    assert found == [Response(tiny.tokenizer().decode([seed]), 2, seed == 40) for seed in seeds]
    body = next(each for each in server.asked if each["seed"] == 41)
    assert body["model"] == "m" and body["prompt"] == [1, 41] and body["max_tokens"] == 7
    assert (body["temperature"], body["top_p"], body["top_k"], body["repetition_penalty"]) == (0.6, 0.95, 0, 1.0)
    server.tokens = False  # a server that does not know return_token_ids
    assert backend.sample([[1]], [41], SAMPLING) == [Response("as the server has it", 2, False)]


def test_servers_that_cannot_be_used(server: Server) -> None:
    backend = ServerBackend(server.url, tiny.tokenizer())
    with pytest.raises(RladError, match=r"a prompt of 15 tokens .* set max_new_tokens to at most 5"):
        backend.prepare(15, 7)
    with pytest.raises(RladError, match="an unlucky seed"):
        backend.sample([[1], [2]], [41, 13], SAMPLING)
    server.broken = {"choices": []}
    with pytest.raises(RladError, match="in another form than OpenAI's"):
        backend.sample([[1]], [41], SAMPLING)
    server.models = {"data": [{"id": "m"}, {"id": "n"}]}
    with pytest.raises(RladError, match="serves m, n: say which with --served-model"):
        ServerBackend(server.url, tiny.tokenizer()).prepare(1, 1)
    ServerBackend(server.url, tiny.tokenizer(), "n").prepare(10**6, 1)  # it does not say how long
    server.models = []
    with pytest.raises(RladError, match="does not list models"):
        backend.prepare(1, 1)
    server.shutdown()
    server.server_close()
    with pytest.raises(RladError, match="did not answer /v1/models"):
        ServerBackend(server.url, tiny.tokenizer()).prepare(1, 1)


def test_an_adapter_is_evaluated_on_its_base(model: str, tmp_path: Path) -> None:
    """Loaded here, it changes what the base says, and is the adapter's sum and not the base."""
    import torch
    from peft import LoraConfig, get_peft_model

    adapted: Any = get_peft_model(
        tiny.model(1), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        loaded, tokenizer = ModelName(str(tmp_path / "adapter"), base=model).load()
        assert torch.allclose(loaded(input_ids=ids).logits, expected, atol=1e-5)
        assert not torch.allclose(ModelName(model).load()[0](input_ids=ids).logits, expected, atol=1e-2)
    assert len(tokenizer) == len(tiny.tokenizer())  # the base's: the adapter's folder has none
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for base, says in (
        ("/nowhere", "is on /nowhere, which is not there: name its base"),
        (None, "names no base model"),
    ):
        config["base_model_name_or_path"] = base
        if base is None:
            del config["base_model_name_or_path"]
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(RladError, match=says):
            _ = ModelName(str(tmp_path / "adapter")).base_path
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(RladError, match=r"has no adapter_model\.safetensors"):
        ModelName(str(tmp_path / "adapter"), base=model).load()


def test_dtype_and_weights(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert ModelName(model, dtype="bfloat16").load()[0].dtype == torch.bfloat16
    assert ModelName(model).load()[0].dtype == torch.float32 or torch.cuda.is_available()
    weights = Path(model) / "model.safetensors"
    first = ModelName(model).which_weights()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert first != ModelName(model).which_weights()
    monkeypatch.setattr("rlad.evaluation.models._SAMPLE", 1000)  # a large file: of its end, the last MiB is read
    second = ModelName(model).which_weights()
    content[-1] ^= 1
    weights.write_bytes(content)
    assert second != ModelName(model).which_weights()
    with pytest.raises(RladError, match="dtype must be one of"):
        ModelName(model, dtype="int4")
