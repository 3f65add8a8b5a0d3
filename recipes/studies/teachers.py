"""The teachers of two studies, made from the embedded pair: `python recipes/studies/teachers.py weak|poor|wrong|sizes`.

weak   runs/teachers/weak: the embedded teacher with noise on every matrix, in units of its own standard deviation, as
       much (found by bisection) as leaves 60 to 70 % of 200 validation puzzles right. weak.json says how much.
poor   runs/teachers/poor: the same with so much more that 10 to 20 % are left: a teacher worse than the student.
wrong  runs/teachers/wrong: the embedded teacher with the words for the two roles exchanged in its answers: as sure as
       before, it says of everybody the opposite. (With those of its search exchanged as well it errs twice, and is
       right.)
sizes  runs/teachers/size-1, 2, 4, 8: random weights of the student's shape, with layers enough for so many times its
       parameters: for seconds, which random weights cost as trained ones do.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlad.evaluation.results import write_json
from rlad.evaluation.run import evaluate
from rlad.models import resolve
from rlad.tasks import load_task

FOLDER = Path("runs") / "teachers"
AIMS = {"weak": ((0.60, 0.70), 0.2, 0.5), "poor": ((0.10, 0.20), 0.2, 0.8)}  # accuracy; noise, from and to
ROLES = (" knight", " knave")  # as answers have them; the search writes =knight


def load(name: str) -> tuple[Any, Any]:
    """A model in float32, and its tokenizer."""
    path = resolve(name)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


def save(model: Any, tokenizer: Any, name: str) -> None:
    """Below FOLDER."""
    model.save_pretrained(FOLDER / name)
    tokenizer.save_pretrained(FOLDER / name)
    print(f"{FOLDER / name}: {size(model):,} parameters")


def size(model: Any) -> int:
    """Its parameters."""
    return sum(each.numel() for each in model.parameters())


def noisy(model: Any, amount: float) -> Any:
    """A copy with noise of `amount` standard deviations on every matrix; the same noise for every amount."""
    made, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 2:
                weight += amount * weight.std() * noise
    return made


def noisy_teacher(name: str, puzzles: int) -> None:
    """Bisection on the size of the noise."""
    (least, most), low, high = AIMS[name]
    model, tokenizer = load("embedded:teacher")
    task = load_task({"name": "knights_knaves", "people": [2, 3, 4]})
    examples = list(task.evaluation("validation", puzzles))
    tried = []
    for _ in range(10):
        amount = (low + high) / 2
        made = noisy(model, amount)
        found = evaluate(made.eval(), tokenizer, examples, task, max_new_tokens=704, batch_size=100)
        accuracy = sum(found.accuracies) / len(found.accuracies)
        tried.append({"noise": amount, "accuracy": accuracy})
        print(f"noise {amount:.4f}: {accuracy:.1%}", flush=True)
        if least <= accuracy <= most:
            save(made, tokenizer, name)
            write_json(FOLDER / f"{name}.json", {"puzzles": puzzles, "tried": tried})
            return
        low, high = (amount, high) if accuracy > most else (low, amount)
    raise SystemExit(f"no noise leaves {least:.0%} to {most:.0%}: {tried}")


def wrong() -> None:
    """Exchanged in the output alone, which the embedding otherwise shares."""
    model, tokenizer = load("embedded:teacher")
    model.config.tie_word_embeddings = False
    head = model.get_input_embeddings().weight.detach().clone()
    ids = [tokenizer.encode(word, add_special_tokens=False) for word in ROLES]
    if any(len(each) != 1 for each in ids):
        raise SystemExit(f"{ROLES} are not single tokens of this tokenizer")
    first, second = ids[0][0], ids[1][0]
    head[[first, second]] = head[[second, first]]
    model.lm_head.weight = torch.nn.Parameter(head)
    save(model, tokenizer, "wrong")


def sizes() -> None:
    """1, 2, 4 and 8 times the student's parameters."""
    student, tokenizer = load("embedded:student")
    config = copy.deepcopy(student.config)
    config.layer_types = None
    torch.manual_seed(0)
    for times in (1, 2, 4, 8):
        while True:
            made = AutoModelForCausalLM.from_config(type(config)(**config.to_dict()), dtype=torch.float32)
            if size(made) >= times * size(student):
                break
            config.num_hidden_layers += 1
        save(made, tokenizer, f"size-{times}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*AIMS, "wrong", "sizes"])
    parser.add_argument("--puzzles", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.what in AIMS:
        noisy_teacher(arguments.what, arguments.puzzles)
    else:
        {"wrong": wrong, "sizes": sizes}[arguments.what]()


if __name__ == "__main__":
    main()
