"""A served teacher: vLLM scores what the student wrote, over HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import torch
from torch import Tensor

from rlad.errors import RladError
from rlad.models import load_tokenizer
from rlad.objectives.signals import usable_teacher
from rlad.teacher.transport import (
    GaveUp,
    Patience,
    Refused,
    checked_url,
    close_with,
    make_client,
    read_key,
    request_json,
    run,
)

CONCURRENCY, TIMEOUT, RETRIES = 32, 120.0, 6
ONE_LOOK = Patience(timeout=10.0, retries=0, backoff=0.0)  # for /v1/models and /tokenize, which cost a server nothing
LOOK_AGAIN_SECONDS = 60.0
FLOOR = -9999.0  # what vLLM writes for -inf
AT_TEMPERATURE_1 = (
    "vLLM's prompt_logprobs are at temperature 1 whatever is asked. Set it to 1, or load the teacher in this process"
)
GO_ON = "Start it again (docs/teacher.md) and go on from the last checkpoint with --resume"

log = logging.getLogger(__name__)


@dataclass
class _Replica:
    """One server. busy: sequences that it has now. failure: why it is not used, None while it is. limit: tokens that a
    sequence may have there, where it says so."""

    url: str
    busy: int = 0
    failure: str | None = "it was not asked yet"
    look_again_at: float = -math.inf
    limit: int | None = None


class ServerTeacher:
    """A model behind vLLM's POST /v1/completions. See `rlad.teacher.Teacher`.

    urls: http://host:port of one server, or of several that serve the same model. A sequence goes to the least busy;
        one that fails after its retries is set aside, its sequences go to the others, and it is looked at again after
        a minute.
    model: the name that it is served by. None: the only one that /v1/models lists.
    api_key_env: the environment variable that holds the key. The key is in no error, log, repr or recipe.
    concurrency: sequences in flight at once, over all servers; each process of a distributed run has as many.
    timeout, retries, backoff: `rlad.teacher.transport.Patience`.
    tokenizer: a hub id or path of the teacher's tokenizer, to be compared with the student's whole vocabulary and end
        of sequence. None: `prepare` compares how server and student split one text, where the server has /tokenize.

    Scores are at temperature 1, whatever is asked of vLLM.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        model: str | None = None,
        *,
        api_key_env: str | None = None,
        concurrency: int = CONCURRENCY,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        tokenizer: str | None = None,
        backoff: float = 0.5,
    ) -> None:
        self.urls = [checked_url(url) for url in ([urls] if isinstance(urls, str) else urls)]
        if not self.urls or len(set(self.urls)) < len(self.urls):
            raise RladError(f"a served teacher needs URLs that differ, not {self.urls}")
        if concurrency < 1 or retries < 0 or not timeout > 0:
            raise RladError(
                "a served teacher needs concurrency >= 1, retries >= 0 and timeout > 0, not "
                f"{concurrency}, {retries} and {timeout}"
            )
        self.model, self.api_key_env, self.tokenizer = model, api_key_env, tokenizer
        self.patience = Patience(timeout, retries, backoff)
        self._client = make_client(read_key(api_key_env), concurrency)
        close_with(self, self._client)
        self._gate = asyncio.Semaphore(concurrency)
        self._replicas = [_Replica(url) for url in self.urls]

    def __repr__(self) -> str:
        return f"ServerTeacher({self.urls}, model={self.model!r})"

    # --- before the first step

    def prepare(self, tokenizer: Any, temperature: float = 1.0, longest: int | None = None) -> None:
        """Find out before the first step whether this can work.

        tokenizer: of the tokens that are scored: the student's, or in spans the teacher's own. temperature: of the
        student's sampling. longest: tokens of the longest response, where that is known.

        Raises RladError when the temperature is not 1, no server answers, the model is not served or takes no sequence
        so long, the tokens differ where that can be known, or one known text is not scored with a finite value for each
        of its tokens.
        """
        if temperature != 1:
            raise RladError(f"a served teacher does not fit temperature {temperature:g}: {AT_TEMPERATURE_1}")
        run(self._connect())
        if self.tokenizer is not None:
            self._compare_tokenizers(tokenizer)
        for replica in self._alive():
            if longest is not None and replica.limit is not None and longest + 2 > replica.limit:  # prompt, one more
                raise RladError(
                    f"the teacher at {replica.url} takes {replica.limit} tokens, and a response alone may have "
                    f"{longest}: serve it with a larger --max-model-len, or lower max_completion_length"
                )
            run(self._compare_splits(replica, tokenizer))
            run(self._self_test(replica, tokenizer))

    def _compare_tokenizers(self, tokenizer: Any) -> None:
        from rlad.teacher.compatibility import check_tokenizers

        assert self.tokenizer is not None
        check_tokenizers(tokenizer, load_tokenizer(self.tokenizer, "the teacher"))

    async def _compare_splits(self, replica: _Replica, tokenizer: Any) -> None:
        """vLLM's /tokenize, which other servers need not have."""
        from rlad.teacher.compatibility import PROBE

        body = {"model": self.model, "prompt": PROBE, "add_special_tokens": False}
        try:
            answer = await request_json(self._client, f"{replica.url}/tokenize", body, ONE_LOOK)
            theirs = list(answer["tokens"])
        except (Refused, GaveUp, KeyError, TypeError):
            if self.tokenizer is None:
                log.warning("%s has no /tokenize: name the teacher's tokenizer to have it checked", replica.url)
            return
        ours = list(tokenizer(PROBE, add_special_tokens=False).input_ids)
        if ours != theirs:
            raise RladError(
                f"the teacher at {replica.url} does not have the tokens of {self.tokenizer or 'the student'}: a "
                f"probing text is {len(ours)} tokens ({ours[:6]} ...) there and {len(theirs)} ({theirs[:6]} ...) for "
                "the server. Serve a teacher of the student's family, or name its own tokenizer with alignment spans"
            )

    async def _self_test(self, replica: _Replica, tokenizer: Any) -> None:
        """Score a text and an end of sequence: tokens that every response is made of."""
        from rlad.teacher.compatibility import PROBE

        ids = [*tokenizer(PROBE, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        try:
            logps = await self._ask(replica, ids[:1], ids[1:], "the self-test")
        except GaveUp as error:
            raise RladError(f"self-test: the teacher at {replica.url} failed: {error}. {GO_ON}") from None
        if not torch.isfinite(logps).all():
            raise RladError(
                f"self-test: the teacher at {replica.url} gives NaN, infinite or positive log-probs for "
                f"{int((~torch.isfinite(logps)).sum())} of {len(logps)} tokens of a plain text: serve it in bfloat16 "
                "or float32, and check its vocabulary and weights"
            )

    # --- scoring

    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `rlad.teacher.Teacher`; at temperature 1.

        A value that is null, NaN, infinite, vLLM's -9999 for -inf, or positive is NaN here: the trainer counts it as
        broken. Raises RladError that names the server and the sequence when no server is left after the retries, when
        one refuses a sequence, and when an answer does not have exactly the tokens that were asked for.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses")
        if any(not prompt for prompt in prompts):
            raise ValueError("a prompt is empty: the first token of its response would have nothing to be scored by")
        return run(self._score(prompts, responses))

    async def _score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Tensor]:
        await self._connect()

        async def one(i: int) -> Tensor:
            if not responses[i]:
                return torch.zeros(0)
            async with self._gate:
                return await self._sequence(prompts[i], responses[i], f"sequence {i} of {len(prompts)}")

        try:
            async with asyncio.TaskGroup() as group:  # the first error cancels the others
                tasks = [group.create_task(one(i)) for i in range(len(prompts))]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _sequence(self, prompt: Sequence[int], response: Sequence[int], what: str) -> Tensor:
        while alive := self._alive():
            replica = min(alive, key=lambda each: each.busy)
            replica.busy += 1
            try:
                return await self._ask(replica, prompt, response, what)
            except GaveUp as error:
                self._set_aside(replica, str(error))
            finally:
                replica.busy -= 1
        raise RladError(f"{what} was not scored: {self._failures()}. {GO_ON}")

    async def _ask(self, replica: _Replica, prompt: Sequence[int], response: Sequence[int], what: str) -> Tensor:
        """The scores of one sequence by one server. Raises GaveUp, or RladError where another try would not help."""
        ids = [*prompt, *response]
        body = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 1, "prompt_logprobs": 0}
        try:
            answer = await request_json(
                self._client, f"{replica.url}/v1/completions", body, self.patience, lambda: replica.failure is None
            )
            return read_answer(answer, ids, len(prompt))
        except Refused as error:
            raise RladError(
                f"the teacher at {replica.url} refused {what} ({len(ids)} tokens): {error}. {_advice(error.status)}"
            ) from None
        except ValueError as error:
            where = f"the teacher at {replica.url} answered {what} ({len(ids)} tokens) wrongly"
            raise RladError(f"{where}: {error}") from None

    # --- servers

    def _alive(self) -> list[_Replica]:
        return [each for each in self._replicas if each.failure is None]

    def _failures(self) -> str:
        return "; ".join(f"the teacher at {each.url} failed: {each.failure}" for each in self._replicas)

    def _set_aside(self, replica: _Replica, failure: str) -> None:
        if replica.failure is None:
            others = len(self._alive()) - 1
            if others:
                log.warning("the teacher at %s is set aside: %s; %d go on", replica.url, failure, others)
            replica.failure = failure
        replica.look_again_at = asyncio.get_running_loop().time() + LOOK_AGAIN_SECONDS

    async def _connect(self) -> None:
        """Ask the servers that are not in use whether they are there, and use those that are. RladError if none is."""
        now = asyncio.get_running_loop().time()
        due = [each for each in self._replicas if each.failure is not None]
        others = bool(self._alive())
        if others:
            due = [each for each in due if each.look_again_at <= now]
        found = await asyncio.gather(*map(self._look, due), return_exceptions=True)
        for replica, result in zip(due, found, strict=True):
            try:
                if isinstance(result, BaseException):
                    raise result
                self.model = choose_model(self.model, list(result), replica.url)
                replica.failure, replica.limit = None, result[self.model]
            except (GaveUp, RladError) as error:
                if isinstance(error, RladError) and not others:
                    raise
                # Come back as another, or half: while others serve, that ends nothing.
                replica.failure, replica.look_again_at = str(error), now + LOOK_AGAIN_SECONDS
        if not self._alive():
            raise RladError(f"{self._failures()}. {GO_ON}")
        for replica in due:
            if replica.failure is not None:
                log.warning("the teacher at %s is not used: %s", replica.url, replica.failure)

    async def _look(self, replica: _Replica) -> dict[str, int | None]:
        try:
            return await _served_models(self._client, replica.url, ONE_LOOK)
        except Refused as error:
            where = f"the teacher at {replica.url} refused to say what it serves"
            raise RladError(f"{where}: {error}. {_advice(error.status)}") from None


