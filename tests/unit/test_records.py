"""Records: what is written comes back, and what is broken is named."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlad import __version__
from rlad.errors import RladError
from rlad.records import SCHEMAS, VERSION, Writer, part, parts, read, read_about, read_rows, write

ROLLOUT: dict[str, Any] = {
    "run": "r", "method": "rlad", "step": 3, "group": 1, "index": 2, "prompt": "<|user|>é", "prompt_tokens": [5, 6],
    "response": "ab", "tokens": [7, 8], "mask": [True, False], "logps": [-0.5, -1.25], "old_logps": [-0.5, -1.0],
    "teacher_logps": [-math.inf, -2.0], "log_ratio": [0.0, 0.5], "anchor": [-1.0, -2.0], "branch": [0, 1],
    "clipped_low": [False, False], "clipped_high": [False, True], "clamped": [True, False], "advantage": -1.5,
    "reward": 2.0, "reward_parts": {"format": 1.0, "answer": 1.0}, "extracted": None, "gold": "x", "correct": True,
    "explanation": "right", "stop": "stop", "dropped": False, "columns": '{"a": 1}',
}  # fmt: skip
RESPONSE: dict[str, Any] = {
    "task": "t", "split": "test", "problem": "ab", "order": 0, "difficulty": "2", "sample": 0, "seed": 2**63 - 1,
    "prompt": "[]", "response": "yes", "tokens": 4, "truncated": False, "value": 1.0, "correct": True,
    "explanation": "right", "example": "{}", "model": "m", "settings": "{}",
}  # fmt: skip
TRACE: dict[str, Any] = {
    "problem": "ab", "prompt": "[]", "response": "yes", "tokens": [1, 2], "teacher": "m", "settings": "{}", "sample": 0,
    "value": 1.0, "correct": True, "kept": False, "reason": "too long",
}  # fmt: skip
ROWS = {"rollout": ROLLOUT, "response": RESPONSE, "trace": TRACE}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_row_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.parquet"
    write(path, kind, [ROWS[kind], ROWS[kind]], {"command": "rlad x", "model": "m"})
    assert list(read_rows(path, kind)) == [{name: ROWS[kind].get(name) for name in SCHEMAS[kind].names}] * 2
    about = read_about(path)
    assert about["command"] == "rlad x" and about["rlad"] == __version__ and "created" in about
    assert (about["kind"], about["version"]) == (kind, VERSION)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.parquet"]
    assert oct(path.stat().st_mode & 0o777) == "0o644"


def test_any_reader_of_parquet_can_read_it(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", "rollout", [ROLLOUT])
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.metadata[b"rlad.schema_version"] == b"1" and table.schema.metadata[b"rlad.kind"] == b"rollout"
    assert (
        table["logps"].type == pa.list_(pa.field("element", pa.float32())) or table["logps"].type.value_type == "float"
    )
    assert table["branch"].to_pylist() == [[0, 1]]


def test_arrays_and_empty_responses(tmp_path: Path) -> None:
    row = {**ROLLOUT, "logps": np.array([-0.5, -1.25], dtype=np.float32), "mask": np.array([True, False])}
    empty = {name: [] if isinstance(value, list) else value for name, value in ROLLOUT.items()}
    write(tmp_path / "a.parquet", "rollout", [row, empty])
    first, second = read_rows(tmp_path / "a.parquet", "rollout")
    assert first["logps"] == [-0.5, -1.25] and second["tokens"] == [] == second["logps"]
    assert second["ref_logps"] is None
    write(tmp_path / "none.parquet", "rollout", [])
    assert list(read_rows(tmp_path / "none.parquet", "rollout")) == []


def test_columns_in_the_order_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", "response", [RESPONSE])
    assert read(tmp_path / "a.parquet", "response", ["value", "task"]).column_names == ["value", "task"]


def test_parts_of_a_folder(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "response", {"seed": 1})
    assert writer.append([RESPONSE]) == tmp_path / "part-000000.parquet"
    writer.append([{**RESPONSE, "sample": 12}], number=12)
    writer.append([{**RESPONSE, "sample": 13}])
    writer.append([{**RESPONSE, "sample": 99}], number=0)  # the same number again: in its place
    (tmp_path / ".part-000000.parquet.abc").write_bytes(b"half")  # what a kill leaves
    (tmp_path / "part-x.parquet").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("")
    assert list(parts(tmp_path)) == [0, 12, 13]
    assert [row["sample"] for row in read_rows(tmp_path, "response")] == [99, 12, 13]
    assert read(tmp_path, "response").num_rows == 3
    assert read_about(tmp_path)["seed"] == 1
    assert Writer(tmp_path, "response").append([RESPONSE]) == part(tmp_path, 14)  # a later process goes on


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"nonsense": 1}, "no column nonsense; it has run"),
        ({"reward": None}, "needs reward, and row 1 has none"),
        ({"reward": "much"}, "column reward of a rollout record must be double"),
        ({"tokens": [2**40, 1]}, "column tokens of a rollout record must be list"),
        ({"teacher_logps": [-1.0]}, "row 1 has 2 tokens and 1 values in teacher_logps"),
        ({"mask": [True] * 3}, "row 1 has 2 tokens and 3 values in mask"),
    ],
)
def test_rows_that_cannot_be_written(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(RladError, match=says):
        write(tmp_path / "a.parquet", "rollout", [ROLLOUT, {**ROLLOUT, **row}])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    write(path, "trace", [TRACE])
    before = path.read_bytes()

    def half(table: Any, file: Any, **_: Any) -> None:
        file.write(b"PAR1")
        raise OSError("the disk is full")

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(RladError, match=r"cannot write .*: the disk is full"):
        write(path, "trace", [TRACE, TRACE])
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["a.parquet"]


def marked(path: Path, table: Any, kind: str = "trace", version: str = "1") -> Path:
    pq.write_table(table.replace_schema_metadata({"rlad.kind": kind, "rlad.schema_version": version}), path)
    return path


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    good = tmp_path / "good.parquet"
    write(good, "trace", [TRACE])
    whole, table = good.read_bytes(), pq.read_table(good)
    bad = tmp_path / "bad.parquet"

    def refused(says: str, path: Path = bad) -> None:
        with pytest.raises(RladError, match=says):
            read(path, "trace")

    refused("there are no records at", tmp_path / "none")
    refused("has no records: no file part-", tmp_path)
    for content in (b"", b"PAR1", b"[1, 2]" * 100, whole[:-20], whole[: len(whole) // 2]):
        bad.write_bytes(content)
        refused("is not a whole Parquet file")
    bad.write_bytes(whole[:8] + bytes(200) + whole[208:])  # pages overwritten, the footer whole
    refused("cannot be read")
    pq.write_table(table.replace_schema_metadata(), bad)
    refused("has no records of rlad")
    refused("of kind rollout, not trace", marked(bad, table, "rollout"))
    refused("of version 2 and this rlad reads up to 1: upgrade", marked(bad, table, version="2"))
    refused("has no records of rlad", marked(bad, table, version="two"))
    refused("lacks the column value, kept", marked(bad, table.drop_columns(["kept", "value"])))
    nullable = table.drop_columns(["reason", "tokens"])  # these may be null
    assert list(read_rows(marked(bad, nullable), "trace")) == [
        {name: TRACE.get(name) if name not in ("reason", "tokens") else None for name in SCHEMAS["trace"].names}
    ]
    text = table.set_column(table.schema.get_field_index("value"), "value", pa.array(["much"]))
    refused("cannot be read", marked(bad, text))
    with pytest.raises(RladError, match=r"no kind of record 'x'; there are rollout"):
        read(good, "x")
    assert (
        read(marked(bad, table.append_column("later", pa.array([1]))), "trace").column_names == SCHEMAS["trace"].names
    )


def test_a_writer_that_is_killed_leaves_whole_parts(tmp_path: Path) -> None:
    """SIGKILL while parts are being written: every part that is there can be read, and holds what it should."""
    code = (
        "import sys\nfrom rlad.records import Writer\nfrom tests.unit.test_records import TRACE\n"
        "writer, i = Writer(sys.argv[1], 'trace'), 0\n"
        "while True:\n    writer.append([{**TRACE, 'sample': i}] * 2000)\n    i += 1\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while len(parts(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    found = parts(tmp_path)
    assert list(found) == list(range(len(found))) and len(found) >= 3
    table = read(tmp_path, "trace", ["sample"])
    assert table["sample"].to_pylist() == [i for i in found for _ in range(2000)]


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("logps", pa.array([[-1.0, -1.0]], pa.list_(pa.float32())), "row 0 has 3 tokens and 2 values in logps"),
        ("tokens", pa.array([[1, -1, 2]], pa.list_(pa.int32())), "tokens has an entry that is no token"),
        ("tokens", pa.array([[1, None, 2]], pa.list_(pa.int32())), "tokens has an entry that is no token"),
        (
            "reward_parts",
            pa.array([[("a", 1.0), ("a", 2.0)]], pa.map_(pa.string(), pa.float64())),
            "cannot be read: .*duplicate key",
        ),
    ],
)
def test_rollouts_that_contradict_themselves_are_refused(tmp_path: Path, column: str, value: Any, says: str) -> None:
    import made_runs  # not for the process that the test above starts

    path = tmp_path / "part-000001.parquet"
    write(path, "rollout", [made_runs.rollout(1, 0, 0, [-1.0] * 3)])
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, table.schema.field(column).with_type(value.type), value), path)
    with pytest.raises(RladError, match=says):
        list(read_rows(tmp_path, "rollout"))
