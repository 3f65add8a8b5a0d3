"""The only place where positions shift: a model's output at position t - 1 scores token t. And the test that finds it.

Prompts and responses are laid out left-aligned, padding behind: the last prompt token of row i stands at
`len(prompts[i]) - 1`, and what the model puts out there scores the first token of the response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rlad.errors import RladError

if TYPE_CHECKING:
    from rlad.teacher import Teacher

SELF_TEST_TEXT = "If 3 + 4 = 7, then x = 7.\n<think>So it is: yes.</think> The answer is 7"


class Layout(NamedTuple):
    """One padded batch. ids, real: (B, L); real is 1 where a token is. scored: (B, L) bool, where the output scores
    the token one place further on. targets: (N,), those N tokens, row after row. lengths: of the responses."""

    ids: Tensor
    real: Tensor
    scored: Tensor
    targets: Tensor
    lengths: list[int]

    def rows(self, logps: Tensor) -> list[Tensor]:
        """(N,) log-probs of the targets as one tensor for each response."""
        return list(logps.split(self.lengths))


def layout(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Layout:
    """B prompts and responses, each prompt at least one token long, as one padded batch."""
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids, real = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    scored = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        real[i, : len(row)] = 1
        scored[i, len(prompt) - 1 : len(row) - 1] = True
    targets = torch.tensor([token for response in responses for token in response], dtype=torch.long)
    return Layout(ids, real, scored, targets, [len(response) for response in responses])


def self_test(teacher: Teacher, tokenizer: Any, model: Any = None, tolerance: float = 0.1) -> None:
    """Score one known text before the first step and compare with what it must be.

    model: the teacher's own causal LM where it is in this process; its plain forward of the same text is the measure.
        Without one only the shape and the signs are looked at.
    tolerance: largest mean difference in nats; bf16 stays below 0.1, a shift by one is nats away.

    Raises RladError that says how the scores differ, naming a shift by one where it is one.
    """
    ids = list(tokenizer(SELF_TEST_TEXT).input_ids)
    prompt, response = ids[:4], ids[4:]
    scores = teacher.score([prompt], [response])
    if len(scores) != 1 or scores[0].shape != (len(response),):
        raise RladError(f"self-test: the teacher scored {len(response)} tokens with {[tuple(s.shape) for s in scores]}")
    score = scores[0].double()
    broken = int((~torch.isfinite(score) | (score > 1e-3)).sum())
    if broken:
        raise RladError(
            f"self-test: {broken} of {len(response)} log-probs of a plain sentence are NaN, infinite or positive: load "
            "the teacher in bfloat16 or float32, and check its weights"
        )
    if model is None:
        return
    logps = _direct(model, ids, float(getattr(teacher, "temperature", 1.0)))
    places = range(len(prompt) - 1, len(ids) - 1)

    def difference(shift: int) -> float:
        kept = [(i, p + shift) for i, p in enumerate(places) if 0 <= p + shift < len(ids) - 1]
        wanted = torch.stack([logps[place, ids[place + 1]] for _, place in kept])
        return float((score[[i for i, _ in kept]] - wanted).abs().mean())

    if difference(0) <= tolerance:
        return
    shift = next((s for s in (1, -1) if difference(s) <= tolerance), None)
    raise RladError(
        f"self-test: the teacher's scores differ from its own forward pass by {difference(0):.2f} nats on average"
        + (f"; they are those of the token {'after' if shift == 1 else 'before'}: shifted by one" if shift else "")
        + ". Please report it, with the teacher's name"
    )


@torch.no_grad()
def _direct(model: Any, ids: Sequence[int], temperature: float) -> Tensor:
    """(L, V) log-probs of one sequence by the model's own forward, in float64."""
    logits = model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0]
    logps: Tensor = (logits.double() / temperature).log_softmax(-1).cpu()
    return logps
