"""RLAD in one file: no trainer, no TRL. The student writes, a reward and a teacher judge, AdamW moves the student.

    python recipes/loop.py --steps 2

trains the embedded student on Knights & Knaves beside the embedded teacher, on a CPU. What `rlad train` does is this
and what a long run needs (checkpoints, several devices, vLLM, logs); a test holds both to the same loss and gradient.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlad.models import resolve
from rlad.objectives import (
    RLAD,
    Method,
    ObjectiveTerms,
    group_advantages,
    objective_terms,
    sequence_mean,
    token_signals,
)
from rlad.tasks.base import Example
from rlad.tasks.knights_knaves.dataset import KnightsKnaves


@dataclass(frozen=True)
class Rollouts:
    """B sequences: a prompt, padded on the left to P tokens, and a response, padded on the right to T.

    ids, attention: (B, P + T), 1 in `attention` at real tokens. mask: (B, T) bool, True at the response's tokens, its
    end included.
    """

    ids: Tensor
    attention: Tensor
    mask: Tensor


def load(name: str) -> tuple[Any, Any]:
    """A causal LM in float32, without dropout, and its tokenizer, by hub id, path or embedded:NAME."""
    path = resolve(name)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    model.generation_config = GenerationConfig()  # its own may hold a repetition penalty, which no log-prob knows of
    return model.eval(), AutoTokenizer.from_pretrained(path, padding_side="left")


@torch.no_grad()
def generate(model: Any, tokenizer: Any, problems: Sequence[Example], group: int, max_new_tokens: int) -> Rollouts:
    """`group` responses to each problem, next to each other, sampled from the model's own distribution."""
    chats = [problem["prompt"] for problem in problems for _ in range(group)]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    prompts = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    # Temperature 1 and nothing cut off: log pi_old below is then the log-probability of what was sampled.
    ids = model.generate(
        input_ids=prompts.input_ids, attention_mask=prompts.attention_mask, max_new_tokens=max_new_tokens,
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    responses = ids[:, prompts.input_ids.shape[1] :]
    ends = responses == tokenizer.eos_token_id
    mask = ends.cumsum(1) - ends.long() == 0  # no end before this token
    return Rollouts(ids, torch.cat([prompts.attention_mask, mask.long()], dim=1), mask)


def response_logps(model: Any, rollouts: Rollouts) -> Tensor:
    """(B, T) log-probs of the response tokens, in nats: the logits at position t - 1 predict token t."""
    length = rollouts.mask.shape[1]
    logits = model(input_ids=rollouts.ids, attention_mask=rollouts.attention).logits[:, -length - 1 : -1]
    logps: Tensor = logits.log_softmax(-1).gather(-1, rollouts.ids[:, -length:, None]).squeeze(-1)
    return logps


def loss_of(
    method: Method, logps: Tensor, old_logps: Tensor, teacher_logps: Tensor, advantages: Tensor, mask: Tensor
) -> tuple[Tensor, ObjectiveTerms]:
    """Minus RLAD Eq. 1 with the ratio of Eq. 3: each response weighs the same, each of its tokens the same in it."""
    signals = token_signals(logps, old_logps, teacher_logps, advantages, mask)
    terms = objective_terms(method, signals)
    return -sequence_mean(terms.objective, signals.mask, len(mask)), terms


def train(options: argparse.Namespace) -> None:
    """The loop."""
    torch.manual_seed(options.seed)
    student, tokenizer = load(options.student)
    teacher, _ = load(options.teacher)
    task = KnightsKnaves(people=options.people, size=options.steps * options.prompts, seed=options.seed)
    examples = task.train()
    method = RLAD(alpha=options.alpha)
    optimizer = torch.optim.AdamW(student.parameters(), lr=options.lr, weight_decay=0.0)
    print("step  reward  accuracy  ratio  clip high  clip low  clamped  tokens  seconds")
    for step in range(options.steps):
        start = time.monotonic()
        problems = examples[step * options.prompts : (step + 1) * options.prompts]
        rollouts = generate(student, tokenizer, problems, options.group, options.max_new_tokens)
        length = rollouts.mask.shape[1]
        texts = tokenizer.batch_decode(rollouts.ids[:, -length:], skip_special_tokens=True)
        scores = [task.score(text, problems[i // options.group]) for i, text in enumerate(texts)]
        rewards = torch.tensor([score.value for score in scores])
        advantages = group_advantages(rewards, options.group)
        with torch.no_grad():
            old_logps = response_logps(student, rollouts)
            teacher_logps = response_logps(teacher, rollouts)
        for _ in range(options.iterations):
            logps = response_logps(student, rollouts)
            loss, terms = loss_of(method, logps, old_logps, teacher_logps, advantages, rollouts.mask)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
        mask = rollouts.mask
        ratio, high, low, clamped = (
            part[mask].float().mean().item()
            for part in (terms.log_ratio.exp(), terms.clipped_high, terms.clipped_low, terms.clamped)
        )
        accuracy = sum(score.correct for score in scores) / len(scores)
        print(
            f"{step + 1:4}  {rewards.mean():6.3f}  {accuracy:8.1%}  {ratio:5.3f}  {high:9.1%}  {low:8.1%}  "
            f"{clamped:7.1%}  {mask.sum() / len(mask):6.0f}  {time.monotonic() - start:7.1f}",
            flush=True,
        )
    if options.output:
        student.save_pretrained(options.output)
        tokenizer.save_pretrained(options.output)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="RLAD on Knights & Knaves in one file.")
    parser.add_argument("--student", default="embedded:student", help="hub id, path or embedded:NAME")
    parser.add_argument("--teacher", default="embedded:teacher", help="likewise, with the student's tokenizer")
    parser.add_argument("--steps", type=int, default=40, help="batches of rollouts")
    parser.add_argument("--iterations", type=int, default=1, help="updates on each batch")
    parser.add_argument("--prompts", type=int, default=8, help="puzzles in a batch")
    parser.add_argument("--group", type=int, default=8, help="responses to each puzzle (G)")
    parser.add_argument("--people", default="2-4", help='people in a puzzle, like 3 or "2-4"')
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest response")
    parser.add_argument("--alpha", type=float, default=0.5, help="old student against teacher in the anchor (Eq. 3)")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="folder to save the student in")
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