def read_answer(answer: Any, ids: Sequence[int], start: int) -> Tensor:
    """float32 log-probs of ids[start:], in nats, from vLLM's answer for the whole of `ids`; NaN where one is unusable.

    Raises ValueError, which says what is wrong, unless the answer is one choice with null for the first token and then,
    for each token in order, one value under exactly its id.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise ValueError(f"{len(choices) if isinstance(choices, list) else 'no'} choices for one sequence")
    if choices[0].get("index") != 0:
        raise ValueError(f"a choice of index {choices[0].get('index')!r} for the only sequence")
    rows = choices[0].get("prompt_logprobs")
    if not isinstance(rows, list):
        raise ValueError("no prompt_logprobs: is it vLLM's /v1/completions?")
    if len(rows) != len(ids):
        raise ValueError(f"prompt_logprobs of {len(rows)} tokens for {len(ids)}")
    if rows[0] is not None:
        raise ValueError("a value for the first token, which nothing comes before: the answer is shifted")
    values = torch.tensor([_value(rows, ids, place) for place in range(1, len(ids))], dtype=torch.float32)
    values = values[start - 1 :]
    return torch.where(usable_teacher(values) & (values > FLOOR), values, torch.nan)


def _value(rows: Sequence[Any], ids: Sequence[int], place: int) -> float:
    row = rows[place]
    if not isinstance(row, dict) or len(row) != 1:
        raise ValueError(f"position {place} holds {len(row) if isinstance(row, dict) else row!r} tokens instead of one")
    ((token, entry),) = row.items()
    if token != str(ids[place]):
        neighbours = {str(ids[i]) for i in (place - 1, place + 1) if i < len(ids)}
        shifted = ", its neighbour: the answer may be shifted" if token in neighbours else ""
        raise ValueError(f"position {place} holds token {token} instead of {ids[place]}{shifted}")
    value = entry.get("logprob", "") if isinstance(entry, dict) else entry
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"position {place} holds {value!r} instead of a log-prob")
    return float(value)


def choose_model(wanted: str | None, served: Sequence[str], url: str) -> str:
    """The name to ask for: the one that is wanted, or the only one. Raises RladError where that is not served."""
    names = ", ".join(served) or "nothing"
    if wanted is not None:
        if wanted in served:
            return wanted
        raise RladError(f"the teacher at {url} does not serve {wanted!r}: it serves {names}")
    if len(served) == 1:
        return served[0]
    raise RladError(f"the teacher at {url} serves {names}: say which in teacher.model")


async def _served_models(client: httpx2.AsyncClient, url: str, patience: Patience) -> dict[str, int | None]:
    """What is served there, and how many tokens a sequence of it may have, None where it does not say."""
    answer = await request_json(client, f"{url}/v1/models", None, patience)
    try:
        limits = {str(each["id"]): each.get("max_model_len") for each in answer["data"]}
        return {name: limit if isinstance(limit, int) else None for name, limit in limits.items()}
    except (KeyError, TypeError, AttributeError):
        raise RladError(f"{url}/v1/models is not what vLLM answers: is the URL right?") from None


def look(url: str, api_key_env: str | None = None, seconds: float = 3.0) -> list[str]:
    """The models that are served there now. Raises RladError, within `seconds`, when there is no answer."""

    address = checked_url(url)

    async def work() -> list[str]:
        async with make_client(read_key(api_key_env), 1) as client:
            return list(await _served_models(client, address, Patience(seconds, 0, 0.0)))

    try:
        return run(work())
    except (GaveUp, Refused) as error:
        raise RladError(f"the teacher at {address} does not answer: {error}") from None


def _advice(status: int) -> str:
    if status in (401, 403):
        return "Name the variable that holds its key in teacher.api_key_env, and check the key"
    if status == 404:
        return "Check teacher.url and teacher.model"
    if 300 <= status < 400:
        return "Redirects are not followed: give the URL that it leads to"
    return (
        "If it is too long, serve the teacher with a larger --max-model-len (one more than prompt and response); if a "
        "token is unknown there, teacher and student do not share a vocabulary"
    )
