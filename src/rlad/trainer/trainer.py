"""RLADTrainer: TRL's GRPOTrainer with a teacher and with rlad.objectives as the code that trains. No maths here.

How the objective gets through TRL's own loss: `_compute_loss` computes the student's log-probs S first and reads the
old ones after. In between we store, on a copy of the batch, old = S (with its gradient, so that TRL's ratio is 1 and
has none) and advantages = the whole per-token objective, with its gradient. TRL then returns minus that objective
through its own denominator, accumulation, entropy bonus and distributed reduction.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from trl import GRPOTrainer

from rlad.errors import RladError
from rlad.models import resolve
from rlad.objectives import (
    Method,
    group_advantages,
    objective_terms,
    spread_spans,
    token_signals,
    zero_variance_groups,
)
from rlad.objectives.signals import usable_teacher
from rlad.objectives.surrogate import held_ratio
from rlad.teacher import Teacher
from rlad.teacher.spans import SpansTeacher
from rlad.trainer.arguments import RLADConfig
from rlad.trainer.groups import Counts, Rollouts, add_correct, refill
from rlad.trainer.methods import make_method
from rlad.trainer.recorder import ENTROPIES, REWARDS, SEEN, make_recorder
from rlad.trainer.saving import STATE_FILE, NothingLeft, mark_whole
from rlad.trainer.teachers import make_teacher, teacher_scores
from rlad.trainer.trim import BALANCED_LOSSES, balanced, by_length, trimmed


@dataclass
class _Timers:
    """Seconds by part of a step, summed since they were last read."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Any:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class RLADTrainer(NothingLeft, GRPOTrainer):
    """TRL's GRPOTrainer under a method of rlad.objectives, with a teacher that scores the student's rollouts.

    teacher_model: a hub id, a path, embedded:NAME, a loaded causal LM, or anything with `score` (rlad.teacher.Teacher).
        None for a method that needs none. Each process holds the whole teacher.
    teacher_processing_class: the teacher's tokenizer, compared with the student's. Loaded from the same place when the
        teacher is given by name; else taken from its `name_or_path`.
    teacher_init_kwargs: for from_pretrained when the teacher is given by name.
    teacher_alignment: "tokens", or "spans" for a teacher with another tokenizer (rlad.teacher.spans).
    Every other argument is GRPOTrainer's, in its order.

    Raises RladError, before training, when the method needs a teacher and there is none, or the tokenizers differ
    and the alignment is tokens.
    """

    _buffered_inputs: Any  # TRL's micro-batches of the rollouts in use
    _tag_names: ClassVar[list[str]] = ["trl", "rlad"]
    _name = "RLAD"

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: RLADConfig | None = None,
        *positional: Any,
        teacher_model: Any = None,
        teacher_processing_class: Any = None,
        teacher_init_kwargs: Mapping[str, Any] | None = None,
        teacher_alignment: str = "tokens",
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = RLADConfig(output_dir="rlad-output")
        if not isinstance(args, RLADConfig):
            raise RladError(f"args must be an RLADConfig, not {type(args).__name__}: it has GRPOConfig's fields")
        args.check()
        self.method = make_method(args.method)
        if self.method.needs_teacher and teacher_model is None:
            raise RladError(f"method {self.method.name} needs a teacher: pass teacher_model, or choose method='grpo'")
        if teacher_alignment not in ("tokens", "spans"):
            raise RladError(f"teacher_alignment must be tokens or spans, not {teacher_alignment!r}")
        if isinstance(model, str):
            model = resolve(model)
        self._spans = teacher_alignment == "spans"
        self._timers = _Timers()
        self._rewards: Tensor | None = None
        self._reward_parts: Tensor | None = None
        self._scores: list[Any] | None = None
        self._examples: list[Any] | None = None
        self.refilled = Counts()
        self._signals_batch: dict[str, Any] | None = None
        self._sums: dict[str, dict[str, tuple[float, float]]] = {}  # by mode and metric: (sum, tokens)
        self._broken_teacher, self._scored_tokens, self._zero_variance = 0, 0, 0
        super().__init__(model, reward_funcs, args, *positional, **kwargs)
        self.recorder = make_recorder(self)
        self.teacher: Teacher | SpansTeacher | None = None
        if self.method.needs_teacher:
            self.teacher = make_teacher(
                self, teacher_model, teacher_processing_class, teacher_init_kwargs or {}, self._spans
            )

    # --- rollouts: TRL generates and rewards them; we replace the advantages and add the teacher's log-probs

    def _generate(self, prompts: list[Any]) -> Any:
        with self._timers.part("generation"):
            return super()._generate(prompts)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        with self._timers.part("rewards"):
            rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if torch.isnan(rewards).all(dim=1).any():
            raise RladError(
                "a rollout got None from every reward function: each needs a reward to be compared in its group"
            )
        self._reward_parts = rewards
        self._scores, self._examples = (
            next((list(getattr(each, name)) for each in self.reward_funcs if hasattr(each, name)), None)
            for name in ("scores", "scored_examples")  # of its last call: these completions
        )
        self._rewards = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        return rewards

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's micro-batches, rows of like length together where the loss does not mind."""
        before: Any = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training or self._buffered_inputs is before or not self._may_balance():
            return inputs
        self._buffered_inputs = balanced(self._buffered_inputs, self.args.gradient_accumulation_steps)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _may_balance(self) -> bool:
        """What looks at a whole micro-batch at once (an entropy's quantile or bonus, a router's balance) forbids it,
        and so do updates that begin in the middle of a generation: a row would move to another update."""
        generated, update = self.args.steps_per_generation, self.args.gradient_accumulation_steps
        return (
            self.args.trim_padding
            and (generated % update == 0 or update % generated == 0)
            and self.loss_type in BALANCED_LOSSES
            and self.top_entropy_quantile == 1.0
            and not (self.args.entropy_coef or self.args.use_adaptive_entropy or self.aux_loss_enabled)
        )

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        recorder = self.recorder if self.model.training else None
        recorded = recorder is not None and recorder.due(self)
        made, flat = self.rollouts(inputs)
        if self.model.training:
            self._zero_variance += int(flat.sum())
            if self.args.groups == "refill":
                made = refill(self, made, flat)
        batch = made.batch
        if recorder is not None:
            with self._timers.part("recorder"):
                if recorded:
                    recorder.begin(self, made)
                del batch[REWARDS]
        if self.teacher is not None and self._teacher_is_asked():
            with self._timers.part("teacher"):
                self._add_teacher(batch, made.inputs)
        return batch

    def _teacher_is_asked(self) -> bool:
        """Whether any method in force before the next rollouts needs it: a schedule may be done with its teacher."""
        # All that the micro-batches of a generation can lie in: the first may be the last of its update.
        used, update = self.args.steps_per_generation * self.num_iterations, self.args.gradient_accumulation_steps
        updates = math.ceil((used - 1) / update) + 1
        return any(self._method_after(ahead).needs_teacher for ahead in range(updates))

    def _method_after(self, updates: int) -> Method:
        """The method in force `updates` from now."""
        return self.method.at(min(1.0, (self.state.global_step + updates) / max(1, self.state.max_steps)))

    def rollouts(self, inputs: list[dict[str, Any]]) -> tuple[Rollouts, Tensor]:
        """TRL's batch with the advantages of Eq. 1, and which groups of all processes have none: (groups,) bool."""
        with self._timers.part("rollouts"):
            batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        with self._timers.part("ours"):
            flat = self._replace_advantages(batch)
        if self.recorder is not None and self.model.training:
            assert self._reward_parts is not None
            start = self.accelerator.process_index * len(inputs)
            batch[REWARDS] = self._reward_parts[start : start + len(inputs)]
        examples = list(inputs) if self._examples is None else self._examples  # a row may hold but its number
        made = Rollouts(batch, examples, self._scores)
        if self.method.needs_correct:
            add_correct(self, made)
        return made, flat

    def _replace_advantages(self, batch: dict[str, Any]) -> Tensor:
        """Population standard deviation and exact zeros (RLAD Eq. 1) in place of TRL's."""
        group = self.num_generations if self.model.training else self.num_generations_eval
        if self._rewards is None or group < 2:
            return torch.zeros(0, dtype=torch.bool)
        scaled = self.scale_rewards != "none"
        everyone = group_advantages(self._rewards, group, self.args.advantage_std if scaled else "none")
        count = batch["advantages"].shape[0]
        start = self.accelerator.process_index * count
        batch["advantages"] = everyone[start : start + count].to(batch["advantages"])
        flat = zero_variance_groups(self._rewards, group)
        self._metric("zero_variance_groups", float(flat.float().mean()))
        return flat

    def _add_teacher(self, batch: dict[str, Any], inputs: list[Any]) -> None:
        assert self.teacher is not None
        logps, spans = teacher_scores(self.teacher, batch, inputs)
        mask = self._counting(batch).bool().cpu()
        parts = (mask & ~usable_teacher(logps), mask, mask & (spans < 0))
        counts = torch.stack([part.sum() for part in parts]).to(self.accelerator.device)
        broken, tokens, unaligned = (int(x) for x in self.accelerator.reduce(counts, reduction="sum"))
        self._broken_teacher, self._scored_tokens = self._broken_teacher + broken, self._scored_tokens + tokens
        self._metric("broken_teacher", broken / max(tokens, 1))
        if self._spans:
            self._metric("unaligned", unaligned / max(tokens, 1))
        if self._broken_teacher > self.args.max_broken_teacher * max(self._scored_tokens, 1):
            raise RladError(
                f"{self._broken_teacher} of {self._scored_tokens} teacher log-probs so far are NaN, infinite or "
                f"positive, more than {self.args.max_broken_teacher:.1%} (max_broken_teacher): the teacher overflows, "
                "or does not fit these tokens. Load it in bfloat16 or float32 instead of float16, and check its "
                "vocabulary"
            )
        batch["teacher_logps"] = logps.to(self.accelerator.device)
        if isinstance(self.teacher, SpansTeacher):  # then those are of spans
            batch["teacher_spans"] = spans.to(self.accelerator.device)

    # --- the loss: ours, through TRL's

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        batch = trimmed(inputs) if self.args.trim_padding else dict(inputs)  # a copy: the buffer is used again
        self._signals_batch = batch
        try:
            loss: Tensor = super()._compute_loss(model, batch)
        finally:
            self._signals_batch = None
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> Any:
        score = super()._get_per_token_logps_and_entropies
        if self._signals_batch is not None:
            logps, entropies, aux_loss = score(model, input_ids, attention_mask, logits_to_keep, batch_size, **options)
            self._signals_batch[ENTROPIES] = entropies
            with self._timers.part("ours"):
                logps = self._put_objective(self._signals_batch, logps)
            if self.recorder is not None and self.model.training:
                with self._timers.part("recorder"):
                    self.recorder.collect(self, self._signals_batch)
            return logps, entropies, aux_loss
        special = [
            name
            for name, value in options.items()
            if value is not None and value is not False and name != "compute_entropy"
        ]
        if special or torch.is_grad_enabled() or not self.args.trim_padding:
            return score(model, input_ids, attention_mask, logits_to_keep, batch_size, **options)

        def forward(ids: Tensor, mask: Tensor, keep: int) -> tuple[Tensor, Tensor | None]:
            logps, entropies, _ = score(model, ids, mask, keep, **options)
            return logps, entropies

        rows = batch_size or input_ids.shape[0]
        return *by_length(forward, input_ids, attention_mask, logits_to_keep, rows), None

    def _put_objective(self, batch: dict[str, Any], logps: Tensor) -> Tensor:
        """Store the objective where TRL's loss will read its advantages. Returns the log-probs, 0 where masked."""
        mask = self._counting(batch)
        old, teacher, usable = batch.get("old_per_token_logps"), batch.get("teacher_logps"), None
        if teacher is not None and "teacher_spans" in batch:
            spans = batch["teacher_spans"]
            usable = usable_teacher(teacher) & (spans >= 0)
            teacher = spread_spans(logps if old is None else old, teacher, spans, mask)
        right = {name: batch.get(name) for name in ("correct", "group_wrong")}
        signals = token_signals(logps, old, teacher, batch["advantages"], mask, teacher_ok=usable, **right)
        method = self._method_after(0)
        terms = objective_terms(method, signals)
        batch["old_per_token_logps"], batch["advantages"] = signals.logps, terms.objective
        self._log_terms(signals, terms)
        batch[SEEN] = signals, terms, method
        return signals.logps

    @staticmethod
    def _counting(batch: dict[str, Any]) -> Tensor:
        """(B, T): 1 at the tokens that the student wrote, and not its padding or a tool."""
        mask: Tensor = batch["completion_mask"]
        return mask * batch["tool_mask"] if "tool_mask" in batch else mask

    @torch.no_grad()
    def _log_terms(self, signals: Any, terms: Any) -> None:
        """Sums over the tokens that count, of all processes, until they are logged."""
        mask = signals.mask
        parts = {
            "ratio": held_ratio(terms.log_ratio),
            "log_ratio_abs": terms.log_ratio.abs(),
            "clip_low": terms.clipped_low,
            "clip_high": terms.clipped_high,
            "clamped": terms.clamped,
            "objective": terms.objective,
        }
        if signals.teacher_logps is not None:
            parts["student_minus_teacher"] = signals.logps - signals.teacher_logps
        if terms.penalty is not None:
            parts["penalty"] = terms.penalty
        sums = torch.stack([mask.sum().float(), *((part.float() * mask).sum() for part in parts.values())])
        count, *totals = self.accelerator.reduce(sums, reduction="sum").tolist()
        kept = self._sums.setdefault(self._mode(), {})
        for name, total in zip(parts, totals, strict=True):
            before, tokens = kept.get(name, (0.0, 0.0))
            kept[name] = (before + total, tokens + count)

    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _metric(self, name: str, value: float) -> None:
        self._metrics[self._mode()][f"rlad/{name}"].append(value)

    # --- what is logged, and what a checkpoint keeps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # Over all tokens at once: micro-batches hold different numbers of them, on purpose where lengths are balanced.
        for name, (total, tokens) in self._sums.pop(self._mode(), {}).items():
            self._metric(name, total / max(tokens, 1.0))
        # TRL's own clip_ratio/* are of its ratio, which is 1 here: always 0, and misleading. Ours are rlad/clip_*.
        for metrics in self._metrics.values():
            for name in [name for name in metrics if name.startswith("clip_ratio/")]:
                del metrics[name]
        if self.model.training:
            for name, seconds in self._timers.seconds.items():
                logs[f"rlad/seconds/{name}"] = seconds
            self._timers.seconds.clear()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # it is not whole before each process has written its random state
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            state = {
                "broken_teacher": self._broken_teacher,
                "scored_tokens": self._scored_tokens,
                "zero_variance_groups": self._zero_variance,
                "refilled": asdict(self.refilled),
            }
            mark_whole(folder, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (path := Path(checkpoint) / STATE_FILE).is_file():
            state = json.loads(path.read_text())
            self._broken_teacher, self._scored_tokens = state["broken_teacher"], state["scored_tokens"]
            self._zero_variance = state["zero_variance_groups"]
            self.refilled = Counts(**state["refilled"])
