"""Files that are there in full or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rlad.errors import RladError

WRITABLE = ".writable"


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write into, beside `path`; it is moved there at the end, so no reader or crash ever meets half of it.

    Makes the folder. After an exception what stood at `path` stands there still. Raises RladError where it cannot be
    written. A device or a pipe, such as /dev/null, is written to as it is.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            with target.open("wb") as file:
                yield file
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp's files are for their owner alone
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RladError(f"cannot write {target}: {error}") from error


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise RladError where nothing could be written in the folder: now, and not after hours of training."""
    target = Path(folder)
    there = target.is_dir()
    with whole_file(target / WRITABLE):
        pass
    (target / WRITABLE).unlink(missing_ok=True)
    if not there:
        with suppress(OSError):  # somebody else has put something there meanwhile
            target.rmdir()
