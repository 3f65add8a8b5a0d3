"""Dynamic sampling (Skywork-OR1, arXiv 2505.22312; DAPO, arXiv 2503.14476): groups without signal give way to others.

A group whose rewards are all equal has advantage 0 for every token: it takes up the batch and teaches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlad.errors import RladError
from rlad.objectives import all_wrong

if TYPE_CHECKING:
    from rlad.trainer.trainer import RLADTrainer

# How each tensor of a batch is padded when two batches become one: (side, value). Others of that shape: right, 0.
_LEFT = {"prompt_ids", "prompt_mask"}
_PADDED_WITH = {"tool_mask": 1}


@dataclass
class Counts:
    """Of a run so far, over all processes. A checkpoint keeps them.

    all_right, all_wrong, equal: groups that were dropped, by what their responses had in common; equal where they are
    of both kinds, or it is not known, and only the rewards are the same. unfilled: groups without signal that stayed,
    because the last round had nothing better. rounds: of further generation. cursor: prompts that `fresh_prompts` has
    given.
    """

    all_right: int = 0
    all_wrong: int = 0
    equal: int = 0
    unfilled: int = 0
    rounds: int = 0
    cursor: int = 0

    @property
    def dropped(self) -> int:
        """Groups dropped, whatever the reason."""
        return self.all_right + self.all_wrong + self.equal

    def add(self, *reasons: str) -> None:
        """Count one dropped group for each of `reasons` (see `Rollouts.reason`)."""
        for reason in reasons:
            setattr(self, reason, getattr(self, reason) + 1)

    def over_processes(self) -> list[int]:
        """What has to be summed over processes; `set_over_processes` takes it back."""
        return [getattr(self, name) for name in _SUMMED]

    def set_over_processes(self, sums: Sequence[int]) -> None:
        """See `over_processes`."""
        for name, value in zip(_SUMMED, sums, strict=True):
            setattr(self, name, int(value))

    def __iadd__(self, other: Counts) -> Counts:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


_SUMMED = ("all_right", "all_wrong", "equal", "unfilled")


@dataclass(frozen=True)
class Rollouts:
    """Generated and rewarded responses of this process.

    batch: TRL's tensors, row by row. inputs: the example of each row. scores: the task's Score of each, None where the
    reward function keeps none.
    """

    batch: dict[str, Any]
    inputs: list[dict[str, Any]]
    scores: list[Any] | None

    def reason(self, group: int, size: int) -> str:
        """The field of Counts that a group (of `size` rows) of equal rewards counts in."""
        if self.scores is None:
            return "equal"
        right = {bool(score.correct) for score in self.scores[group * size : (group + 1) * size]}
        return "equal" if len(right) > 1 else "all_right" if right == {True} else "all_wrong"

    def replaced(
        self, places: Sequence[int], fresh: Rollouts, taken: Sequence[int], size: int, pad_id: int
    ) -> Rollouts:
        """These with the groups at `places` replaced by the groups `taken` of `fresh`; neither is changed."""
        batch = replaced(self.batch, places, fresh.batch, taken, size, pad_id)
        inputs, scores = list(self.inputs), None if self.scores is None else list(self.scores)
        for place, group in zip(places, taken, strict=True):
            ours, theirs = slice(place * size, (place + 1) * size), slice(group * size, (group + 1) * size)
            inputs[ours] = fresh.inputs[theirs]
            if scores is not None and fresh.scores is not None:
                scores[ours] = fresh.scores[theirs]
        return Rollouts(batch, inputs, scores)


def add_correct(trainer: RLADTrainer, made: Rollouts) -> None:
    """Put into the batch which rollouts are right, and which groups have none: `correct`, `group_wrong`, (B,) bool.

    Here, because a group is whole now, over all processes, and is not when the batch is shuffled and split.
    """
    if made.scores is None:
        raise RladError(
            f"method {trainer.method.name} needs to know which rollouts are right: give a reward function with "
            "`scores` of its last call, as a recipe's task does (rlad.trainer.run.reward_function), or use kdrl"
        )
    size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    device = trainer.accelerator.device
    correct = torch.tensor([bool(score.correct) for score in made.scores], device=device)
    start = trainer.accelerator.process_index * len(correct)
    made.batch["correct"] = correct
    made.batch["group_wrong"] = all_wrong(trainer.accelerator.gather(correct), size)[start : start + len(correct)]


def refill(trainer: RLADTrainer, made: Rollouts, flat: Tensor) -> Rollouts:
    """The rollouts with groups of signal in the place of those without, in at most args.refill_rounds generations.

    flat: (groups of all processes,) bool, which have none. What was dropped is counted in `trainer.refilled`. Where the
    last round has not filled the batch, groups without signal stay: the batch keeps its size.
    """
    size, accelerator = trainer.num_generations, trainer.accelerator
    empty, counts = _own(trainer, flat, len(made.inputs) // size), Counts()
    while counts.rounds < trainer.args.refill_rounds and (wanted := _most(trainer, len(empty))):
        counts.rounds += 1
        # Every process draws as many, because generation is collective.
        start = trainer.refilled.cursor + counts.cursor + accelerator.process_index * wanted
        counts.cursor += wanted * accelerator.num_processes
        prompts = fresh_prompts(trainer.train_dataset, start, wanted, trainer.args.seed)
        with _metrics_kept(trainer._metrics["train"]):
            fresh, flat = trainer.rollouts([dict(row) for row in prompts for _ in range(size)])
        without = _own(trainer, flat, wanted)
        taken = [i for i in range(wanted) if i not in without][: len(empty)]
        gone, empty = empty[: len(taken)], empty[len(taken) :]
        for rollouts, dropped in ((fresh, without), (made, gone)):
            reasons = [rollouts.reason(i, size) for i in dropped]
            counts.add(*reasons)
            if trainer.recorder is not None:
                trainer.recorder.drop(trainer, rollouts, dropped, reasons)
        made = made.replaced(gone, fresh, taken, size, trainer._tokenizer.pad_token_id)
    counts.unfilled = len(empty)
    sums = accelerator.reduce(torch.tensor(counts.over_processes(), device=accelerator.device), reduction="sum")
    counts.set_over_processes(sums.tolist())
    trainer.refilled += counts
    trainer._metric("refill_rounds", counts.rounds)
    trainer._metric("refill_dropped", counts.dropped)
    trainer._metric("refill_unfilled", counts.unfilled)
    mask = made.batch["completion_mask"] * made.batch.get("tool_mask", 1)
    made.batch["num_items_in_batch"] = accelerator.gather(mask.sum()).sum()
    return made


def _own(trainer: RLADTrainer, flat: Tensor, groups: int) -> list[int]:
    """Places of the groups without signal among this process's own."""
    start = trainer.accelerator.process_index * groups
    return [i for i, each in enumerate(flat[start : start + groups].tolist()) if each]


