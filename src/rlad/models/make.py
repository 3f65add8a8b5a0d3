"""Make the embedded pair again from nothing: `python -m rlad.models.make {tokenizer,teacher,student} --output DIR`.
`other-teacher` is taught like the teacher, on a tokenizer that splits words differently (docs/teacher.md).

Both first drill the one step of the reasoning that they do not find by themselves: to look up what a person was last
assumed to be. (Without it 10.5 M tokens of traces left every other step right and this one a guess: the statistics of
the search give it away nine times in ten, so there is little to gain from looking.) Then they learn whole traces. The
teacher sees right reasoning. The student sees fewer puzzles, most of them of two people, and reasoning in which a step
may be wrong and the rest follows from the error: it knows how to reason, but not reliably, and not as far - as a base
model does.

Every puzzle they train on comes from the train split (rlad.tasks.knights_knaves.generate), so it is disjoint from every
test split and from the official tests. Seeded; one thread by default.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlad.models.tokenizer import train_other_tokenizer, train_tokenizer
from rlad.models.traces import trace
from rlad.tasks.knights_knaves.generate import generate
from rlad.tasks.knights_knaves.puzzle import Puzzle
from rlad.tasks.knights_knaves.wording import NAMES

PEOPLE = (2, 3, 4)
POOL = 512  # puzzles drawn at a time, then cut into batches of like length


@dataclass(frozen=True)
class Spec:
    """What a model is and what it is taught.

    mix_first, mix_last: the shares of 2, 3 and 4 people at the start and at the end, interpolated over training.
    """

    shape: dict[str, int]
    steps: int  # of the schedule of learning rate and mix
    mix_first: tuple[float, ...] = ()
    mix_last: tuple[float, ...] = ()
    drill: bool = False  # lookups alone, no puzzles
    stop: int | None = None  # leave the schedule after so many steps
    puzzles: int | None = None  # how many different puzzles it sees; None: never the same twice
    noise: float = 0.0
    tokens_per_step: int = 6144
    lr: float = 2e-3
    seed: int = 0
    optimizer: str = "muon"


_TEACHER = dict(
    hidden_size=128, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, intermediate_size=384
)
_STUDENT = dict(
    hidden_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=288
)
_MOSTLY_TWO = (0.7, 0.25, 0.05)

# One after the other, each from the weights of the one before (optimizers start anew).
SPECS: dict[str, tuple[Spec, ...]] = {
    "teacher": (
        Spec(_TEACHER, drill=True, steps=2000, stop=250),
        Spec(_TEACHER, steps=3000, mix_first=(0.4, 0.4, 0.2), mix_last=(0.15, 0.3, 0.55), seed=10),
    ),
    "other-teacher": (
        Spec(_TEACHER, drill=True, steps=2000, stop=250),
        Spec(_TEACHER, steps=1600, mix_first=(0.4, 0.4, 0.2), mix_last=(0.15, 0.3, 0.55), seed=10),
    ),
    "student": (
        Spec(_STUDENT, drill=True, steps=2000, stop=250, seed=1),
        Spec(_STUDENT, steps=1200, mix_first=_MOSTLY_TWO, mix_last=_MOSTLY_TWO, puzzles=6_000, noise=0.1, seed=11),
    ),
}


def _attention_in_fp32(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """sdpa outside autocast: without bf16 matrix units its bf16 kernel makes the whole step 1.4 times as long."""
    with torch.autocast("cpu", enabled=False):
        output, weights = sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)
    return output, weights


AttentionInterface.register("rlad_sdpa_fp32", _attention_in_fp32)
AttentionMaskInterface.register("rlad_sdpa_fp32", sdpa_mask)


def make_tokenizer(seed: int = 7) -> PreTrainedTokenizerFast:
    """The shared tokenizer, learned from 4,000 puzzles and traces for each number of people."""
    return train_tokenizer(_texts(seed))


def make_other_tokenizer(seed: int = 7) -> PreTrainedTokenizerFast:
    """Learned from the same texts, and split differently."""
    return train_other_tokenizer(_texts(seed))


def _texts(seed: int) -> list[str]:
    puzzles = [p for n in PEOPLE for p in generate(n, 4000, seed)]
    return [p.quiz for p in puzzles] + [trace(p) for p in puzzles]


def encode(tokenizer: PreTrainedTokenizerFast, puzzle: Puzzle, response: str) -> tuple[list[int], int]:
    """(token ids of prompt and response with its end of sequence, length of the prompt)."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": puzzle.quiz}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return [*prompt, *tokenizer(response).input_ids, tokenizer.eos_token_id], len(prompt)


