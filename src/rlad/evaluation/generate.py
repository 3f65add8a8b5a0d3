"""Responses of a model to prompts: in batches, and the same for the same seed, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rlad.errors import RladError
from rlad.evaluation.problems import PromptFormat, keys, problem_id, response_seed

if TYPE_CHECKING:
    from torch import Tensor

Place = tuple[int, int]
"""(problem, sample), both from 0."""


@dataclass(frozen=True)
class Response:
    """One sampled response. tokens: how many were generated, the end of sequence included. truncated: it never came."""

    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Nothing but temperature and top_p shapes it: what a model's own generation config says of
    top-k, penalties and so on is left out. temperature 0 takes the likeliest token each time."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512

    def check(self, samples: int, batch_size: int) -> None:
        """Raises RladError for a setting out of range."""
        for name, value in (("samples", samples), ("max_new_tokens", self.max_new_tokens), ("batch_size", batch_size)):
            if type(value) is not int or value < 1:
                raise RladError(f"{name} must be a whole number from 1 on, not {value!r}")
        if not 0 <= self.temperature < float("inf"):
            raise RladError(f"temperature must be 0 (the likeliest token) or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise RladError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.temperature == 0 and samples > 1:
            raise RladError(f"at temperature 0 all {samples} samples of a prompt are the same; ask for 1")


class Backend(Protocol):
    """What generates. tokenizer: of the model, for prompts."""

    tokenizer: Any

    def prepare(self, longest: int, max_new_tokens: int) -> None:
        """Called once before the first batch. longest: tokens of the longest prompt. Raises RladError if too long."""

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[Response]:
        """A response to each prompt, drawn from its own seed."""


def generate_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[Mapping[str, str]]],
    *,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    batch_size: int = 32,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Response]]:
    """`samples` responses to each prompt (chat messages), in the order of the prompts.

    seed: each response has a seed of its own, made from it, the prompt, and the number of the sample; the caller's
        random state neither matters nor changes. `batch_size` and the other prompts change no draw. (They can change a
        probability in its last digits, in bfloat16 more than in float32, and so, rarely, a token.)
    on_progress: called with (responses done, all of them) after each batch.

    Raises RladError for settings out of range, a tokenizer without a chat template, and a prompt too long for the
    model.
    """
    sampling = Sampling(temperature, top_p, max_new_tokens)
    sampling.check(samples, batch_size)
    backend = TransformersBackend(model, tokenizer)
    ids = [PromptFormat(chat_template_kwargs=chat_template_kwargs or {}).ids(tokenizer, each) for each in prompts]
    known = keys([problem_id({"prompt": prompt}) for prompt in prompts])
    responses: list[list[Any]] = [[None] * samples for _ in ids]
    done = 0

    def seeds(place: Place) -> int:
        return response_seed(seed, known[place[0]], place[1])

    for batch in generate_batches(backend, ids, samples, seeds, sampling, batch_size):
        for (i, j), response in batch:
            responses[i][j] = response
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(ids) * samples)
    return responses


def generate_batches(
    backend: Backend,
    ids: Sequence[Sequence[int]],
    samples: int,
    seeds: Callable[[Place], int],
    sampling: Sampling,
    batch_size: int,
    done: Collection[Place] = (),
) -> Iterator[list[tuple[Place, Response]]]:
    """The responses to prompts `ids`, a batch at a time, without those that are `done`.

    What is in a batch is decided by the prompts, `samples` and `batch_size` alone, so that an evaluation that goes on
    after a kill makes the same batches as one that never stopped.
    """
    backend.prepare(max((len(prompt) for prompt in ids), default=0), sampling.max_new_tokens)
    # Neighbours in length waste the least padding; longest first, so that a batch too large for memory fails at once.
    order = sorted(((i, j) for i in range(len(ids)) for j in range(samples)), key=lambda place: -len(ids[place[0]]))
    for start in range(0, len(order), batch_size):
        batch = [place for place in order[start : start + batch_size] if place not in done]
        if batch:
            found = backend.sample([ids[i] for i, _ in batch], [seeds(place) for place in batch], sampling)
            yield list(zip(batch, found, strict=True))


def check_length(limit: int | None, longest: int, max_new_tokens: int) -> None:
    """Raises RladError where a prompt of `longest` tokens leaves no room for the response."""
    if limit is not None and longest + max_new_tokens > limit:
        raise RladError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} do not fit the model's {limit} "
            f"positions; set max_new_tokens to at most {limit - longest}"
        )


class TransformersBackend:
    """A model in this process, by transformers' `generate`."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._ends = _end_tokens(model, tokenizer)

    def prepare(self, longest: int, max_new_tokens: int) -> None:
        """See Backend."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        check_length(limit, longest, max_new_tokens)

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[Response]:
        """See Backend. Raises RladError where the batch does not fit into the GPU's memory."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(self._ends)
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted(self._ends),
            pad_token_id=pad,
            use_cache=True,
            do_sample=False,  # `Draws` leaves one token to choose from
        )
        width = max(len(prompt) for prompt in prompts)
        rows = [(width - len(prompt), list(prompt)) for prompt in prompts]
        device = self.model.device
        # Left padding: every row's last prompt token stands last, where generation goes on.
        padded = torch.tensor([[pad] * missing + prompt for missing, prompt in rows], device=device)
        mask = torch.tensor([[0] * missing + [1] * len(prompt) for missing, prompt in rows], device=device)
        draws = [Draws(seeds, width, sampling, device)] if sampling.temperature > 0 else []
        try:
            with _ready(self.model):
                output = self.model.generate(
                    input_ids=padded,
                    attention_mask=mask,
                    generation_config=config,
                    logits_processor=LogitsProcessorList(draws),
                )
        except torch.OutOfMemoryError:
            raise RladError(f"a batch of {len(prompts)} responses does not fit into memory: lower batch_size") from None
        return [self._response(row) for row in output[:, width:].tolist()]

    def _response(self, row: Sequence[int]) -> Response:
        end = next((place for place, token in enumerate(row) if token in self._ends), None)
        tokens = len(row) if end is None else end + 1
        return Response(self.tokenizer.decode(row[:tokens], skip_special_tokens=True), tokens, end is None)


