"""A teacher in this process: length-sorted micro-batches by a token budget, the head on response tokens in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from rlad.errors import RladError
from rlad.models import resolve
from rlad.teacher.align import Layout, layout

TOKENS_PER_BATCH = 16_384
WEIGHTS = "adapter_model.safetensors"
ADAPTER = "teacher"  # what the teacher's adapter is called where it shares the student's base
TILE_BYTES = 64 * 2**20  # of logits in float32 at a time


class LocalTeacher:
    """A frozen causal language model that scores responses. See `rlad.teacher.Teacher`.

    model: a transformers causal LM; it is put in evaluation mode and its gradients are turned off.
    temperature: what its logits are divided by; the student's sampling temperature.
    tokens_per_batch: most tokens, padding included, in one forward pass of the backbone.

    No (B, T, V) tensor is made: the backbone runs on a micro-batch, and the head only on the positions that score a
    response token, a tile at a time. On a GPU that is TRL's Triton kernel (trl.trainer.utils.add_fused_lm_head), which
    keeps float32 sums of bf16 products. Its fallback for a CPU scores the padding and prompts too, and is slower than
    the plain product; there `cpu_logps` does it.
    """

    def __init__(self, model: Any, temperature: float = 1.0, tokens_per_batch: int = TOKENS_PER_BATCH) -> None:
        from rlad.trainer.upstream import add_fused_lm_head

        self.model = model.eval().requires_grad_(False)
        self.temperature, self.tokens_per_batch = temperature, tokens_per_batch
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        if model.device.type != "cpu":
            add_fused_lm_head(self.model, temperature=temperature)

    @classmethod
    def load(
        cls, path: str, temperature: float = 1.0, device: Any = None, adapter: str | None = None, **kwargs: Any
    ) -> LocalTeacher:
        """Load a teacher by hub id, path or embedded:NAME; `kwargs` go to from_pretrained. Safetensors only.

        device: where it goes, unless a `device_map` among the kwargs says so; weights are read straight to a GPU. A
        `quantization_config` (bitsandbytes, GPTQ, ...) is transformers' own. adapter: a PEFT adapter (LoRA) on that
        model, by hub id or path.
        Raises RladError when it cannot be loaded.
        """
        from transformers import AutoModelForCausalLM

        # Not by .to(device) afterwards: that has no room in memory for eight copies of a large teacher, and leaves what
        # was saved quantised on the CPU.
        if device is not None and torch.device(device).type != "cpu":
            kwargs.setdefault("device_map", {"": torch.device(device)})
        try:
            with whole_weights():
                model: Any = AutoModelForCausalLM.from_pretrained(resolve(path), use_safetensors=True, **kwargs)
                if adapter is not None:
                    from peft import PeftModel

                    # The base model itself comes back: its layers carry the adapter now.
                    model = PeftModel.from_pretrained(model, safe_adapter(adapter)).get_base_model()
        except (OSError, ValueError, ImportError) as error:
            raise RladError(f"the teacher {path!r} cannot be loaded: {' '.join(str(error).split())}") from error
        return cls(placed(model, device), temperature)

    @torch.no_grad()
    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `rlad.teacher.Teacher`. Raises RladError where a token id is outside the teacher's vocabulary."""
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses")
        if any(not prompt for prompt in prompts):
            raise ValueError("a prompt is empty: the first token of its response would have nothing to be scored by")
        highest = max((max(ids) for ids in (*prompts, *responses) if ids), default=0)
        if highest >= self.vocabulary:
            raise RladError(
                f"token id {highest} is outside the teacher's vocabulary of {self.vocabulary}: "
                "teacher and student need the same tokenizer"
            )
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max((len(p) + len(r) for p, r in zip(prompts, responses, strict=True)), default=0)
        if limit is not None and longest > limit:
            raise RladError(
                f"a prompt and response of {longest} tokens are longer than the teacher's {limit} positions: lower "
                "max_completion_length, or choose a teacher with a longer context"
            )
        scores: list[Tensor] = [torch.zeros(0)] * len(prompts)
        # Like lengths together, longest first: little padding, and a batch too large for memory fails at once.
        order = sorted(range(len(prompts)), key=lambda i: -(len(prompts[i]) + len(responses[i])))
        while order:
            longest = len(prompts[order[0]]) + len(responses[order[0]])
            size = max(1, self.tokens_per_batch // longest)
            batch, order = order[:size], order[size:]
            plan = layout([prompts[i] for i in batch], [responses[i] for i in batch])
            for i, row in zip(batch, plan.rows(self._forward(plan)), strict=True):
                scores[i] = row.clone()
        return scores

    def _forward(self, plan: Layout) -> Tensor:
        device = self.model.device
        ids, real = plan.ids.to(device), plan.real.to(device)
        if device.type == "cpu":
            hidden = backbone(self.model)(input_ids=ids, attention_mask=real, use_cache=False).last_hidden_state
            return cpu_logps(self.model, hidden[plan.scored], plan.targets, self.temperature)
        # The fused head shifts by itself: its column t is the log-prob of token t + 1, where that is labelled.
        labels = torch.full_like(plan.ids, -100)
        labels[:, 1:][plan.scored[:, :-1]] = plan.targets
        output = self.model(input_ids=ids, attention_mask=real, labels=labels.to(device), fused_lm_head=True)
        logps: Tensor = output.log_probs.float().cpu()[plan.scored[:, :-1]]
        return logps


class AdapterTeacher(LocalTeacher):
    """A teacher that is a LoRA adapter on the student's own frozen base: it needs no weights of its own besides.

    student: the peft.PeftModel in training. adapter: hub id or path of the teacher's adapter; it is loaded beside the
    student's under the name "teacher", active while it scores, and never trained. precision: a context to score in,
    such as accelerate's autocast, which wraps the student alone.

    `RLADTrainer(..., peft_config=..., teacher_model=SharedBase("path/of/adapter"))` makes one.
    """

    def __init__(
        self,
        student: Any,
        adapter: str,
        temperature: float = 1.0,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        from peft import PeftModel

        if not isinstance(student, PeftModel):
            raise RladError(
                "a teacher that is an adapter on the student's base needs a student that is trained as an adapter too "
                "(peft_config): a base in training would change the teacher"
            )
        training = student.training
        try:
            student.load_adapter(safe_adapter(adapter), adapter_name=ADAPTER, is_trainable=False)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise RladError(f"the adapter {adapter!r} does not fit the student's base: {reason}") from error
        finally:
            student.train(training)  # load_adapter leaves it in evaluation mode
        self.student, self.model, self.precision = student, student.get_base_model(), precision
        self.temperature, self.tokens_per_batch = temperature, tokens_per_batch
        self.vocabulary = int(self.model.get_output_embeddings().weight.shape[0])

    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `rlad.teacher.Teacher`."""
        with self.active():
            return super().score(prompts, responses)

    @contextmanager
    def active(self) -> Iterator[None]:
        """The teacher's adapter in the place of the student's, without dropout; the student's comes back as it was."""
        from rlad.trainer.upstream import use_adapter

        training = self.student.training
        self.student.eval()
        try:
            with use_adapter(self.student, ADAPTER), self.precision():
                yield
        finally:
            self.student.train(training)


@dataclass(frozen=True)
class SharedBase:
    """For RLADTrainer's teacher_model: the teacher is this adapter on the student's own base (`AdapterTeacher`)."""

    adapter: str


def placed(model: Any, device: Any) -> Any:
    """The model on the device, unless it has its place already: spread by a device_map, or quantised."""
    stays = device is None or getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)
    return model if stays else model.to(device)


@contextmanager
def whole_weights() -> Iterator[None]:
    """While it lasts, models load whole under DeepSpeed's ZeRO-3: it would part the weights of all that are loaded, and
    only the student has an engine that puts them together again."""
    from transformers.integrations import deepspeed

    kept = getattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    config = None if kept is None else kept()
    if config is not None:
        deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)


