"""Files that are written over a long time, gone on with after an interruption, and removed when nobody wants them.

Beside such a file, one that ends in .reached tells how many rows it surely holds. Who works at it holds its lock.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from datamodels.lasso import files
from datamodels.train import UserError, WorkError

_MARKED_ROWS = 4096
"""Rows after which it is noted how far a pass has come."""


def reached(path: Path) -> int:
    """Rows that a half-made file surely holds."""
    mark = path.with_suffix(".reached")
    return int(mark.read_text()) if mark.exists() and path.exists() else 0


def mark(file: BinaryIO, path: Path, before: int, done: int, rows: int) -> None:
    """Note from time to time how many rows are in a file, once they are on the disk."""
    if done == rows or done // _MARKED_ROWS != before // _MARKED_ROWS:
        file.flush()
        os.fdatasync(file.fileno())
        with files.replacing(path.with_suffix(".reached")) as temporary:
            temporary.write_text(str(done))


def remove(path: Path) -> None:
    for file in (path, path.with_suffix(".reached")):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Work at a file that nobody else works at meanwhile; it stays only where an interruption ends that."""
    with files.writing(path):
        file = _lock(path)
    with file:
        try:
            yield
        except (UserError, WorkError):
            remove(path)
            raise
        remove(path)


def _lock(path: Path) -> BinaryIO:
    while True:
        file = open(path, "ab")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # who held it has removed it since


def remove_abandoned(folder: Path, pattern: str, keep: Path) -> None:
    """Remove the files of this pattern that nobody works at, but one."""
    for path in folder.glob(pattern):
        if path == keep:
            continue
        with contextlib.suppress(OSError), open(path, "ab") as file:  # held by another process, or removed by one
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
