"""The teacher of a trainer: made of what it was given, found fit before the first step, and asked about rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlad.errors import RladError
from rlad.models import load_tokenizer, resolve
from rlad.teacher import Teacher
from rlad.teacher.align import self_test
from rlad.teacher.compatibility import check_tokenizers
from rlad.teacher.local import AdapterTeacher, LocalTeacher, SharedBase, placed
from rlad.teacher.routing import ByTask
from rlad.teacher.server import ServerTeacher
from rlad.teacher.spans import SpansTeacher

if TYPE_CHECKING:
    from rlad.trainer.trainer import RLADTrainer


def make_teacher(
    trainer: RLADTrainer, teacher: Any, tokenizer: Any, init_kwargs: Mapping[str, Any], spans: bool = False
) -> Teacher | SpansTeacher:
    """The teacher that `RLADTrainer`'s arguments describe.

    trainer: whose student, dataset and temperature it is for. teacher, tokenizer, init_kwargs: its teacher_model,
    teacher_processing_class and teacher_init_kwargs. spans: whether its tokens are aligned with the student's on the
    text, in place of being the student's. Raises RladError for a teacher that cannot be used.
    """
    if isinstance(teacher, ByTask):
        if spans:
            raise RladError("alignment spans is for one teacher, not for one by task: give all the student's tokens")
        teacher.check_dataset(trainer.train_dataset)
        return teacher.made_by(lambda each: _one_of_several(trainer, each))
    if isinstance(teacher, SharedBase):  # the student's base, and so its tokens
        student = trainer.accelerator.unwrap_model(trainer.model)
        precision = trainer.accelerator.autocast
        shared = AdapterTeacher(student, teacher.adapter, trainer.temperature, precision=precision)
        return _tested(shared, trainer._tokenizer)
    if isinstance(teacher, str) and teacher.startswith(("http://", "https://")):
        teacher, init_kwargs = _made(ServerTeacher, teacher, **init_kwargs), {}
    if init_kwargs and not isinstance(teacher, str):
        raise RladError(
            f"teacher_init_kwargs ({', '.join(init_kwargs)}) are for a teacher that is given by name: this one is made"
        )
    name = resolve(teacher) if isinstance(teacher, str) else getattr(teacher, "name_or_path", "")
    if tokenizer is None:
        tokenizer = _tokenizer(teacher, name, init_kwargs, spans)
    if tokenizer is not None and not spans:
        check_tokenizers(trainer._tokenizer, tokenizer)
    words = tokenizer if spans else trainer._tokenizer  # what it scores
    if isinstance(teacher, str):
        teacher = _made(LocalTeacher.load, name, trainer.temperature, trainer.accelerator.device, **init_kwargs)
    elif isinstance(teacher, PreTrainedModel):
        teacher = LocalTeacher(placed(teacher, trainer.accelerator.device), trainer.temperature)
    elif isinstance(teacher, ServerTeacher):
        teacher.prepare(words, trainer.temperature, None if spans else trainer.max_completion_length)
    elif isinstance(teacher, LocalTeacher) and teacher.temperature != trainer.temperature:
        raise RladError(
            f"the teacher scores at temperature {teacher.temperature:g} and the student samples at "
            f"{trainer.temperature:g}: make it LocalTeacher(model, temperature={trainer.temperature:g})"
        )
    if not isinstance(teacher, Teacher):
        raise RladError(
            f"teacher_model must be a name, a causal LM or have a score method, not {type(teacher).__name__}"
        )
    made = _tested(teacher, words)
    return on_spans(trainer, made, tokenizer) if spans else made


def _made(make: Callable[..., Any], *arguments: Any, **init_kwargs: Any) -> Any:
    try:
        return make(*arguments, **init_kwargs)
    except TypeError as error:
        if not init_kwargs:
            raise
        raise RladError(f"teacher_init_kwargs ({', '.join(init_kwargs)}): {error}") from error


def _tokenizer(teacher: Any, name: str, init_kwargs: Mapping[str, Any], spans: bool) -> Any:
    """The teacher's tokenizer from where the teacher is, or None where it can do without."""
    if spans and isinstance(teacher, ServerTeacher) and teacher.tokenizer is not None:
        name = teacher.tokenizer
    if name:
        remote = bool(init_kwargs.get("trust_remote_code", False))
        return load_tokenizer(name, "the teacher", revision=init_kwargs.get("revision"), trust_remote_code=remote)
    if spans or isinstance(teacher, PreTrainedModel):
        raise RladError(
            "the teacher's tokenizer is unknown: pass teacher_processing_class (or name a served teacher's in "
            "`tokenizer`), so that it can be checked"
        )
    return None