def _most(trainer: RLADTrainer, count: int) -> int:
    """The largest such count of all processes."""
    return int(trainer.accelerator.gather(torch.tensor([count], device=trainer.accelerator.device)).max())


@contextmanager
def _metrics_kept(metrics: dict[str, list[float]]) -> Iterator[None]:
    """What is logged of rollouts (reward, accuracy, length) is of the first round alone: of prompts as they come, not
    of those that are left when the right and the wrong have been dropped. Tokens are counted on."""
    kept = {name: list(values) for name, values in metrics.items()}
    try:
        yield
    finally:
        tokens = {name: values for name, values in metrics.items() if name == "num_tokens"}
        metrics.clear()
        metrics.update(kept | tokens)


def fresh_prompts(dataset: Any, cursor: int, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` rows from place `cursor` of an endless stream: the dataset, shuffled anew for each time through.

    The order is a function of the seed alone, so the cursor is all that a resumed run needs. It is another order than
    the sampler's, whose prompts may return here.
    """
    size = len(dataset)
    rows, orders = [], {}
    for place in range(cursor, cursor + count):
        epoch, within = divmod(place, size)
        if epoch not in orders:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
            orders[epoch] = torch.randperm(size, generator=generator)
        rows.append(dict(dataset[int(orders[epoch][within])]))
    return rows


def replaced(
    batch: dict[str, Any], places: Sequence[int], fresh: dict[str, Any], taken: Sequence[int], group: int, pad_id: int
) -> dict[str, Any]:
    """`batch` with its groups at `places` replaced by the groups `taken` of `fresh`; neither is changed.

    Groups are counted in units of `group` rows. Prompts are padded on the left and everything else on the right, as
    TRL does. Numbers that belong to the whole batch (0-dim) stay those of `batch`.
    """
    to, of = _rows(places, group), _rows(taken, group)
    if batch.keys() != fresh.keys():
        raise RladError(f"refilled rollouts differ from the first in {', '.join(sorted(batch.keys() ^ fresh.keys()))}")
    joined = {}
    for name, value in batch.items():
        other = fresh[name]
        if not isinstance(value, Tensor):
            raise RladError(f"groups: refill does not fit rollouts with {name} (images): use groups: keep")
        if value.ndim == 0:
            joined[name] = value
            continue
        with_value = pad_id if name in ("prompt_ids", "completion_ids") else _PADDED_WITH.get(name, 0)
        if value.ndim == 2:
            width = max(value.shape[1], other.shape[1])
            value = _padded(value, width, name in _LEFT, with_value)
            other = _padded(other, width, name in _LEFT, with_value)
        value = value.clone()
        value[to] = other[of]
        joined[name] = value
    return joined


def _rows(groups: Sequence[int], size: int) -> Tensor:
    return torch.tensor([group * size + i for group in groups for i in range(size)], dtype=torch.long)


def _padded(value: Tensor, width: int, left: bool, with_value: int) -> Tensor:
    missing = width - value.shape[1]
    return torch.nn.functional.pad(value, (missing, 0) if left else (0, missing), value=with_value)
