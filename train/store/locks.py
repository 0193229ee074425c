"""Leases on groups of rows: byte ranges of one lock file, so that they end with their process.

Open-file-description locks (Linux) belong to the open file and not to the process; elsewhere POSIX locks serve. Where a
file system has no locks at all, work goes on without: the store's checksums and generations still decide what counts.
Whether it has is asked once, when the file is opened: a lock table that is full later on is no reason to do without.
"""

import contextlib
import errno
import fcntl
import functools
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from datamodels.train.errors import UserError

STORE_OFFSET = 2**62
"""The byte whose lock covers the store as a whole; group g is the byte g."""

_PROBE_OFFSET = 2**62 + 1
"""A byte that nobody holds for longer than it takes to see whether locks work."""

_SET = getattr(fcntl, "F_OFD_SETLK", fcntl.F_SETLK)


class LockFile:
    def __init__(self, path: Path, flags: int = 0) -> None:
        """Open (and create) the lock file. Raises OSError."""
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o666)
        try:
            self.works = self._probe()
        except OSError:
            os.close(self.fd)
            raise
        if not self.works:
            _tell_once(f"{path.parent} has no file locks: processes there may do the same rows")

    def _probe(self) -> bool:
        """Whether the file system has locks. Raises OSError."""
        try:
            self._set(fcntl.F_WRLCK, _PROBE_OFFSET)
            self._set(fcntl.F_UNLCK, _PROBE_OFFSET)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                return False
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
        return True

    def acquire(self, offset: int) -> bool:
        """Try to lock one byte, at once; False where another holds it, or where no more locks can be had.

        Locking it again is fine. Raises OSError.
        """
        if not self.works:
            return True
        try:
            self._set(fcntl.F_WRLCK, offset)
        except OSError as error:
            if error.errno == errno.ENOLCK:
                _tell_once(f"{self.path}: no more locks can be had at present, what needs one waits")
                return False
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def release(self, offset: int) -> None:
        if self.works:
            self._set(fcntl.F_UNLCK, offset)

    def _set(self, kind: int, offset: int) -> None:
        flock = struct.pack("hhqqi4x", kind, os.SEEK_SET, offset, 1, 0)
        fcntl.fcntl(self.fd, _SET, flock)

    def is_current(self) -> bool:
        """Whether the file still lies where others look for it."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.fd), os.stat(self.path))
        return False

    def close(self) -> None:
        os.close(self.fd)


@functools.cache
def _tell_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def store_lock(path: Path, patience: float = 60.0) -> Iterator[LockFile]:
    """Hold a store as a whole, waiting up to `patience` seconds for another process. Raises UserError, OSError."""
    deadline = time.monotonic() + patience
    while True:
        lock = LockFile(path)
        if lock.acquire(STORE_OFFSET) and lock.is_current():
            break
        lock.close()
        if time.monotonic() > deadline:
            raise UserError(f"{path} is held by another process that creates or grows this store")
        time.sleep(0.05)
    try:
        yield lock
    finally:
        lock.close()