class _Puzzles:
    """Endless puzzles of a spec's mix, or the same `spec.puzzles` of them in a new order each time round."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.rng, self.drawn = spec, random.Random(spec.seed), 0
        self.fixed: list[Puzzle] = []
        if spec.puzzles is not None:
            for n, share in zip(PEOPLE, spec.mix_first, strict=True):
                self.fixed += generate(n, round(share * spec.puzzles), seed=1_000_000 + spec.seed)

    def pool(self, progress: float) -> list[Puzzle]:
        if self.fixed:
            return self.rng.sample(self.fixed, min(POOL, len(self.fixed)))
        puzzles = []
        for n, a, b in zip(PEOPLE, self.spec.mix_first, self.spec.mix_last, strict=True):
            self.drawn += 1
            count = round(POOL * (a + (b - a) * progress))
            puzzles += generate(n, count, seed=2_000_000 + 10_000 * self.spec.seed + self.drawn)
        return puzzles


def _batches(spec: Spec, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, labels) of about `tokens_per_step` tokens, of like length; labels are -100 outside responses."""
    source, step = _Puzzles(spec), 0
    while True:
        rows = []
        for puzzle in source.pool(min(1.0, step / spec.steps)):
            rows.append(encode(tokenizer, puzzle, trace(puzzle, spec.noise, source.rng)))
        rows.sort(key=lambda row: len(row[0]))
        batches, batch = [], list[tuple[list[int], int]]()
        for row in rows:
            if batch and (len(batch) + 1) * len(row[0]) > spec.tokens_per_step:
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
        source.rng.shuffle(batches)
        for batch in batches:
            longest = max(len(ids) for ids, _ in batch)
            ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
            labels = torch.full((len(batch), longest), -100)
            for i, (row_ids, prompt) in enumerate(batch):
                ids[i, : len(row_ids)] = torch.tensor(row_ids)
                labels[i, prompt : len(row_ids)] = torch.tensor(row_ids[prompt:])
            step += 1
            yield ids, labels


