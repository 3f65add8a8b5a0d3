"""Records: versioned Parquet files, the one thing that trainer, evaluation, distillation and report have in common.

Three kinds. `rollout`: what the trainer saw of one rollout, token by token. `response`: one sampled response of an
evaluation, with what it takes to score it again. `trace`: a teacher's response to train on. A file says in its
metadata which kind and version of the schema it holds, and how it was made. A folder of them holds numbered parts,
each of which is there in full or not at all, so that a run that is killed leaves everything it had finished.

Nothing that is read is run: Parquet holds numbers and text, and columns named "JSON" below are parsed as JSON alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlad import __version__
from rlad.errors import RladError
from rlad.files import whole_file

VERSION = 1
_KIND, _VERSION, _ABOUT = b"rlad.kind", b"rlad.schema_version", b"rlad.about"
_PART = re.compile(r"part-(\d{6,})\.parquet")
_BATCH = 256  # rows turned into Python objects at once

_TEXT, _WHOLE, _NUMBER, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_TOKENS, _NATS, _FLAGS, _BRANCH = (pa.list_(each) for each in (pa.int32(), pa.float32(), pa.bool_(), pa.int8()))
_PARTS = pa.map_(pa.string(), pa.float64())


def _schema(**fields: Any) -> Any:
    """A pyarrow schema; (type,) is a column that may be null or be left out."""
    return pa.schema(
        [
            pa.field(name, kind[0], nullable=True) if isinstance(kind, tuple) else pa.field(name, kind, nullable=False)
            for name, kind in fields.items()
        ]
    )


SCHEMAS: dict[str, Any] = {
    # One row for each rollout. Lists have one entry for each response token, in nats where they are log-probabilities.
    "rollout": _schema(
        run=_TEXT,  # which run
        method=_TEXT,  # its name in rlad.objectives.METHODS
        step=_WHOLE,  # the first update on its generation
        group=_WHOLE,  # of the step: rollouts of one prompt
        index=_WHOLE,  # of the group
        task=(_TEXT,),
        difficulty=(_TEXT,),
        prompt=_TEXT,  # as the student read it, special tokens included
        prompt_tokens=_TOKENS,
        response=_TEXT,
        tokens=_TOKENS,  # of the response
        mask=_FLAGS,  # whether the token counts
        logps=(_NATS,),  # log-probability under the student now
        old_logps=(_NATS,),  # under the student that sampled it
        teacher_logps=(_NATS,),
        ref_logps=(_NATS,),
        log_ratio=(_NATS,),  # log rho, of the method
        anchor=(_NATS,),  # alpha old + (1 - alpha) teacher
        branch=(_BRANCH,),  # which term of the min won: 0 the ratio's, 1 the clipped ratio's
        clipped_low=(_FLAGS,),
        clipped_high=(_FLAGS,),
        clamped=(_FLAGS,),
        entropy=(_NATS,),  # of the student's distribution
        weight=(_NUMBER,),  # what the loss multiplies the objective of each of its tokens by, over the whole update
        advantage=_NUMBER,
        reward=_NUMBER,
        reward_parts=(_PARTS,),  # by reward function
        extracted=(_TEXT,),
        gold=(_TEXT,),
        correct=(_FLAG,),
        explanation=(_TEXT,),
        stop=_TEXT,  # "stop" (it ended) or "length" (it was cut off)
        dropped=_FLAG,  # whether it took no part in the update
        reason=(_TEXT,),  # why it was dropped
        kept_why=(_TEXT,),  # why it was recorded
        columns=(_TEXT,),  # JSON: the task's columns of the example
    ),
    # One row for each response of an evaluation.
    "response": _schema(
        task=_TEXT,
        split=(_TEXT,),
        problem=_TEXT,  # rlad.evaluation.problem_id: stands for the prompt
        order=_WHOLE,  # the problem's place in the evaluation
        difficulty=_TEXT,  # the row of the table it counts in
        sample=_WHOLE,
        seed=(_WHOLE,),  # what this draw was made from
        prompt=_TEXT,  # JSON: the messages
        response=_TEXT,
        tokens=(_WHOLE,),  # how many, the end of sequence included
        truncated=(_FLAG,),
        value=_NUMBER,
        correct=_FLAG,
        extracted=(_TEXT,),
        explanation=_TEXT,
        format_ok=(_FLAG,),
        example=_TEXT,  # JSON: all columns of the example, so that it can be scored again
        model=_TEXT,
        revision=(_TEXT,),
        command=(_TEXT,),
        settings=_TEXT,  # JSON
    ),
    # One row for each response of a teacher.
    "trace": _schema(
        task=(_TEXT,),
        problem=_TEXT,
        difficulty=(_TEXT,),
        prompt=_TEXT,  # JSON: the messages
        response=_TEXT,
        tokens=(_TOKENS,),
        length=(_WHOLE,),  # how many tokens were generated, the end of sequence included
        truncated=(_FLAG,),
        teacher=_TEXT,
        revision=(_TEXT,),
        settings=_TEXT,  # JSON: how it was sampled
        seed=(_WHOLE,),
        sample=_WHOLE,
        value=_NUMBER,
        correct=_FLAG,
        extracted=(_TEXT,),
        kept=_FLAG,  # whether it is trained on
        reason=(_TEXT,),  # why not
        example=(_TEXT,),  # JSON: all columns of the example
    ),
}

_PER_TOKEN = ("mask logps old_logps teacher_logps ref_logps log_ratio anchor branch clipped_low clipped_high "
              "clamped entropy").split()  # fmt: skip


def write(
    path: str | os.PathLike[str], kind: str, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any] | None = None
) -> None:
    """Write rows to one Parquet file, which is there in full or not at all. Makes its folder.

    rows: one mapping for each; a column that may be null may be left out. Lists may be numpy arrays.
    about: how they were made (command, model, revision, ...): JSON values, kept in the file's metadata, where the
        version of rlad and the time are added.
    Raises RladError for a column that is unknown, missing or of another type, for per-token lists of different lengths,
    and for a file that cannot be written.
    """
    table = _table(kind, rows)
    entries = {"rlad": __version__, "created": datetime.now(UTC).isoformat(timespec="seconds"), **(about or {})}
    marks = {_KIND: kind, _VERSION: str(VERSION), _ABOUT: json.dumps(entries)}
    table = table.replace_schema_metadata(marks)
    with whole_file(path) as file:
        pq.write_table(table, file, compression="zstd")


def part(folder: str | os.PathLike[str], number: int) -> Path:
    """The path of a folder's part of this number."""
    return Path(folder) / f"part-{number:06d}.parquet"


