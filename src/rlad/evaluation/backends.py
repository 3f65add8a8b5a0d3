"""Other places that responses come from: vLLM in this process, and a server that speaks OpenAI's completions API."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlad.errors import RladError
from rlad.evaluation.generate import Response, Sampling, check_length
from rlad.evaluation.models import ModelName

# Said explicitly: a server, and vLLM's defaults, take top-k and penalties from the model's generation config.
_PLAIN = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
PATIENCE = (3_600.0, 4, 1.0)  # seconds for one response, tries after the first, seconds of the first wait


class VLLMBackend:
    """A model in vLLM (`pip install trl[vllm]`), in this process.

    engine: more arguments of vllm.LLM, such as {"tensor_parallel_size": 2}. Each response is a request with a seed of
    its own; a prefix that requests share is computed once.
    """

    def __init__(self, model: ModelName, engine: Mapping[str, Any] | None = None) -> None:
        try:
            vllm = importlib.import_module("vllm")
        except ImportError as error:
            raise RladError(
                f"vLLM cannot be imported ({error}): pip install 'trl[vllm]', or choose --backend transformers"
            ) from None
        self._vllm, self._model, self._engine = vllm, model, dict(engine or {})
        self._llm: Any = None
        self._lora: Any = None
        self.tokenizer = model.tokenizer()

    def prepare(self, longest: int, max_new_tokens: int) -> None:
        """Start the engine, with room for the longest prompt and response and no more. See Backend."""
        options: dict[str, Any] = {
            "tokenizer": self.tokenizer.name_or_path,
            "dtype": self._model.dtype or "auto",
            "max_model_len": longest + max_new_tokens,
            "load_format": "safetensors",
            "seed": 0,
        }
        if self._model.is_adapter:
            from rlad.teacher.local import safe_adapter

            request = importlib.import_module("vllm.lora.request")
            self._lora = request.LoRARequest("adapter", 1, safe_adapter(self._model.path))
            options |= {"enable_lora": True, "max_lora_rank": _lora_rank(self._model)}
        elif self._model.revision is not None:
            options |= {"revision": self._model.revision, "tokenizer_revision": self._model.revision}
        try:
            self._llm = self._vllm.LLM(model=self._model.base_path, **{**options, **self._engine})
        except (TypeError, ValueError, OSError, RuntimeError) as error:  # pydantic's errors are ValueErrors
            raise RladError(f"vLLM cannot load {self._model.name!r}: {' '.join(str(error).split())}") from None

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[Response]:
        """See Backend."""
        return vllm_responses(self._llm, self.tokenizer, prompts, seeds, sampling, self._lora)


def vllm_responses(
    llm: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    lora_request: Any = None,
    **more: Any,
) -> list[Response]:
    """A response of a vllm.LLM to each prompt (token ids), drawn from its own seed. more: for vllm.SamplingParams."""
    vllm = importlib.import_module("vllm")
    params = [
        vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=seed,
            **_PLAIN,
            **more,
        )
        for seed in seeds
    ]
    asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    outputs = llm.generate(asked, params, use_tqdm=False, lora_request=lora_request)
    return [_response(tokenizer, output.outputs[0]) for output in outputs]


def _response(tokenizer: Any, output: Any) -> Response:
    ids = list(output.token_ids)
    return Response(tokenizer.decode(ids, skip_special_tokens=True), len(ids), output.finish_reason == "length")


def _lora_rank(model: ModelName) -> int:
    """The rank of an adapter, rounded up to one that vLLM has."""
    from peft import PeftConfig

    rank = int(PeftConfig.from_pretrained(model.path).r)
    return next((each for each in (8, 16, 32, 64, 128, 256, 320, 512) if each >= rank), rank)


class ServerBackend:
    """A model that is served: POST /v1/completions with token ids, as vLLM and those that follow it take them.

    url: http://host:port. model: the name that it is served by; None: the only one that /v1/models lists. tokenizer: of
    the model, loaded here, so that the prompt is the same as with the other backends. concurrency: requests at once.
    more: for the body of each request.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Any,
        model: str | None = None,
        *,
        api_key_env: str | None = None,
        concurrency: int = 64,
        patience: tuple[float, int, float] = PATIENCE,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        from rlad.teacher.transport import Patience, checked_url, close_with, make_client, read_key

        self.more = dict(more or {})
        self.url, self.tokenizer, self.model, self.concurrency = checked_url(url), tokenizer, model, concurrency
        self._patience = Patience(*patience)
        self._client = make_client(read_key(api_key_env), concurrency)
        close_with(self, self._client)

    def prepare(self, longest: int, max_new_tokens: int) -> None:
        """Ask the server what it serves. See Backend."""
        from rlad.teacher.transport import Patience

        listed = self._ask("/v1/models", None, Patience(10.0, 0, 0.0))
        try:
            served = {each["id"]: each.get("max_model_len") for each in listed["data"]}
        except (KeyError, TypeError, AttributeError):
            raise RladError(f"{self.url}/v1/models does not list models as OpenAI's API does") from None
        if self.model is None and len(served) == 1:
            self.model = next(iter(served))
        if self.model not in served:
            raise RladError(f"{self.url} serves {', '.join(served)}: say which with --served-model")
        check_length(served[self.model], longest, max_new_tokens)

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[Response]:
        """See Backend. Raises RladError where the server refuses, or fails after its retries."""
        from rlad.teacher.transport import run

        return run(self._sample(prompts, seeds, sampling))

    async def _sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> list[Response]:
        gate = asyncio.Semaphore(self.concurrency)

        async def one(prompt: Sequence[int], seed: int) -> Response:
            body = {
                "model": self.model,
                "prompt": list(prompt),
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": seed,
                "return_token_ids": True,
                **_PLAIN,
                **self.more,
            }
            async with gate:
                return self._read(await self._request("/v1/completions", body, self._patience))

        try:
            async with asyncio.TaskGroup() as group:  # the first error cancels the others
                tasks = [group.create_task(one(*each)) for each in zip(prompts, seeds, strict=True)]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _ask(self, path: str, body: Mapping[str, Any] | None, patience: Any) -> Any:
        from rlad.teacher.transport import run

        return run(self._request(path, body, patience))

    async def _request(self, path: str, body: Mapping[str, Any] | None, patience: Any) -> Any:
        from rlad.teacher.transport import GaveUp, Refused, request_json

        try:
            return await request_json(self._client, self.url + path, body, patience)
        except (GaveUp, Refused) as error:
            raise RladError(f"the server at {self.url} did not answer {path}: {error}") from None

    def _read(self, answer: Any) -> Response:
        try:
            (choice,) = answer["choices"]
            ids, reason = choice.get("token_ids"), choice["finish_reason"]
            if ids is not None:  # decoded here, so that special tokens are left out by the same rule everywhere
                return Response(self.tokenizer.decode(ids, skip_special_tokens=True), len(ids), reason == "length")
            return Response(str(choice["text"]), int(answer["usage"]["completion_tokens"]), reason == "length")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RladError(
                f"the server at {self.url} answered /v1/completions in another form than OpenAI's ({error!r})"
            ) from None