def _drills(spec: Spec, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, labels) of assumptions followed by lookups of them: `Try Zoey=knight Jack=knave` then ` Jack=knave
    Zoey=knight ...` on a line of their own, over and over with other roles; labels only on the roles looked up."""
    rng = random.Random(spec.seed)

    def row(length: int) -> tuple[list[int], list[int]]:
        ids, labels = list[int](), list[int]()
        names = rng.sample(NAMES, rng.randint(2, 8))
        while len(ids) < length:
            world = {name: f"={rng.choice(('knight', 'knave'))}" for name in names}
            ids += tokenizer("Try" + "".join(f" {name}{role}" for name, role in world.items()) + "\n").input_ids
            labels += [-100] * (len(ids) - len(labels))
            asked = rng.choices(names, k=rng.randint(len(names), 3 * len(names)))
            lookups = "".join(f" {name}{world[name]}" for name in asked) + "\n"
            # As one text: a token may hold the "=" with the name before it. Roles are what follows the "=".
            line = tokenizer(lookups, return_offsets_mapping=True)
            role = {i for found in re.finditer(r"(?<==)[a-z]+", lookups) for i in range(*found.span())}
            ids += line.input_ids
            labels += [
                token if not role.isdisjoint(range(*place)) else -100
                for token, place in zip(line.input_ids, line.offset_mapping, strict=True)
            ]
        return ids[:length], labels[:length]

    while True:
        length = rng.choice((32, 64, 128, 256))
        rows = [row(length) for _ in range(max(1, spec.tokens_per_step // length))]
        yield torch.tensor([ids for ids, _ in rows]), torch.tensor([labels for _, labels in rows])


def _optimizers(model: Qwen3ForCausalLM, spec: Spec) -> list[torch.optim.Optimizer]:
    """Muon (Jordan, 2024) for the matrices of the blocks, AdamW for the rest; or AdamW for all."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and spec.optimizer == "muon"]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, spec.lr, betas=(0.9, 0.98), weight_decay=0.01)]
    if matrices:
        optimizers.append(
            torch.optim.Muon(matrices, spec.lr, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def _lr_scale(step: int, steps: int) -> float:
    """Warm-up over 100 steps, constant, then linear to zero over the last 40 %."""
    return min(1.0, (step + 1) / 100, max(0.0, (steps - step) / (0.4 * steps)))


def train(
    spec: Spec,
    tokenizer: PreTrainedTokenizerFast,
    output: Path,
    log_every: int = 50,
    start: Path | None = None,
) -> Qwen3ForCausalLM:
    """Train from nothing, or from the weights in `start`. Writes log.jsonl as it goes, and a model every 250 steps."""
    torch.manual_seed(spec.seed)
    options: dict[str, Any] = {"rope_theta": 10_000.0, **spec.shape}
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=8 * math.ceil(len(tokenizer) / 8),
            head_dim=32,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **options,
        )
    )
    if start is not None:
        model.load_state_dict(Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32).state_dict())
    model.set_attn_implementation("rlad_sdpa_fp32")
    optimizers, batches = _optimizers(model, spec), (_drills if spec.drill else _batches)(spec, tokenizer)
    output.mkdir(parents=True, exist_ok=True)
    (output / "spec.json").write_text(json.dumps(asdict(spec), indent=1))
    started, tokens, losses = time.monotonic(), 0, list[float]()
    last = spec.stop or spec.steps
    for step in range(last):
        ids, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids, attention_mask=None, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = spec.lr * _lr_scale(step, spec.steps)
            optimizer.step()
            optimizer.zero_grad()
        tokens += ids.numel()
        losses.append(loss.item())
        if (step + 1) % log_every == 0:
            row = {
                "step": step + 1,
                "loss": sum(losses) / len(losses),
                "tokens": tokens,
                "seconds": round(time.monotonic() - started, 1),
            }
            losses.clear()
            print(json.dumps(row), flush=True)
            with (output / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if (step + 1) % 250 == 0 or step + 1 == last:
            save(model, tokenizer, output / f"step-{step + 1}")
    return model


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A Hugging Face folder in bf16 safetensors; the model in memory is left as it is."""
    config = Qwen3Config(**model.config.to_dict())  # its own: the attention of the model in training must stay as it is
    clone = Qwen3ForCausalLM(config).bfloat16()
    clone.load_state_dict(model.state_dict())
    clone.generation_config.do_sample = True
    clone.generation_config.eos_token_id = tokenizer.eos_token_id
    clone.generation_config.pad_token_id = tokenizer.pad_token_id
    clone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tokenizer", *SPECS])
    parser.add_argument("--output", type=Path, required=True, help="folder to write; checkpoints go below it")
    parser.add_argument("--set", nargs="*", default=[], help="spec fields to change, KEY=JSON, e.g. steps=300")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = make_other_tokenizer() if arguments.what == "other-teacher" else make_tokenizer()
    if arguments.what == "tokenizer":
        tokenizer.save_pretrained(arguments.output)
        return
    changes = {key: json.loads(value) for key, _, value in (item.partition("=") for item in arguments.set)}
    start = None
    for stage, spec in enumerate(SPECS[arguments.what], 1):
        folder = arguments.output / f"stage-{stage}"
        train(replace(spec, **changes), tokenizer, folder, start=start)
        start = max(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    print(f"the finished model is {start}")


if __name__ == "__main__":
    main()
