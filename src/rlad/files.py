"""Files that are there in full or not at all, and files that processes are alone with."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from rlad.errors import RladError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

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


class FileLock:
    """Alone with a file, which is made where there is none, among all that ask for it so: until `release`, until this
    object is gone or until the process ends.

    Where the system, or the file system, has no such locks, nobody is kept out.
    Raises BlockingIOError where it is not to wait and somebody else has the file; OSError where it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], wait: bool = True) -> None:
        self.path = Path(path)
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        self._close = weakref.finalize(self, os.close, self._handle)
        try:
            if fcntl is not None:
                _flock(self._handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether it is not released, and the file is still at its path: its folder can be renamed or removed."""
        if not self._close.alive:
            return False
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self.path))
        except OSError:
            return False

    def release(self) -> None:
        """Let go; doing so again does nothing."""
        if self._close.alive:
            if fcntl is not None:  # closing alone would leave it to forked children, which have the file open too
                _flock(self._handle, fcntl.LOCK_UN)
            self._close()


def _flock(handle: int, flags: int) -> None:
    """fcntl.flock, where the file system has it. Raises BlockingIOError alone."""
    try:
        fcntl.flock(handle, flags)
    except BlockingIOError:
        raise
    except OSError:
        pass