def parts(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """The parts of a folder by their numbers, in order. Temporary and other files are none of them."""
    found = {
        int(match[1]): path
        for path in Path(folder).glob("part-*.parquet")
        if (match := _PART.fullmatch(path.name)) and path.is_file()
    }
    return dict(sorted(found.items()))


class Writer:
    """Appends parts to a folder.

    A part that is written under the number of another takes its place: number parts by what they hold (a step, a
    problem), and a run that does something again after a kill leaves nothing twice. One process writes to a folder.
    """

    def __init__(self, folder: str | os.PathLike[str], kind: str, about: Mapping[str, Any] | None = None) -> None:
        _known(kind)
        self.folder, self.kind, self.about = Path(folder), kind, dict(about or {})
        self._next = max(parts(self.folder), default=-1) + 1

    def append(self, rows: Sequence[Mapping[str, Any]], number: int | None = None) -> Path:
        """Write rows as one part, by default after the last one, and return its path."""
        number = self._next if number is None else number
        target = part(self.folder, number)
        write(target, self.kind, rows, self.about)
        self._next = max(self._next, number + 1)
        return target


def read(path: str | os.PathLike[str], kind: str, columns: Sequence[str] | None = None) -> Any:
    """A pyarrow.Table of a file's rows, or of all parts of a folder: the columns of the schema, or those named.

    A column that may be null is null where a file has none of that name.
    Raises RladError for what is not there, is not Parquet, is of another kind or a newer version, or lacks a column.
    """
    return pa.concat_tables([_read_one(each, kind, columns) for each in _files(path)])


def read_rows(
    path: str | os.PathLike[str], kind: str, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows that `read` reads, one mapping after the other; no more than one part is in memory."""
    for each in _files(path):
        for batch in _read_one(each, kind, columns).to_batches(max_chunksize=_BATCH):
            try:
                rows = batch.to_pylist(maps_as_pydicts="strict")
            except (KeyError, ValueError) as error:  # a key of a map twice, or bytes that are no UTF-8
                raise RladError(f"{each} cannot be read: {' '.join(str(error).split())}") from None
            yield from rows


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """How a file, or the first part of a folder, was made: `about`, rlad's version, when, and its kind and version."""
    file = _files(path)[0]
    marks = _open(file).schema_arrow.metadata or {}
    kind, version = _marks(file, marks)
    try:
        about = json.loads(marks[_ABOUT])
    except (KeyError, ValueError):
        about = {}
    return (
        {**about, "kind": kind, "version": version} if isinstance(about, dict) else {"kind": kind, "version": version}
    )


def _known(kind: str) -> Any:
    if kind not in SCHEMAS:
        raise RladError(f"there is no kind of record {kind!r}; there are {', '.join(SCHEMAS)}")
    return SCHEMAS[kind]


def _table(kind: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    schema = _known(kind)
    unknown = sorted({name for row in rows for name in row} - set(schema.names))
    if unknown:
        raise RladError(f"a {kind} record has no column {', '.join(unknown)}; it has {', '.join(schema.names)}")
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if not field.nullable and any(value is None for value in values):
            raise RladError(f"a {kind} record needs {field.name}, and row {values.index(None)} has none")
        if pa.types.is_map(field.type):
            values = [value if value is None else list(value.items()) for value in values]
        if field.type == _TEXT:
            values = [_in_utf8(value) for value in values]
        try:
            arrays.append(pa.array(values, type=field.type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise RladError(f"column {field.name} of a {kind} record must be {field.type}: {error}") from None
    table = pa.Table.from_arrays(arrays, schema=schema)
    if kind == "rollout":
        _check_lengths(table)
    return table


def _in_utf8(value: Any) -> Any:
    """A text with "?" for each lone surrogate, which JSON and command lines can hold and Parquet cannot."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) and not value.isascii() else value


def _check_lengths(table: Any) -> None:
    """A list that is one token short would put every value beside the wrong token, without a word. Of the columns that
    are there."""
    if "tokens" not in table.column_names:
        return
    for name in {"tokens", "prompt_tokens"} & {*table.column_names}:
        numbers = pc.list_flatten(table[name])
        if numbers.null_count or pc.any(pc.less(numbers, 0)).as_py():
            raise RladError(f"{name} has an entry that is no token")
    lengths = pc.list_value_length(table["tokens"])
    for name in [each for each in _PER_TOKEN if each in table.column_names]:
        other = pc.list_value_length(table[name])  # null where the list is
        if pc.any(pc.not_equal(lengths, other)).as_py():
            row = pc.index(pc.not_equal(lengths, other), True).as_py()
            raise RladError(f"row {row} has {lengths[row]} tokens and {other[row]} values in {name}")


def _files(path: str | os.PathLike[str]) -> list[Path]:
    target = Path(path)
    if not target.is_dir():
        return [target]
    found = list(parts(target).values())
    if not found:
        raise RladError(f"{target} has no records: no file part-*.parquet")
    return found


def _open(path: Path) -> Any:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise RladError(f"there are no records at {path}") from None
    except (pa.ArrowException, OSError) as error:
        raise RladError(f"{path} is not a whole Parquet file: {' '.join(str(error).split())}") from None


def _marks(path: Path, marks: Mapping[bytes, bytes]) -> tuple[str, int]:
    try:
        return marks[_KIND].decode(), int(marks[_VERSION])
    except (KeyError, ValueError):
        raise RladError(f"{path} is a Parquet file, but has no records of rlad") from None


def _read_one(path: Path, kind: str, columns: Sequence[str] | None) -> Any:
    schema = _known(kind)
    with _open(path) as file:
        found, version = _marks(path, file.schema_arrow.metadata or {})
        if found != kind:
            raise RladError(f"{path} holds records of kind {found}, not {kind}")
        if version > VERSION:
            raise RladError(f"{path} is of version {version} and this rlad reads up to {VERSION}: upgrade rlad")
        wanted = [schema.field(name) for name in columns or schema.names]
        absent = [field for field in wanted if field.name not in file.schema_arrow.names]
        missing = [field.name for field in absent if not field.nullable]
        if missing:
            raise RladError(f"{path} lacks the column {', '.join(missing)} of {kind} records")
        try:
            table = file.read(columns=[field.name for field in wanted])
            for field in absent:  # one that may be left out was, or came later than the file
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
            # Parquet keeps the order of the file, not that of the call; casting also refuses other types.
            table = table.select([field.name for field in wanted]).replace_schema_metadata().cast(pa.schema(wanted))
            if kind == "rollout":
                _check_lengths(table)
            return table
        except (pa.ArrowException, OSError, ValueError, RladError) as error:
            raise RladError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
