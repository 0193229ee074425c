"""Leases on groups of rows: locks on single bytes of one file, which end with their process.

They are open-file-description locks on Linux, which belong to the open file and not to the process, and POSIX locks
elsewhere. On a file system without locks, work goes on without them: the store's checksums and generations still decide
what counts. This is tried once, when the file is opened; if the system runs out of locks later, leases are refused.
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
"""The byte whose lock is that of the store as a whole; the lock of group g is on byte g."""

_PROBE_OFFSET = 2**62 + 1
"""A byte that is locked only to find out whether locks work."""

_SET = getattr(fcntl, "F_OFD_SETLK", fcntl.F_SETLK)


class LockFile:
    """A file of which each byte can be locked by one process at a time."""

    def __init__(self, path: Path, flags: int = 0) -> None:
        """Open the file, created if it does not exist, with further `flags` of os.open. Raises OSError."""
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
        """Return whether the file system has locks. Raises OSError."""
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
        """Try once to lock one byte; return False where another holds it, or where the system has no more locks.

        A byte may be locked again by the one who holds it. Raises OSError.
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
        """Return whether the file is still at its path, where others open it."""
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
    """Lock a store as a whole, waiting up to `patience` seconds for another process. Raises UserError, OSError."""
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
