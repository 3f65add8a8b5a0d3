"""The recorder: every few updates, whole groups with all that was known of each token when it was first trained on.

Rollouts are chosen right after they were generated and scored; their log-probs come from the forward pass of their own
first update, so they are the signals that trained. TRL shuffles rows in between and micro-batches are cut and sorted:
the batch carries a row number, `ROW`. One Parquet part (rlad.records, kind `rollout`) is written for each recorded
generation, numbered by its update, as soon as its last chosen row has been seen: a kill leaves every finished part.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlad import layout, records
from rlad.files import whole_file
from rlad.tasks.base import gold
from rlad.trainer.environment import source_commit

if TYPE_CHECKING:
    from rlad.objectives import Method
    from rlad.objectives.signals import TokenSignals
    from rlad.objectives.surrogate import ObjectiveTerms
    from rlad.trainer.groups import Rollouts
    from rlad.trainer.trainer import RLADTrainer

# Keys of the batch. SEEN: (signals, terms, method) of a micro-batch, on the copy that its loss is computed from.
ROW, REWARDS, ENTROPIES, SEEN = "rlad_row", "rlad_rewards", "rlad_entropies", "rlad_seen"
TOKENIZER = "tokenizer.json"
EVERY, GROUPS = 5, 4  # what `rlad train` records unless told otherwise


def kept_policy(every: int, groups: int) -> str:
    """Which groups are recorded, in words."""
    return (
        f"at the first update, every {every}, and the last, {groups} groups of the main process's generation: the "
        "most mixed one (right and wrong closest to half, else the largest spread of rewards), one that is all wrong "
        "where there is one, the rest at random; and of the groups that were dropped and replaced, up to "
        f"{groups}"
    )


class Recorder:
    """Writes to `folder`. every, groups: see `kept_policy`. run: the run's name. seed: of groups taken at random."""

    def __init__(self, folder: Path, every: int, groups: int, run: str, seed: int) -> None:
        self.folder, self.every, self.groups, self.run, self.seed = folder, every, groups, run, seed
        self._method = ""
        self._waiting: dict[int, dict[str, Any]] = {}
        self._done: list[dict[str, Any]] = []
        self._dropped: list[dict[str, Any]] = []
        self._drops: Counter[str] = Counter()
        self._about: dict[str, Any] = {}
        self._step = self._last = -1
        self._made: dict[str, Any] | None = None
        self._on = False

    def due(self, trainer: RLADTrainer) -> bool:
        """Whether the generation that is about to be used is recorded. To be asked once for each."""
        args = trainer.args
        step: int = trainer.state.global_step + 1
        updates = max(1, math.ceil(args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps))
        first, self._last = step != self._last, step  # an update may take several generations: the first is recorded
        last = step + updates > trainer.state.max_steps
        self._on = first and (step == 1 or last or step % self.every < updates)
        if self._on:
            self._step, self._waiting, self._done, self._dropped = step, {}, [], []
            self._drops.clear()
        return self._on

    def drop(self, trainer: RLADTrainer, made: Rollouts, groups: Sequence[int], reasons: Sequence[str]) -> None:
        """Keep groups that take no part in the update: the first ones, while there is room, and the count of all."""
        if not self._on:
            return
        size = trainer.num_generations
        for group, reason in zip(groups, reasons, strict=True):
            number = sum(self._drops.values())
            self._drops[reason] += 1
            if number < self.groups:
                for row in range(group * size, (group + 1) * size):
                    known = self._known(trainer, made, row)
                    self._dropped.append(
                        {**known, "group": number, "dropped": True, "reason": reason, "kept_why": "dropped"}
                    )

    def begin(self, trainer: RLADTrainer, made: Rollouts) -> None:
        """Choose groups of a generation that is due, and number the rows of its batch."""
        if self._made is None:
            self._made = self._start(trainer)
        size, batch = trainer.num_generations, made.batch
        total = len(batch["completion_ids"])
        rewards = _totals(trainer, batch[REWARDS])
        correct = None if made.scores is None else [bool(score.correct) for score in made.scores]
        chosen = chosen_groups(rewards, correct, size, self.groups, random.Random(f"{self.seed} {self._step}"))
        batch[ROW] = torch.arange(total, device=batch["completion_ids"].device)
        for group, why in chosen:
            for row in range(group * size, (group + 1) * size):
                self._waiting[row] = {**self._known(trainer, made, row), "dropped": False, "kept_why": why}
        self._method = trainer.args.method["name"]  # by which METHODS has it
        self._about = {
            **self._made,
            "step": self._step,
            "method": {"name": self._method, **asdict(trainer.method)},
            "groups": total // size,
            "recorded": len(chosen),
            "dropped": dict(self._drops),
            "kept": kept_policy(self.every, self.groups),
        }

    @torch.no_grad()
    def collect(self, trainer: RLADTrainer, batch: Mapping[str, Any]) -> None:
        """Take the signals of the chosen rows of a micro-batch that are seen for the first time."""
        if ROW not in batch or not self._waiting:
            return
        places = [(place, row) for place, row in enumerate(batch[ROW].tolist()) if row in self._waiting]
        if not places:
            return
        signals, terms, method = batch[SEEN]
        self._about.setdefault("in_force", {"name": self._method, **asdict(method)})
        seen = _arrays(batch, signals, terms, method)
        weights = token_weights(trainer, batch, signals.mask).tolist()
        for place, row in places:
            record = self._waiting.pop(row)
            record |= _row_arrays(seen, place, len(record["tokens"]))
            self._done.append({**record, "weight": weights[place]})
        if not self._waiting:
            self._write()

    def _write(self) -> None:
        rows = sorted(self._done, key=lambda row: (row["group"], row["index"]))
        above = max((row["group"] for row in rows), default=-1) + 1
        dropped = [{**row, "group": above + row["group"]} for row in self._dropped]
        records.write(records.part(self.folder, self._step), "rollout", rows + dropped, self._about)
        self._done, self._dropped = [], []

    def _start(self, trainer: RLADTrainer) -> dict[str, Any]:
        """What is the same for all parts. What an interrupted run recorded beyond its checkpoint is made again."""
        for number, path in records.parts(self.folder).items():
            if number > trainer.state.global_step:
                path.unlink()
        backend = getattr(trainer._tokenizer, "backend_tokenizer", None)
        if backend is not None:
            with whole_file(self.folder / TOKENIZER) as file:
                file.write(backend.to_str().encode())
        args = trainer.args
        return {
            "run": self.run,
            "commit": source_commit(),
            "loss_type": args.loss_type,
            "temperature": args.temperature,
            "max_steps": trainer.state.max_steps,
            "seed": args.seed,
        }

    def _known(self, trainer: RLADTrainer, made: Rollouts, row: int) -> dict[str, Any]:
        """What is known of a rollout before it is trained on."""
        batch, size, example = made.batch, trainer.num_generations, made.inputs[row]
        tokenizer, score = trainer._tokenizer, None if made.scores is None else made.scores[row]
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
        tokens, mask, stop = _response(batch, row, tokenizer.pad_token_id, trainer.eos_token_ids)
        parts = dict(zip(trainer.reward_func_names, batch[REWARDS][row].tolist(), strict=True))
        difficulty, task = example.get("difficulty"), example.get("task")
        known = {
            "run": self.run,
            "method": trainer.args.method["name"],
            "step": self._step,
            "group": row // size,
            "index": row % size,
            "task": str(trainer.reward_func_names[0] if task is None else task),
            "difficulty": None if difficulty is None else str(difficulty),
            "prompt": tokenizer.decode(prompt),
            "prompt_tokens": prompt,
            "response": tokenizer.decode(tokens),
            "tokens": tokens,
            "mask": mask,
            "advantage": float(batch["advantages"][row]),
            "reward": _totals(trainer, batch[REWARDS][row : row + 1])[0],
            "reward_parts": {name: value for name, value in parts.items() if not math.isnan(value)},
            "extracted": None if score is None else score.extracted,
            "gold": gold(example),
            "correct": None if score is None else bool(score.correct),
            "explanation": None if score is None else score.explanation,
            "stop": stop,
            "columns": _columns(example),
        }
        # A lone surrogate, as a data set's JSON can have, is no text that a file could hold.
        return {
            name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
            for name, value in known.items()
        }


