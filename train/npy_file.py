"""Preallocated .npy files that are written with pwrite and read by anyone with np.load.

The header is padded to 4,096 bytes, so that rows whose sizes add up to whole pages begin and end on pages.
"""

import contextlib
import ctypes
import errno
import os
import re
import secrets
import sys
import tokenize
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.train.errors import UserError, WorkError

HEADER_BYTES = 4096

Notice = Callable[[str], None]

_POINTER = b"version https://git-lfs"

_PIECE = 8 << 20
"""Bytes that are written at a time, and read back."""


def header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Return a version 1.0 header of the .npy format (NumPy enhancement proposal 1), padded with spaces."""
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    length = HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + repr(described).encode().ljust(length - 1) + b"\n"


def headed_shape(written: bytes, dtype: np.dtype) -> tuple[int, ...]:
    """Return the shape that `header` wrote; () for other content."""
    found = re.search(rb"'shape': \(([\d, ]{1,99})\)", written)
    shape = tuple(int(length) for length in re.findall(rb"\d+", found[1])) if found else ()
    return shape if written == header(shape, dtype) else ()


def mapped(path: Path) -> np.memmap:
    """Return the array in a .npy file of any version, mapped copy-on-write.

    Torch warns of arrays that it may not write to, and some file systems (FUSE) have no shared maps. Raises UserError,
    for archives and pickled objects too.
    """
    try:
        with np.errstate(over="raise"):  # of sizes
            return np.lib.format.open_memmap(path, mode="c")
    except UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if is_pointer(path):
            reason = "a pointer of Git LFS: `git lfs pull` fetches the file itself"
        if path.is_symlink() and not path.exists():
            reason = f"a link to {os.path.realpath(path)}, which does not exist"
        raise UserError(f"{path} is not a whole .npy file ({reason})") from None


def is_pointer(path: Path) -> bool:
    """Return whether a file is what Git LFS leaves in place of a large file that was not fetched."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


UNREADABLE = (
    *(OSError, ValueError, EOFError, TypeError, SyntaxError, RecursionError, MemoryError, ArithmeticError),
    tokenize.TokenError,
)
"""What NumPy raises for files that are not of its format."""


def finite_rows(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which rows are finite throughout, in float32 at most.

    float16 is tested by its bits, which takes a third of the time.
    """
    if values.dtype != np.float16:
        return (np.abs(values) <= np.finfo(np.float32).max).all(axis=1)
    largest: NDArray[np.int16] = (values.view(np.int16) & 0x7FFF).max(axis=1, initial=0)
    return largest < 0x7C00


def file_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return the size of an array's file."""
    return HEADER_BYTES + int(np.prod(shape, dtype=object)) * dtype.itemsize


def reserve(fd: int, size: int, preallocate: bool, notice: Notice) -> None:
    """Give a file at least its full size, with its disk blocks where the file system can do so. Raises OSError."""
    if preallocate and not _fallocate(fd, size):
        notice("this file system cannot reserve space (no fallocate): the disk may fill up during training")
    if os.fstat(fd).st_size < size:
        os.ftruncate(fd, size)


def _fallocate(fd: int, size: int) -> bool:
    """fallocate(2) itself: posix_fallocate would write every block where the file system has no support."""
    if sys.platform != "linux":
        return False
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    while call(fd, 0, 0, size) != 0:
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at an offset, and read it back: a lost write or another writer shows at once.

    Raises OSError.
    """
    view = memoryview(data).cast("B")
    for start in range(0, len(view), _PIECE):
        piece = view[start : start + _PIECE]
        written = 0
        while written < len(piece):
            written += os.pwrite(fd, piece[written:], offset + start + written)
        if os.pread(fd, len(piece), offset + start) != piece.tobytes():
            raise OSError(errno.EIO, "what was written does not read back")


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open a file for the calls of `os`; yield its descriptor. Raises OSError that names the file."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield fd
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable; file systems that cannot sync a folder are taken at their word."""
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise


def rename_new(source: Path, target: Path) -> None:
    """Give a file a name that no other has. Raises FileExistsError where one has, OSError."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if target.exists():  # without links there is no way to see and take a name at once
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(source, target)
        return
    source.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | Iterator[bytes]) -> None:
    """Replace a file in one durable step; its content may come in pieces.

    Raises OSError that names the file, which then is as it was.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with opened(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            end = 0
            for piece in [content] if isinstance(content, bytes) else content:
                write_all(fd, piece, end)
                end += len(piece)
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    sync_folder(path.parent)


def new_file(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    preallocate: bool = False,
    notice: Notice = print,
    flags: int = 0,
) -> None:
    """Give an array's file its header and its full size, filled up with zeros, durably but for its name in its folder.

    `flags` of os.open: with O_EXCL or O_TRUNC, the array is all zeros. Raises OSError that names the file.
    """
    with opened(path, os.O_RDWR | os.O_CREAT | flags) as fd:
        reserve(fd, file_bytes(shape, dtype), preallocate, notice)
        write_all(fd, header(shape, dtype), 0)
        os.fsync(fd)


def runs(numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Split ascending numbers where one is left out: [3, 4, 7] into [3, 4] and [7]."""
    return np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1) if len(numbers) else []


class RowFile:
    """The file of one array, open for reading or writing whole rows."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype, writable: bool) -> None:
        self.path = path
        self.shape = shape
        self.dtype = dtype
        self.row_bytes = int(np.prod(shape[1:], dtype=object)) * dtype.itemsize
        self.fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self.fd)
        self.dirty = False

    def write(self, first: int, rows: NDArray) -> None:
        """Write consecutive rows. Raises WorkError that names file and row; ValueError for rows of another shape."""
        if rows.shape[1:] != self.shape[1:] or not 0 <= first <= first + len(rows) <= self.shape[0]:
            raise ValueError(
                f"{rows.shape} values from row {first} on do not fit {self.shape}, the shape of {self.path}"
            )
        offset = HEADER_BYTES + first * self.row_bytes
        self.dirty = True
        try:
            write_all(self.fd, np.ascontiguousarray(rows, dtype=self.dtype).data, offset)
        except OSError as error:
            raise WorkError(f"cannot write row {first} of {self.path}: {error.strerror}") from error

    def sync(self, row: int) -> None:
        """Make durable what was written, if anything was. Raises WorkError that names file and row."""
        if not self.dirty:
            return
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            raise WorkError(f"cannot make row {row} of {self.path} durable: {error.strerror}") from error
        self.dirty = False

    def read(self, start: int, stop: int) -> NDArray:
        """Return rows [start, stop), read without mapping the file. Raises WorkError that names file and row."""
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        view = rows.reshape(-1).view(np.uint8).data
        offset = HEADER_BYTES + start * self.row_bytes
        while view:
            try:
                count = os.preadv(self.fd, [view], offset)
            except OSError as error:
                raise WorkError(f"cannot read rows {start} to {stop - 1} of {self.path}: {error.strerror}") from error
            if count == 0:
                raise WorkError(f"{self.path} ends before row {stop - 1}: it was cut short")
            view, offset = view[count:], offset + count
        return rows


def sync_all(files: Sequence[RowFile], row: int) -> None:
    """`sync` several files at once, so that they wait for the disk together. Raises the first WorkError."""
    with ThreadPoolExecutor(len(files)) as pool:
        for done in [pool.submit(file.sync, row) for file in files]:
            done.result()