def _tested(teacher: Teacher, tokenizer: Any) -> Teacher:
    """The same, once it has scored a text of its own where its model is at hand."""
    if isinstance(teacher, LocalTeacher):
        with teacher.active() if isinstance(teacher, AdapterTeacher) else nullcontext():
            self_test(teacher, tokenizer, teacher.model)
    return teacher


def _one_of_several(trainer: RLADTrainer, teacher: Any) -> Teacher | SpansTeacher:
    options = dict(teacher) if isinstance(teacher, Mapping) else {}
    return make_teacher(trainer, options.pop("path", teacher), None, options)


def teacher_scores(
    teacher: Teacher | SpansTeacher | ByTask, batch: Mapping[str, Any], inputs: Sequence[Any]
) -> tuple[Tensor, Tensor]:
    """What the teacher gives the rollouts of a batch: log-probs (B, T) in nats, 0 where there is no token, and spans.

    spans: (B, T) the number of the span that a token lies in, below 0 for none; all 0 where tokens are the teacher's
    own, and then log-probs are of tokens, else of spans. inputs: the example of each row. Raises RladError where the
    teacher returns another number of values than there are tokens.
    """
    mask = batch["completion_mask"].bool().cpu()
    prompts = [
        row[keep.bool()].tolist()
        for row, keep in zip(batch["prompt_ids"].cpu(), batch["prompt_mask"].cpu(), strict=True)
    ]
    responses = [row[keep].tolist() for row, keep in zip(batch["completion_ids"].cpu(), mask, strict=True)]
    spans = torch.zeros(mask.shape, dtype=torch.long)
    if isinstance(teacher, SpansTeacher):
        found = teacher.score_spans([row["prompt"] for row in inputs], prompts, responses)
        scores = [row.logps for row in found]
        for i, of_row in enumerate(found):
            spans[i, : len(of_row.spans)] = of_row.spans
    elif isinstance(teacher, ByTask):
        scores = teacher.score(prompts, responses, [row.get(teacher.column) for row in inputs])
    else:
        scores = teacher.score(prompts, responses)
    if len(scores) != len(responses):
        raise RladError(
            f"the teacher returned log-probs of {len(scores)} sequences, and was asked for {len(responses)}"
        )
    logps = torch.zeros(mask.shape)
    for i, row in enumerate(scores):
        if not isinstance(row, Tensor):
            raise RladError(f"a teacher's score returns a tensor for each sequence, and not {type(row).__name__}")
        if row.shape != (len(responses[i]),):
            raise RladError(
                f"the teacher returned {tuple(row.shape)} log-probs for {len(responses[i])} tokens of sequence {i}"
            )
        logps[i, : len(row)] = row
    return logps, spans


def on_spans(trainer: RLADTrainer, teacher: Teacher, tokenizer: Any) -> SpansTeacher:
    """The teacher behind its own tokenizer, once that has rendered a prompt. Raises RladError where it does not fit."""
    if trainer.tools:
        raise RladError("alignment spans does not fit tools: what they answer is no text of the student's")
    made = SpansTeacher(teacher, trainer._tokenizer, tokenizer, trainer.eos_token_ids, trainer.chat_template_kwargs)
    made.prompt_ids(next(iter(trainer.train_dataset))["prompt"])
    return made
