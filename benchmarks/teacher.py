"""What scoring costs: each command prints ratios measured in one run.

    OMP_NUM_THREADS=1 python benchmarks/teacher.py memory     peak of scoring over one float32 (B, T, V) of logits
    OMP_NUM_THREADS=1 python benchmarks/teacher.py time       scoring over the bare backbone and head on the same tokens
    OMP_NUM_THREADS=1 python benchmarks/teacher.py lengths    scoring of long-tailed lengths over the padded way
    OMP_NUM_THREADS=1 python benchmarks/teacher.py step       a training step with a teacher over TRL's without one

Random weights cost what trained ones do. Long-tailed: log-normal, mean 40 % of the longest. What is compared takes
turns; times are medians. `step` runs the embedded student, a teacher with twice its layers, and rollouts whose lengths
are dealt out (generation is real, to the longest length, for both; its seconds are also left out of a second ratio).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlad.teacher.align import layout
from rlad.teacher.local import LocalTeacher, backbone

VOCABULARY = 151_936  # Qwen3's


def _model(vocabulary: int, hidden: int = 1024, layers: int = 2) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128, head_dim=64, intermediate_size=3 * hidden, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def _sequences(lengths: Sequence[int], vocabulary: int, prompt: int = 32) -> tuple[list[list[int]], list[list[int]]]:
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(0, vocabulary, (count,), generator=draw).tolist()

    return [ids(prompt) for _ in lengths], [ids(length) for length in lengths]


def long_tailed(count: int, longest: int, seed: int = 0) -> list[int]:
    """Log-normal lengths, scaled to a mean of 40 % of the longest, which is among them."""
    draw = torch.Generator().manual_seed(seed)
    raw = torch.randn(count, generator=draw).mul(0.7).exp()
    for _ in range(50):  # cutting at `longest` lowers the mean: scale again until it is 40 %
        raw = (raw * (0.4 * longest / raw.clamp(max=longest).mean())).clamp(max=4 * longest)
    lengths = raw.clamp(1, longest).round().long().tolist()
    lengths[lengths.index(max(lengths))] = longest
    return lengths


def _medians(rounds: int, **ways: Callable[[], Any]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def memory() -> dict[str, Any]:
    """Peak resident memory above what the loaded model takes, sampled every 2 ms."""
    model = _model(VOCABULARY, hidden=128)  # the logits do not get smaller with it
    teacher = LocalTeacher(model)
    prompts, responses = _sequences([1024] * 16, VOCABULARY)
    teacher.score(prompts[:1], [responses[0][:8]])
    process, stop, peak = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    teacher.score(prompts, responses)
    stop.set()
    watcher.join()
    logits = 16 * 1024 * VOCABULARY * 4
    return {"peak bytes": peak[0] - before, "logits bytes": logits, "ratio": (peak[0] - before) / logits}


def duration() -> dict[str, Any]:
    """16 responses of one length; the bare way is one forward of the backbone and one product with the head each."""
    model = _model(32_000, layers=4)
    teacher = LocalTeacher(model, tokens_per_batch=2048)
    prompts, responses = _sequences([224] * 16, 32_000)

    @torch.no_grad()
    def bare() -> None:
        for start in range(0, 16, 8):
            plan = layout(prompts[start : start + 8], responses[start : start + 8])
            hidden = backbone(model)(input_ids=plan.ids, attention_mask=plan.real, use_cache=False).last_hidden_state
            model.lm_head(hidden[plan.scored])

    seconds = _medians(7, scoring=lambda: teacher.score(prompts, responses), bare=bare)
    return {"median seconds": seconds, "ratio": seconds["scoring"] / seconds["bare"]}


def lengths() -> dict[str, Any]:
    """64 long-tailed responses, against batches in the order they come, all padded to the longest."""
    model = _model(8_000, hidden=512, layers=4)
    teacher = LocalTeacher(model, tokens_per_batch=4096)
    dealt = long_tailed(64, 480)
    prompts, responses = _sequences(dealt, 8_000)

    @torch.no_grad()
    def padded() -> None:
        rows = 4096 // 512
        for start in range(0, 64, rows):
            ids = torch.zeros(rows, 512, dtype=torch.long)
            real = torch.zeros(rows, 512, dtype=torch.long)
            for i, (prompt, response) in enumerate(zip(prompts[start:], responses[start:], strict=False)):
                if i < rows:
                    ids[i, : len(prompt) + len(response)] = torch.tensor(prompt + response)
                    real[i, : len(prompt) + len(response)] = 1
            logits = model(input_ids=ids, attention_mask=real, use_cache=False).logits[:, 31:-1]
            logits.gather(-1, ids[:, 32:, None])[..., 0] - logits.logsumexp(-1)

    seconds = _medians(5, scoring=lambda: teacher.score(prompts, responses), padded=padded)
    return {
        "median seconds": seconds,
        "mean length over longest": sum(dealt) / len(dealt) / 480,
        "ratio": seconds["scoring"] / seconds["padded"],
    }


def step(rounds: int = 6, rollouts: int = 64, longest: int = 256) -> dict[str, Any]:
    """RLAD with a teacher beside stock GRPO without one, long-tailed rollouts, micro-batches of 16."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import GRPOTrainer

    from rlad import RLADConfig, RLADTrainer
    from rlad.models import resolve

    folder = resolve("embedded:student")
    student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    config = copy.deepcopy(student.config)
    config.num_hidden_layers, config.layer_types = 2 * config.num_hidden_layers, None
    teacher = AutoModelForCausalLM.from_config(type(config)(**config.to_dict()), dtype=torch.float32)
    generation: list[float] = []
    turn = 0

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Real sampling to the longest length, cut to lengths that are dealt out: the same for both trainers."""
        encoded = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=True, padding=True, return_tensors="pt", return_dict=True
        )
        start = time.perf_counter()
        with torch.no_grad():
            output = trainer.model.generate(
                **encoded, max_new_tokens=longest, min_new_tokens=longest, do_sample=True, top_k=0, disable_compile=True
            )
        generation.append(time.perf_counter() - start)
        made = output[:, encoded["input_ids"].shape[1] :].tolist()
        dealt = long_tailed(len(prompts), longest, seed=trainer.state.global_step + 100 * turn)
        rows = zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
        return {
            "prompt_ids": [ids[mask.bool()].tolist() for ids, mask in rows],
            "completion_ids": [row[:length] for row, length in zip(made, dealt, strict=True)],
            "logprobs": None,
        }

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(each[-1]["content"]) % 2) for each in completions]

    data = Dataset.from_list([{"prompt": [{"role": "user", "content": f"Who is person {i}?"}]} for i in range(256)])
    seconds: dict[str, list[float]] = {"stock": [], "rlad": []}
    without: dict[str, list[float]] = {"stock": [], "rlad": []}
    for turn in range(rounds):  # noqa: B007 - `rollout` reads it
        for name, kind in (("stock", GRPOTrainer), ("rlad", RLADTrainer)):
            arguments = RLADConfig(
                tempfile.mkdtemp(), method="grpo" if name == "stock" else "rlad", max_steps=6, learning_rate=1e-6,
                per_device_train_batch_size=16, gradient_accumulation_steps=rollouts // 16, use_cpu=True, bf16=False,
                max_completion_length=longest, gradient_checkpointing=False, report_to="none", disable_tqdm=True,
                logging_steps=1, save_strategy="no",
            )  # fmt: skip
            extra = {} if name == "stock" else {"teacher_model": teacher, "teacher_processing_class": tokenizer}
            trainer = kind(
                copy.deepcopy(student),
                reward,
                arguments,
                data,
                processing_class=tokenizer,
                rollout_func=rollout,
                **extra,
            )
            trainer.remove_callback(PrinterCallback)
            generation.clear()
            trainer.train()
            times = [row["step_time"] for row in trainer.state.log_history if "step_time" in row]
            seconds[name] += times[1:]
            without[name] += [a - b for a, b in zip(times[1:], generation[1:], strict=True)]
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    rest = {name: statistics.median(each) for name, each in without.items()}
    return {
        "steps": {name: len(each) for name, each in seconds.items()},
        "median seconds a step": medians,
        "ratio": medians["rlad"] / medians["stock"],
        "ratio without generation": rest["rlad"] / rest["stock"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = {"memory": memory, "time": duration, "lengths": lengths, "step": step}
    parser.add_argument("what", choices=ways)
    what = parser.parse_args().what
    print(json.dumps({"threads": torch.get_num_threads(), **ways[what]()}, indent=1))


if __name__ == "__main__":
    main()