class Draws:
    """A logits processor that draws the token itself, each row from a generator of its own, and leaves nothing else.

    transformers draws a whole batch from one generator, so that a response would depend on its neighbours. Here row i
    has a uniform number for each of its tokens, made from seeds[i], and takes the token at which the cumulative
    probability passes it: those of temperature, and of the fewest tokens that hold top_p of the probability.
    """

    def __init__(self, seeds: Sequence[int], width: int, sampling: Sampling, device: Any) -> None:
        import numpy as np
        import torch

        uniforms = [np.random.Generator(np.random.Philox(seed)).random(sampling.max_new_tokens) for seed in seeds]
        # Apple's GPUs have no float64.
        self._precise = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self._uniforms = torch.tensor(np.stack(uniforms)).to(self._precise).to(device)
        self._width, self._sampling = width, sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores that are -inf but for the drawn token's."""
        import torch

        probs = (scores.float() / self._sampling.temperature).softmax(-1)
        if self._sampling.top_p < 1:
            ranked, places = probs.sort(descending=True, stable=True)
            before = ranked.cumsum(-1, dtype=self._precise) - ranked
            probs = probs.scatter(-1, places, ranked.masked_fill(before >= self._sampling.top_p, 0))
        total = probs.cumsum(-1, dtype=self._precise)
        whole = total[:, -1:]
        at = self._uniforms[:, input_ids.shape[1] - self._width, None] * whole
        # Rounding must not carry `at` to the end, beyond the last token that has any probability.
        at = torch.minimum(at, torch.nextafter(whole, torch.zeros_like(whole)))
        drawn = torch.searchsorted(total, at, right=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = set(own if isinstance(own, list) else [own]) | {tokenizer.eos_token_id}
    ends.discard(None)
    if not ends:
        raise RladError("neither the tokenizer nor the model names an end-of-sequence token; set tokenizer.eos_token")
    return ends


@contextmanager
def _ready(model: Any) -> Iterator[None]:
    """The model in evaluation mode, and without a generation config of its own to fill in what ours leaves out."""
    from transformers import GenerationConfig

    training, own = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
        model.train(training)
