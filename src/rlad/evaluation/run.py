"""Evaluate a model on a task: generate, score, keep, and go on after a kill."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlad.errors import RladError
from rlad.evaluation.generate import Backend, Sampling, TransformersBackend, generate_batches
from rlad.evaluation.pairs import compare
from rlad.evaluation.problems import PromptFormat, problem_id, response_seed
from rlad.evaluation.results import Evaluation, Problem, load_run, write_json
from rlad.evaluation.store import Store
from rlad.tasks.base import Example, Task, score_all

__all__ = [
    "Evaluation",
    "Problem",
    "Settings",
    "compare",
    "evaluate",
    "load_run",
    "problem_id",
    "respond",
    "response_seed",
    "write_json",
]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How responses are generated. seed: of all draws (`response_seed`). batch_size: responses at once."""

    samples: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    batch_size: int = 32
    prompt: PromptFormat = field(default_factory=PromptFormat)

    def to_json(self) -> dict[str, Any]:
        """What is kept with the numbers."""
        return {
            "samples": self.samples,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_new_tokens": self.sampling.max_new_tokens,
            "seed": self.seed,
            "batch_size": self.batch_size,
            **self.prompt.settings(),
        }


def evaluate(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    task: Task,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    batch_size: int = 32,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    backend: Backend | None = None,
    records: str | os.PathLike[str] | None = None,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Generate `samples` responses to every example and score them; see `generate_responses` for the settings.

    backend: what generates in the place of transformers; it has the model's weights and its tokenizer. Its responses
        are asked for all at once, since it makes batches of its own.
    records: a folder to keep the responses in, which a later call with the same arguments goes on from. That the
        model has the same weights then is for the caller to see to (`rlad evaluate` looks at the files).
    Raises RladError for settings out of range, no examples, and what the task's scorer refuses.
    """
    settings = Settings(
        samples,
        Sampling(temperature, top_p, max_new_tokens),
        seed,
        batch_size if backend is None else max(1, len(examples) * samples),
        PromptFormat(chat_template_kwargs=chat_template_kwargs or {}),
    )
    name = getattr(getattr(model, "config", None), "name_or_path", "")
    store = Store(task, examples, settings.to_json(), {"model": name}, None if records is None else os.fspath(records))
    respond(store, settings, lambda: backend or TransformersBackend(model, tokenizer), on_progress)
    return store.evaluation()


def respond(
    store: Store, settings: Settings, open_backend: Callable[[], Backend], on_progress: Progress | None = None
) -> None:
    """Generate and score every response that the store does not have yet; a batch is kept as soon as it is scored.

    open_backend: called only where there is something to do. on_progress: see `generate_responses`. The store is
    closed at the end, also where something fails.
    """
    try:
        _respond(store, settings, open_backend, on_progress)
    finally:
        store.close()


def _respond(
    store: Store, settings: Settings, open_backend: Callable[[], Backend], on_progress: Progress | None
) -> None:
    settings.sampling.check(settings.samples, settings.batch_size)
    done = store.done()
    if len(done) == store.responses:
        return
    backend = open_backend()
    ids = [settings.prompt.ids(backend.tokenizer, example["prompt"]) for example in store.examples]
    batches = generate_batches(
        backend, ids, settings.samples, store.seed, settings.sampling, settings.batch_size, done=done
    )
    finished = len(done)
    for batch in batches:
        places, responses = [place for place, _ in batch], [response for _, response in batch]
        score(store, places, responses)
        finished += len(batch)
        if on_progress is not None:
            on_progress(finished, store.responses)


def score(store: Store, places: Sequence[tuple[int, int]], responses: Sequence[Any]) -> None:
    """Score responses (objects with text, tokens, truncated) together and keep them."""
    examples = [store.examples[i] for i, _ in places]
    scores = score_all(store.task, [response.text for response in responses], examples)
    if len(scores) != len(responses):
        raise RladError(f"the task {store.task.name} gave {len(scores)} scores for {len(responses)} responses")
    store.add(places, responses, scores)
