"""Counts X'X of two groups of rows, training rows (0) and validation rows (1): in memory, or in .npy files."""

import os
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.atomic import replacing
from datamodels.lasso.gram.sums import Gram
from datamodels.train import UserError, WorkError

HEADER = 128
"""Bytes before the values in a .npy file that `np.save` writes."""
_STRIP = 512
"""Examples whose counts are read at a time."""
_INT32 = np.dtype(np.int32)


class Counts(Protocol):
    """What the solver asks of the counts, wherever they are kept."""

    rows: tuple[int, int]
    """Training rows, validation rows."""
    ones: NDArray[np.int64]
    """[2, N]: rows of each group that hold each example."""

    def strip(self, groups: tuple[int, ...], start: int, stop: int) -> NDArray[np.int32]:
        """Counts [stop - start, N] of examples [start, stop), summed over the groups."""


class MemoryCounts:
    """Counts in memory."""

    def __init__(self, training: Gram, validation: Gram) -> None:
        self.grams = training, validation
        self.rows = training.rows, validation.rows
        self.ones = np.stack([np.diagonal(gram.counts) for gram in self.grams]).astype(np.int64)

    def strip(self, groups: tuple[int, ...], start: int, stop: int) -> NDArray[np.int32]:
        strips = [self.grams[group].counts[start:stop] for group in groups]
        return strips[0] if len(strips) == 1 else strips[0] + strips[1]


class DiskCounts:
    """Counts that are sums over files, read strip by strip. Raises UserError for a file that was cut short."""

    def __init__(self, paths: list[tuple[Path, Path]], n_train: int, rows: tuple[int, int]) -> None:
        """paths: files [N, N] of training and of validation rows; rows: how many rows all of them together count."""
        self.paths, self.n_train, self.rows = paths, n_train, rows
        for path in (path for pair in paths for path in pair):
            check(path, (n_train, n_train), _INT32)
        self.ones = np.stack([self._diagonal(group) for group in (0, 1)])

    def _diagonal(self, group: int) -> NDArray[np.int64]:
        found = np.zeros(self.n_train, np.int64)
        for pair in self.paths:
            with open(pair[group], "rb") as file:
                places = (HEADER + 4 * at * (self.n_train + 1) for at in range(self.n_train))
                found += [int.from_bytes(os.pread(file.fileno(), 4, place), "little") for place in places]
        return found

    def strip(self, groups: tuple[int, ...], start: int, stop: int) -> NDArray[np.int32]:
        found = np.zeros((stop - start, self.n_train), np.int32)
        for pair in self.paths:
            for group in groups:
                found += read(pair[group], _INT32, start * self.n_train, found.shape)
        return found


def write(path: Path, array: NDArray) -> None:
    """Write a .npy file that appears under its name once it is complete and durable. Raises WorkError."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def check(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raises UserError for a file of the cache that is not as long as it should be."""
    expected = HEADER + int(np.prod(shape)) * dtype.itemsize
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
        raise UserError(f"{path} has {size} bytes, expected {expected}: it was cut short; remove it")


def read(path: Path, dtype: np.dtype, at: int, shape: tuple[int, ...]) -> NDArray:
    """Values of a .npy file from number `at` on. A mapped file would count as memory of the process."""
    count = int(np.prod(shape))
    try:
        values: NDArray = np.fromfile(path, dtype, count, offset=HEADER + at * dtype.itemsize)
    except OSError as error:
        raise WorkError(f"cannot read {path}: {error.strerror}") from None
    if len(values) != count:
        raise UserError(f"{path} was cut short: remove it")
    return values.reshape(shape)


def add_file(counts: NDArray[np.int32], path: Path) -> None:
    """Add the counts [N, N] in a file to those in memory, strip by strip."""
    check(path, counts.shape, _INT32)
    for start in range(0, len(counts), _STRIP):
        strip = counts[start : start + _STRIP]
        strip += read(path, _INT32, start * len(counts), strip.shape)