def _columns(example: Mapping[str, Any]) -> str:
    """What an example holds beside its prompt, in JSON. Of a task's own class it may hold what JSON has not."""
    return json.dumps({key: value for key, value in example.items() if key != "prompt"}, default=str, skipkeys=True)


def make_recorder(trainer: RLADTrainer) -> Recorder | None:
    """The recorder that the trainer's arguments ask for; None where they do not, and in all but the main process."""
    args = trainer.args
    if not args.record_every or not trainer.accelerator.is_main_process:
        return None
    folder = Path(args.record_folder or Path(args.output_dir or ".") / layout.RECORDS)
    return Recorder(folder, args.record_every, args.record_groups, folder.absolute().parent.name, args.seed)


def chosen_groups(
    rewards: Sequence[float], correct: Sequence[bool] | None, size: int, count: int, rng: random.Random
) -> list[tuple[int, str]]:
    """(group, why) of at most `count` groups of `size` rollouts, as `kept_policy` says; in the order of the batch.

    Empty where there is no whole group: of several processes the first may have but a part of one.
    """
    groups = range(len(rewards) // size)
    if not groups:
        return []
    spans = [slice(group * size, (group + 1) * size) for group in groups]
    spread = [max(rewards[span]) - min(rewards[span]) for span in spans]
    why: dict[int, str] = {}
    if correct is None:
        best = max(groups, key=lambda group: spread[group])
        why[best] = f"the largest spread of rewards of {len(spans)} groups"
        wrong: list[int] = []
    else:
        right = [sum(correct[span]) for span in spans]
        best = max(groups, key=lambda group: (-abs(2 * right[group] - size), spread[group]))
        why[best] = f"the most mixed of {len(spans)} groups: {right[best]} of {size} right"
        wrong = [group for group in groups if right[group] == 0 and group != best]
    if wrong and count > 1:
        why[rng.choice(wrong)] = f"all wrong: one of {len(wrong)} such groups"
    rest = [group for group in groups if group not in why]
    for group in rng.sample(rest, min(len(rest), max(0, count - len(why)))):
        why[group] = "at random"
    return sorted(why.items())


def token_weights(trainer: Any, batch: Mapping[str, Any], mask: Tensor) -> Tensor:
    """(rows,): by what TRL's loss multiplies the objective of each token of a row, over the whole update.

    `loss_type` grpo: 1 / (its tokens x rollouts of the update); bnpo: 1 / tokens of the micro-batch, over the number of
    those; dr_grpo: 1 / (longest response x rollouts); dapo: 1 / tokens of the update. vLLM's importance correction and
    an entropy quantile, which multiply single tokens, are not in it.
    """
    args, rows = trainer.args, mask.shape[0]
    micro_batches = trainer.current_gradient_accumulation_steps * trainer.accelerator.num_processes
    lengths = mask.sum(-1).clamp(min=1).float()
    whole: Tensor
    if args.loss_type == "grpo":
        whole = lengths * rows * micro_batches
    elif args.loss_type == "bnpo":
        whole = mask.sum().clamp(min=1) * micro_batches
    elif args.loss_type == "dr_grpo":
        whole = torch.tensor(rows * trainer.max_completion_length * micro_batches)
    else:
        share = trainer.current_gradient_accumulation_steps / args.steps_per_generation
        whole = batch["num_items_in_batch"].clamp(min=1) * share
    weights: Tensor = torch.ones_like(lengths) / whole
    return weights


def _totals(trainer: RLADTrainer, parts: Tensor) -> list[float]:
    """Weighted sums of rewards: as the trainer's advantages have them."""
    sums: list[float] = (parts * trainer.reward_weights.to(parts.device)).nansum(dim=1).tolist()
    return sums


def _response(batch: Mapping[str, Any], row: int, pad: int, ends: Sequence[int]) -> tuple[list[int], list[bool], str]:
    """(tokens, mask, stop) of a row, without its padding. A truncated response may be masked as a whole."""
    ids, counts = batch["completion_ids"][row].tolist(), batch["completion_mask"][row].bool()
    length = int(counts.sum())
    if length == 0:
        length = len(ids)
        while length and ids[length - 1] == pad:
            length -= 1
    if "tool_mask" in batch:
        counts = counts & batch["tool_mask"][row].bool()
    tokens = ids[:length]
    stopped = bool(tokens) and tokens[-1] in ends
    return tokens, counts[:length].tolist(), "stop" if stopped else "length"


def _arrays(
    batch: Mapping[str, Any], signals: TokenSignals, terms: ObjectiveTerms, method: Method
) -> dict[str, Tensor | None]:
    """(B, T) of a micro-batch, by the columns of a record; NaN where a token does not count or there is no value."""
    nothing = float("nan")

    def counting(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.where(signals.mask, values.detach().float(), nothing)

    teacher, alpha = counting(signals.teacher_logps), getattr(method, "alpha", None)
    anchor = None
    if teacher is not None:
        if alpha is not None:
            with_old = torch.where(signals.teacher_ok, signals.teacher_logps, signals.old_logps)  # type: ignore[arg-type]
            anchor = counting(alpha * signals.old_logps + (1 - alpha) * with_old)
        teacher = torch.where(signals.teacher_ok, teacher, nothing)
    return {
        "logps": counting(signals.logps),
        "old_logps": counting(signals.old_logps),
        "teacher_logps": teacher,
        "ref_logps": counting(batch.get("ref_per_token_logps")),
        "log_ratio": counting(terms.log_ratio),
        "anchor": anchor,
        "entropy": counting(batch.get(ENTROPIES)),
        "branch": (terms.clipped_low | terms.clipped_high).to(torch.int8),
        "clipped_low": terms.clipped_low,
        "clipped_high": terms.clipped_high,
        "clamped": terms.clamped & signals.mask,
    }


def _row_arrays(seen: Mapping[str, Tensor | None], place: int, length: int) -> dict[str, Any]:
    """One row of `_arrays`, as long as its response: micro-batches are cut where all of their rows are masked."""
    found: dict[str, Any] = {}
    for name, values in seen.items():
        if values is not None:
            row = values[place, :length].cpu()
            missing = float("nan") if row.dtype.is_floating_point else 0
            found[name] = torch.nn.functional.pad(row, (0, length - len(row)), value=missing).numpy()
    return found
