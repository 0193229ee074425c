"""Counts X'X that are kept on the disk, as .npy files of ours, and read strip by strip."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import files
from datamodels.lasso.gram.shard import HEADER, check, header, read

_STRIP = 512
"""Examples whose counts are added at a time."""
_TYPE = np.dtype(np.int32)


class StoredCounts:
    """Counts that are the sums of files, read strip by strip. Raises UserError for a file that was cut short."""

    def __init__(self, paths: list[tuple[Path, Path]], n_train: int, rows: tuple[int, int]) -> None:
        """paths: files [N, N] of training and of held-out rows, all of which together are so many `rows`."""
        self.paths, self.n_train, self.rows = paths, n_train, rows
        for path in (path for pair in paths for path in pair):
            check(path, (n_train, n_train), _TYPE)
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
                found += read(pair[group], np.int32, start * self.n_train, found.shape)
        return found

    def whole(self, examples: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        found = np.zeros((len(examples), self.n_train), np.int32)
        row = np.empty(self.n_train, np.int32)
        for path in (path for pair in self.paths for path in pair):
            with open(path, "rb") as file:
                for place, example in enumerate(examples):
                    os.preadv(file.fileno(), [row.data], HEADER + 4 * int(example) * self.n_train)
                    found[place] += row
        return found, np.arange(len(examples))


def empty_counts(path: Path, n_train: int) -> None:
    """Write counts of no rows, which take no space yet. Raises WorkError."""
    with files.writing(path), open(path, "wb") as file:
        file.write(header((n_train, n_train), _TYPE))
        file.truncate(HEADER + 4 * n_train**2)


def add_counts(path: Path, counts: NDArray[np.int32]) -> None:
    """Add counts [N, N] of other rows to those in a file, in place. Raises WorkError."""
    with files.writing(path), open(path, "r+b") as file:
        for start in range(0, len(counts), _STRIP):
            strip = counts[start : start + _STRIP]
            total = read(path, np.int32, start * len(counts), strip.shape) + strip
            file.seek(HEADER + 4 * start * len(counts))
            file.write(total.data)
