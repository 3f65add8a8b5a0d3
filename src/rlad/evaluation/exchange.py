"""Responses that were made elsewhere, and samples as lm-evaluation-harness writes them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlad.errors import RladError
from rlad.evaluation.generate import Place
from rlad.evaluation.problems import problem_id
from rlad.files import whole_file
from rlad.tasks.base import Example, gold
from rlad.tasks.custom import read_json_lines

TEXTS = ("response", "responses", "resps")
NAMES = ("problem", "prompt", "index", "doc_id", "order")
SHOWN = 5  # of what is missing or unknown


@dataclass(frozen=True)
class Given:
    """A response from a file: see `rlad.evaluation.generate.Response`; None is not known."""

    text: str
    tokens: int | None = None
    truncated: bool | None = None


def read_responses(path: str | os.PathLike[str], examples: Sequence[Example]) -> dict[Place, Given]:
    """Responses to the examples from a file: JSON Lines, Parquet, or a file or folder of our response records.

    Each row names its problem by `problem` (rlad.evaluation.problem_id), by `prompt` (its messages, or the content of
    the last one), or by its place in the evaluation, `index`, `order` or lm-eval's `doc_id`, from 0; and has `response`
    (one text), `responses` (a list) or lm-eval's `resps`. `tokens` and `truncated` (or `finish_reason`) may stand
    beside: one value, or a list like `responses`. Rows of one problem are its samples, in the order of the file.

    Raises RladError for a row that cannot be read or placed, for a sample that is null, and where a problem has no
    response.
    """
    index = _Index(examples)
    found: dict[Place, Given] = {}
    counts = [0] * len(examples)
    for where, row in _rows(Path(path)):
        i = index.place(row, where)
        for given in _given(row, where):
            found[i, counts[i]] = given
            counts[i] += 1
    missing = [f"{i} ({problem_id(examples[i])})" for i, count in enumerate(counts) if not count]
    if missing:
        raise RladError(
            f"{path} has no response to {len(missing)} of {len(examples)} problems: {_listed(missing)}; ask for the "
            "problems that it answers (--split, --puzzles, --people)"
        )
    return found


def digest(responses: Mapping[Place, Given]) -> str:
    """16 hexadecimal digits that stand for responses and what is known of them, whatever kind of file they are from."""
    rows = [[*place, given.text, given.tokens, given.truncated] for place, given in sorted(responses.items())]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


class _Index:
    """Where a problem stands, by any of its names."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.size = len(examples)
        self.by_id: dict[str, list[int]] = {}
        self.by_text: dict[str, list[int]] = {}
        for i, example in enumerate(examples):
            self.by_id.setdefault(problem_id(example), []).append(i)
            self.by_text.setdefault(example["prompt"][-1]["content"], []).append(i)

    def place(self, row: Mapping[str, Any], where: str) -> int:
        """The place of a row's problem. A number alone is taken at its word; beside an id or a prompt it only tells
        problems with the same prompt apart."""
        places = self._named(row)
        number = next((row[name] for name in ("order", "index", "doc_id") if type(row.get(name)) is int), None)
        if places is None and number is None:
            raise RladError(f"{where} names no problem: it needs one of {', '.join(NAMES)}")
        if number is not None and (places is None or (len(places) > 1 and number in places)):
            places = [number] if 0 <= number < self.size else []
        if not places:  # None cannot be: there is a number then
            raise RladError(f"{where}: its problem is none of the {self.size} problems of this task and split")
        if len(places) > 1:
            raise RladError(f"{where}: {len(places)} problems have this prompt; say which with `index`, from 0")
        return places[0]

    def _named(self, row: Mapping[str, Any]) -> list[int] | None:
        if isinstance(row.get("problem"), str):
            return self.by_id.get(row["problem"], [])
        doc = row.get("doc")  # lm-eval's; in those that we export it is the example
        prompt = row.get("prompt", doc.get("prompt") if isinstance(doc, dict) else None)
        if isinstance(prompt, str) and prompt in self.by_text:
            return self.by_text[prompt]
        if isinstance(prompt, str):
            try:
                prompt = json.loads(prompt)  # messages as our records keep them
            except (ValueError, RecursionError):
                return []
        return self.by_id.get(problem_id({"prompt": prompt}), []) if isinstance(prompt, list) else None


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.exists():
        raise RladError(f"there is no file of responses {path}")
    if path.is_dir():
        from rlad.records import read_rows

        rows: Iterable[Any] = _in_order(read_rows(path, "response"))
    elif path.suffix == ".parquet":
        rows = _in_order(_parquet(path))
    else:
        for number, row in read_json_lines(path):
            yield f"line {number} of {path}", row
        return
    for number, row in enumerate(rows):
        yield f"row {number} of {path}", row


