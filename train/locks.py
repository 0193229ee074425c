"""Leases on groups of rows: byte ranges of one lock file, so that they end with their process.

Open-file-description locks (Linux) belong to the open file and not to the process; elsewhere POSIX locks serve. Where a
file system has no locks at all, work goes on without: the store's checksums and generations still decide what counts.
"""

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from train.errors import UserError

STORE_OFFSET = 2**62
"""The byte whose lock covers the store as a whole; group g is the byte g."""

_SET = getattr(fcntl, "F_OFD_SETLK", fcntl.F_SETLK)


class LockFile:
    def __init__(self, path: Path, flags: int = 0) -> None:
        """Open (and create) the lock file. Raises OSError."""
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o666)
        self.works = True

    def acquire(self, offset: int) -> bool:
        """Try to lock one byte, at once; False where another holds it. Locking it again is fine. Raises OSError."""
        if not self.works:
            return True
        try:
            self._set(fcntl.F_WRLCK, offset)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                self.works = False
                return True
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