def safe_adapter(adapter: str) -> str:
    """The adapter, once its weights are known to be safetensors: PEFT would load a pickle without a word."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    folder = Path(adapter).expanduser()
    if folder.is_dir():
        there = (folder / WEIGHTS).is_file()
    else:
        try:
            there = bool(hf_hub_download(adapter, WEIGHTS))
        except LocalEntryNotFoundError as error:  # the hub was not reached, which says nothing of the adapter
            raise RladError(f"the adapter {adapter!r} cannot be had: {' '.join(str(error).split())}") from error
        except EntryNotFoundError:
            there = False
    if not there:
        raise RladError(f"the adapter {adapter!r} has no {WEIGHTS}: other formats can run code, and are not loaded")
    return str(folder) if folder.is_dir() else adapter


def backbone(model: Any) -> Any:
    """The part of a causal LM that ends in hidden states: what its head is applied to."""
    return getattr(model, model.base_model_prefix)


@torch.no_grad()
def cpu_logps(model: Any, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(head(hidden) / temperature) at the targets, in float32, TILE_BYTES of logits at a time.

    hidden: (N, H), what the backbone put out. targets: (N,) token ids. Returns (N,) in nats. The head is the model's
    own forward with the backbone left out, so its scales and soft caps (Gemma, Granite, Cohere, ...) are in it.
    """
    rows = max(1, TILE_BYTES // (4 * model.get_output_embeddings().weight.shape[0]))
    pieces = []
    for tile, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        with _backbone_gives(model, tile[None]):
            logits = model(input_ids=wanted[None], use_cache=False).logits[0].float()
        if temperature != 1:
            logits /= temperature
        pieces.append(logits.gather(-1, wanted[:, None])[:, 0] - logits.logsumexp(-1))
    return torch.cat(pieces) if pieces else torch.zeros(0)


class _Hidden(BaseModelOutputWithPast):
    """Hidden states alone. A head may ask for what its own backbone returns beside them, such as router logits."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


@contextmanager
def _backbone_gives(model: Any, hidden: Tensor) -> Iterator[None]:
    """While it lasts the backbone computes nothing and returns `hidden` (1, N, H)."""
    inner = backbone(model)
    own = inner.__dict__.get("forward")  # accelerate's hooks put one on the module itself
    inner.forward = lambda *args, **kwargs: _Hidden(last_hidden_state=hidden)
    try:
        yield
    finally:
        del inner.forward
        if own is not None:
            inner.forward = own