def _in_order(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records come in the order in which batches were finished; their samples have numbers."""
    return sorted(rows, key=lambda row: row["sample"] if isinstance(row.get("sample"), int) else 0)


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name in {*TEXTS, *NAMES, "sample", *_BESIDE}]
            for batch in file.iter_batches(columns=names):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RladError(f"{path} is not a whole Parquet file: {' '.join(str(error).split())}") from None


_BESIDE = ("tokens", "truncated", "finish_reason")


def _given(row: Mapping[str, Any], where: str) -> list[Given]:
    name = next((name for name in TEXTS if row.get(name) is not None), None)
    texts = [] if name is None else list(_flat(row[name]))
    if None in texts:  # to leave it out would raise the accuracy
        raise RladError(
            f"{where}: number {texts.index(None)} of `{name}`, counted from 0, is null: give every sample its text, an "
            "empty one where there was none"
        )
    if not texts or not all(isinstance(text, str) for text in texts):
        raise RladError(f"{where} has no response: it needs a text in `response`, or a list of them in `responses`")
    tokens, cut, reasons = (_beside(row, name, len(texts), where) for name in _BESIDE)
    cut = [
        reason == "length" if c is None and reason is not None else c for c, reason in zip(cut, reasons, strict=True)
    ]
    return [Given(*each) for each in zip(texts, tokens, cut, strict=True)]


def _flat(value: Any) -> Iterator[Any]:
    """lm-eval has a list of responses for each request of a problem."""
    if isinstance(value, list):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def _beside(row: Mapping[str, Any], name: str, size: int, where: str) -> list[Any]:
    value = row.get(name)
    values = value if isinstance(value, list) else [value] * (size if value is None else 1)
    kinds = {"tokens": int, "truncated": bool, "finish_reason": str}
    if len(values) != size or not all(each is None or type(each) is kinds[name] for each in values):
        raise RladError(
            f"{where}: {name} must be {kinds[name].__name__}, one for each of its {size} responses, not {value!r:.80}"
        )
    return values


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def export_lm_eval(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write response records as lm-evaluation-harness writes its samples: JSON Lines, one line for each problem.

    The fields are those of lm-eval 0.4.13 (evaluator.py, EvaluationTracker.save_results_samples): doc_id, doc, target,
    arguments, resps, filtered_resps, filter, metrics, the three hashes, and a field for each metric. `acc` is the mean
    over samples, `pass` whether any is right, `reward` the mean value. Messages are written as JSON, as lm-eval does.
    """
    problems: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        problems.setdefault(row["order"], []).append(row)
    with whole_file(path) as file:
        for order in sorted(problems):
            sample = _lm_eval_sample(order, sorted(problems[order], key=lambda row: row["sample"]))
            file.write((json.dumps(sample, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def _lm_eval_sample(order: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    doc, settings = json.loads(rows[0]["example"]), json.loads(rows[0]["settings"])
    target = gold(doc) or ""
    prompt = json.dumps(json.loads(rows[0]["prompt"]), ensure_ascii=False) + settings.get("append", "")
    generation = {
        "until": [],
        "do_sample": settings.get("temperature", 0) > 0,
        "temperature": settings.get("temperature"),
        "top_p": settings.get("top_p"),
        "max_gen_toks": settings.get("max_new_tokens"),
    }
    metrics = {
        "acc": math.fsum(row["correct"] for row in rows) / len(rows),
        "pass": float(any(row["correct"] for row in rows)),
        "reward": math.fsum(row["value"] for row in rows) / len(rows),
    }
    return {
        "doc_id": order,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": generation}},
        "resps": [[row["response"] for row in rows]],
        "filtered_resps": [[row["extracted"] or "" for row in rows]],
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(target),
        **metrics,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
