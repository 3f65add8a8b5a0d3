"""Files of responses that were made elsewhere, and lm-eval's samples."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlad.errors import RladError
from rlad.evaluation.exchange import Given, export_lm_eval, read_responses
from rlad.evaluation.problems import problem_id


def example(text: str) -> dict[str, Any]:
    return {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": text}], "difficulty": 2}


EXAMPLES = [example("one"), example("two"), example("one")]  # the first and the last are the same prompt
TWO = {"index": 1, "response": "b"}
REST = [{"index": 0, "response": "a"}, {"index": 2, "response": "c"}]


def lines(folder: Path, *rows: Any) -> Path:
    path = folder / "responses.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", "utf-8")
    return path


@pytest.mark.parametrize(
    "name",
    [
        {"index": 1},
        {"doc_id": 1},
        {"order": 1},
        {"problem": problem_id(EXAMPLES[1])},
        {"prompt": "two"},
        {"prompt": EXAMPLES[1]["prompt"]},
        {"prompt": json.dumps(EXAMPLES[1]["prompt"])},
        {"doc": EXAMPLES[1], "doc_id": 7},  # by its prompt: the file was of another choice of problems
        {"problem": problem_id(EXAMPLES[1]), "order": 0},
    ],
)
def test_a_problem_by_each_of_its_names(name: dict[str, Any], tmp_path: Path) -> None:
    found = read_responses(lines(tmp_path, *REST, {**name, "response": "b"}), EXAMPLES)
    assert found == {(0, 0): Given("a"), (1, 0): Given("b"), (2, 0): Given("c")}


def test_equal_prompts_are_told_apart_by_a_number(tmp_path: Path) -> None:
    rows = [{"prompt": "one", "index": 2, "response": "c"}, {"prompt": "one", "index": 0, "response": "a"}, TWO]
    assert read_responses(lines(tmp_path, *rows), EXAMPLES)[0, 0] == Given("a")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"responses": ["b", "c"]}, [Given("b"), Given("c")]),
        ({"resps": [["b", "c"]]}, [Given("b"), Given("c")]),
        ({"resps": [["b"], ["c"]]}, [Given("b"), Given("c")]),
        ({"response": "b", "tokens": 3, "truncated": True}, [Given("b", 3, True)]),
        ({"responses": ["b", "c"], "tokens": [3, 4], "truncated": [True, None]}, [Given("b", 3, True), Given("c", 4)]),
        ({"response": "b", "finish_reason": "length"}, [Given("b", None, True)]),
        ({"responses": ["b", "c"], "finish_reason": ["stop", None]}, [Given("b", None, False), Given("c")]),
        ({"response": ""}, [Given("")]),
        ({"response": None, "responses": ["b", ""]}, [Given("b"), Given("")]),
    ],
)  # fmt: skip
def test_responses_and_what_stands_beside_them(row: dict[str, Any], expected: list[Given], tmp_path: Path) -> None:
    found = read_responses(lines(tmp_path, *REST, "", {"index": 1, **row}), EXAMPLES)
    assert [found[1, j] for j in range(len(found) - 2)] == expected


def test_rows_of_one_problem_are_its_samples(tmp_path: Path) -> None:
    found = read_responses(lines(tmp_path, TWO, *REST, {"prompt": "two", "response": "d"}), EXAMPLES)
    assert [found[1, j].text for j in range(2)] == ["b", "d"]


def test_parquet_of_any_kind(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"extra": 1.5, **row, "finish_reason": "stop"} for row in (TWO, *REST)])
    pq.write_table(table, tmp_path / "r.parquet")
    assert read_responses(tmp_path / "r.parquet", EXAMPLES)[1, 0] == Given("b", None, False)
    samples = [{**TWO, "sample": 1, "response": "later"}, {**TWO, "sample": 0}, *({**row, "sample": 0} for row in REST)]
    pq.write_table(pa.Table.from_pylist(samples), tmp_path / "r.parquet")  # our records come as batches were finished
    assert [read_responses(tmp_path / "r.parquet", EXAMPLES)[1, j].text for j in range(2)] == ["b", "later"]
    (tmp_path / "r.parquet").write_bytes(b"PAR1")
    with pytest.raises(RladError, match="not a whole Parquet file"):
        read_responses(tmp_path / "r.parquet", EXAMPLES)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "r.*, line 3: is not JSON"),
        ("[1]", "r.*, line 3: must be a JSON object, not list"),
        ("[" * 100_000, "r.*, line 3: is not JSON"),
        ({"response": "x"}, "line 3 of .* names no problem: it needs one of problem, prompt, index"),
        ({"index": True, "response": "x"}, "names no problem"),
        ({"index": 3, "response": "x"}, "is none of the 3 problems"),
        ({"index": -1, "response": "x"}, "is none of the 3 problems"),
        ({"problem": "ab", "response": "x"}, "is none of the 3 problems"),
        ({"prompt": "three", "response": "x"}, "is none of the 3 problems"),
        ({"prompt": "one", "response": "x"}, "2 problems have this prompt; say which with `index`"),
        ({"index": 1}, "has no response"),
        ({"index": 1, "response": 5}, "has no response"),
        ({"index": 1, "responses": []}, "has no response"),
        ({"index": 1, "responses": ["a", "b"], "tokens": [1]}, "tokens must be int, one for each of its 2 responses"),
        ({"index": 1, "response": "a", "truncated": "no"}, "truncated must be bool"),
        (
            {"index": 1, "responses": ["a", None]},
            r"^line 3 of .*: number 1 of `responses`, counted from 0, is null: give",
        ),
        ({"index": 1, "resps": [["a", "b"], [None]]}, "number 2 of `resps`, counted from 0, is null"),
        ({"index": 1, "responses": [None]}, "number 0 of `responses`"),
        (  # the list beside it is as long as it should be
            {"index": 1, "responses": ["a", None, "b"], "finish_reason": ["stop", "length", "stop"]},
            "number 1 of `responses`, counted from 0, is null",
        ),
        (
            {"index": 1, "responses": ["a", "b"], "finish_reason": ["stop"]},
            r"finish_reason must be str, one for each of its 2 responses, not \['stop'\]",
        ),
    ],
)
def test_rows_that_cannot_be_read(row: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(RladError, match=says):
        read_responses(lines(tmp_path, *REST, row), EXAMPLES)


def test_problems_without_a_response_are_named(tmp_path: Path) -> None:
    with pytest.raises(RladError, match=rf"no response to 1 of 3 problems: 1 \({problem_id(EXAMPLES[1])}\); ask for"):
        read_responses(lines(tmp_path, *REST), EXAMPLES)
    many = [example(str(i)) for i in range(9)]
    with pytest.raises(RladError, match=r"no response to 8 of 9 problems: 0 .*, 5 \(\w+\) and 3 more"):
        read_responses(lines(tmp_path, TWO), many)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RladError, match="cannot read"):
        read_responses(tmp_path / "bytes.jsonl", EXAMPLES)


def record(order: int, sample: int, correct: bool, text: str) -> dict[str, Any]:
    doc = {**EXAMPLES[order], "answer": ["42"] if order else "42"}
    return {
        "order": order, "sample": sample, "response": text, "correct": correct, "value": 3.0 * correct - 1,
        "extracted": "42" if correct else None, "example": json.dumps(doc), "prompt": json.dumps(doc["prompt"]),
        "settings": json.dumps({"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 9, "append": "<think>"}),
    }  # fmt: skip


def test_an_export_has_the_fields_of_lm_eval(tmp_path: Path) -> None:
    rows = [record(1, 1, True, "é 42"), record(0, 0, False, "x"), record(1, 0, False, "y"), record(0, 1, False, "z")]
    export_lm_eval(tmp_path / "samples.jsonl", rows)
    first, second = map(json.loads, (tmp_path / "samples.jsonl").read_text("utf-8").splitlines())
    # lm-eval 0.4.13, evaluator.py: the fields of `example`, then those of the metrics
    fields = "doc_id doc target arguments resps filtered_resps filter metrics doc_hash prompt_hash target_hash".split()
    assert list(second) == [*fields, "acc", "pass", "reward"] and second["metrics"] == ["acc", "pass", "reward"]
    assert (first["doc_id"], second["doc_id"]) == (0, 1)
    assert second["resps"] == [["y", "é 42"]] and second["filtered_resps"] == [["", "42"]]
    assert (second["acc"], second["pass"], second["reward"]) == (0.5, 1.0, 0.5)
    assert (first["acc"], first["pass"], first["reward"]) == (0.0, 0.0, -1.0)
    assert first["target"] == second["target"] == "42" and second["doc"]["answer"] == ["42"]
    request = second["arguments"]["gen_args_0"]
    assert request["arg_0"] == json.dumps(EXAMPLES[1]["prompt"]) + "<think>"
    assert request["arg_1"]["temperature"] == 0.6 and request["arg_1"]["max_gen_toks"] == 9
    assert second["target_hash"] == hashlib.sha256(b"42").hexdigest()
    assert second["prompt_hash"] == hashlib.sha256(request["arg_0"].encode()).hexdigest()
    again = read_responses(tmp_path / "samples.jsonl", [{**EXAMPLES[0]}, {**EXAMPLES[1]}])
    assert again[1, 1].text == "é 42"


def test_the_target_of_a_puzzle_is_its_peoples_roles(tmp_path: Path) -> None:
    row = record(0, 0, True, "x")
    row["example"] = json.dumps({**EXAMPLES[0], "names": ["Zoey", "Bob"], "solution": [True, False]})
    export_lm_eval(tmp_path / "samples.jsonl", [row])
    assert json.loads((tmp_path / "samples.jsonl").read_text())["target"] == "Zoey is a knight, Bob is a knave"


def test_a_prompt_of_brackets_is_no_problem_of_the_task(tmp_path: Path) -> None:
    with pytest.raises(RladError, match="its problem is none of the 3 problems"):
        read_responses(lines(tmp_path, {"prompt": "[" * 100_000, "response": "a"}), EXAMPLES)


def test_parquet_with_bytes_that_are_no_text(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    table = pa.table({"index": [0], "response": text})
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(RladError, match="is not a whole Parquet file"):
        read_responses(tmp_path / "bad.parquet", EXAMPLES)
