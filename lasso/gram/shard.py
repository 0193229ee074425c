"""The sums of some rows of a store, made file by file; what is made is kept, and what is half made is gone on with.

    {stem}.masks.npy                    uint8 [rows, N/8]      masks, 8 examples to a byte
    {stem}.{training|heldout}.gram.npy  int32 [N, N]           counts X'X of training and of held-out rows
    {stem}.{split}.{A}-{B}.npy          float64 [2, B-A, N+2]  X'y, sum of y, sum of y^2 of targets [A, B)

Masks are read from the store once, checked against their checksums, and from then on from the first of these files.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import files
from datamodels.lasso.gram import temporary as scratch
from datamodels.lasso.gram.moments import Gram, new_cross
from datamodels.lasso.rows import Progress, Split, read_masks, stored_margins
from datamodels.train import UserError, WorkError
from datamodels.train.store import ReadableStore as Store

if TYPE_CHECKING:
    import torch

GROUPS = ("training", "heldout")
HEADER = 128
"""Bytes before the values of an .npy file of ours."""
_CHECKPOINT = 300.0
"""Seconds after which half-made counts are written down."""
_STRIP = 512
"""Examples whose counts are read at a time."""
_AT_ONCE = 2**26
"""Mask entries that are unpacked at a time."""
_DIRECT_BYTES, _DIRECT_WORK = 2**29, 1e12
"""Sums, and multiplications, up to which one pass adds up all targets; beyond that it sorts the margins by files of
targets first, which then take turns, and an interrupted pass goes on at the file where it was."""


@dataclass(frozen=True)
class Part:
    """Rows [first, last) of a store, as far as they are used, and where their sums lie."""

    store: Store
    first: int
    last: int
    split: Split
    stem: Path
    """Beginning of the names of its files."""
    device: "torch.device | None" = None
    """Where sums are made that are lacking, if not on the CPU."""

    def file(self, what: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{what}")

    @property
    def masks(self) -> Path:
        return self.file("masks.npy")

    def gram(self, group: int) -> Path:
        return self.file(f"{GROUPS[group]}.gram.npy")

    def cross(self, split: str, first: int, last: int) -> Path:
        return self.file(f"{split}.{first}-{last}.npy")

    @property
    def rows(self) -> tuple[int, int]:
        """How many are training rows and held-out rows."""
        heldout = int(self.split.heldout.sum())
        return len(self.split.rows) - heldout, heldout

    def has_counts(self) -> bool:
        return all(self.gram(group).exists() for group in (0, 1))

    def make_masks(self, progress: Progress) -> None:
        """Pack the masks into a file, from where an interrupted pass left it."""
        rows, n_train = self.split.rows, self.store.n_train
        width = (n_train + 7) // 8
        half = self.file("masks.partial")
        done = scratch.reached(half)
        with files.writing(half), open(half, "r+b" if done else "wb") as file:
            file.write(header((len(rows), width), np.dtype(np.uint8)))
            file.truncate(file.seek(HEADER + done * width))
            for block in Split(rows[done:], self.split.heldout[done:]).blocks(self.store):
                file.write(np.packbits(read_masks(self.store, block.rows), axis=1).data)
                before, done = done, done + len(block.rows)
                scratch.mark(file, half, before, done, len(rows))
                progress("rows", self.first + done, self.last)
        with files.writing(self.masks):
            half.replace(self.masks)
            half.with_suffix(".reached").unlink()

    def read_packed(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Masks of the rows at places [start, stop) of `split`, 8 examples to a byte."""
        width = (self.store.n_train + 7) // 8
        check(self.masks, (len(self.split.rows), width), np.dtype(np.uint8))
        return read(self.masks, np.uint8, start * width, (stop - start, width))

    def masks_of(self, group: int, done: int = 0) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """(place reached, masks) of the rows of a group, some thousands at a time, from place `done` on."""
        height = max(512, _AT_ONCE // self.store.n_train // 512 * 512)
        for start in range(done, len(self.split.rows), height):
            stop = min(start + height, len(self.split.rows))
            packed = self.read_packed(start, stop)[self.split.heldout[start:stop] == bool(group)]
            yield stop, np.unpackbits(packed, axis=1, count=self.store.n_train).view(bool)

    def make_counts(self, progress: Progress) -> None:
        """Count both groups, one after the other in one matrix."""
        gram: Gram | None = None
        for group in (0, 1):
            if not self.gram(group).exists():
                gram = gram.clear() if gram else Gram(self.store.n_train, device=self.device)
                self._count(gram, group, progress)
                write(self.gram(group), gram.finish().counts)
                self.file(f"{GROUPS[group]}.partial").unlink(missing_ok=True)

    def _count(self, gram: Gram, group: int, progress: Progress) -> None:
        half, begin = self.file(f"{GROUPS[group]}.partial"), 0
        if half.exists() and half.stat().st_size == HEADER + gram.counts.nbytes:
            begin = int(np.fromfile(half, np.int64, 1)[0])
            add_file(gram.counts, half)
        written = time.monotonic()
        for done, masks in self.masks_of(group, begin):
            gram.add(masks)
            progress(f"counts, {GROUPS[group]}", self.first + done, self.last)
            if time.monotonic() - written > _CHECKPOINT:
                gram.flush()
                with files.writing(half), files.replacing(half) as temporary, open(temporary, "wb") as file:
                    file.write(done.to_bytes(8, "little").ljust(HEADER))
                    file.write(gram.counts.data)
                written = time.monotonic()

    def make_sums(
        self, split: str, ranges: list[tuple[int, int]], lacking: list[tuple[int, int]], progress: Progress
    ) -> None:
        """Add up the margins of targets, a file for each range that is lacking; `ranges` follow each other."""
        path = self.file(f"{split}.{ranges[0][0]}-{ranges[-1][1]}.margins")
        scratch.remove_abandoned(path.parent, f"{self.stem.name}.*.margins", path)
        if not lacking:
            return
        first, last = lacking[0][0], lacking[-1][1]
        if not sorts_margins(last - first, self.store.n_train, len(self.split.rows)):
            values = (margins for _, margins in self._margins(split, first, last, 0))
            self._sum(split, ranges[ranges.index(lacking[0]) : ranges.index(lacking[-1]) + 1], values, progress)
            return
        with scratch.claimed(path):
            lacking = [pair for pair in lacking if not self.cross(split, *pair).exists()]  # others may have made some
            if lacking:
                self._sort_margins(path, split, ranges, progress)
            for start, stop in lacking:
                offset = (start - ranges[0][0]) * len(self.split.rows)
                self._sum(split, [(start, stop)], self._sorted_margins(path, offset, stop - start), progress)

    def _margins(self, split: str, first: int, last: int, done: int) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """(place of the first row, margins of targets [first, last)) block by block, from place `done` on."""
        for block in Split(self.split.rows[done:], self.split.heldout[done:]).blocks(self.store):
            yield done, stored_margins(self.store, split, block.rows, slice(first, last))
            done += len(block.rows)

    def _sum(
        self, split: str, ranges: list[tuple[int, int]], margins: Iterator[NDArray[np.float16]], progress: Progress
    ) -> None:
        n_train, (first, last) = self.store.n_train, (ranges[0][0], ranges[-1][1])
        size = n_train, last - first, first
        crosses = new_cross(*size, self.device), new_cross(*size, self.device)
        done = 0
        for block, values in zip(self.split.blocks(self.store), margins, strict=True):
            packed = self.read_packed(done, done + len(values))
            for cross, group in zip(crosses, (~block.heldout, block.heldout), strict=True):
                cross.add_packed(packed[group], values[group])
            done += len(values)
            progress(f"margins {first}:{last}", self.first + done, self.last)
        for cross in crosses:
            cross.finish()
        for start, stop in ranges:
            targets = slice(start - first, stop - first)
            sums = np.empty((2, stop - start, n_train + 2))
            for page, cross in zip(sums, crosses, strict=True):
                page[:, :-2] = cross.cross[targets]
                page[:, -2], page[:, -1] = cross.sums[targets], cross.squares[targets]
            write(self.cross(split, start, stop), sums)

    def _sort_margins(self, path: Path, split: str, ranges: list[tuple[int, int]], progress: Progress) -> None:
        """Write a file with the float16 margins of range after range, [rows, targets] each."""
        first, last, rows = ranges[0][0], ranges[-1][1], len(self.split.rows)
        done = scratch.reached(path)
        with files.writing(path), open(path, "r+b" if done else "wb") as file:
            for at, values in self._margins(split, first, last, done):
                for start, stop in ranges:
                    place = 2 * ((start - first) * rows + at * (stop - start))
                    piece = np.ascontiguousarray(values[:, start - first : stop - first], np.float16)
                    _write_at(file.fileno(), piece, place)
                done = at + len(values)
                scratch.mark(file, path, at, done, rows)
                progress("rows", self.first + done, self.last)

    def _sorted_margins(self, path: Path, offset: int, width: int) -> Iterator[NDArray[np.float16]]:
        for block in self.split.blocks(self.store):
            size = len(block.rows) * width
            yield np.fromfile(path, np.float16, size, offset=2 * offset).reshape(-1, width)
            offset += size


def sorts_margins(targets: int, n_train: int, rows: int) -> bool:
    """Whether adding up so many margins is work for several passes."""
    size = 16 * targets * n_train
    return size > _DIRECT_BYTES or size / 8 * rows > _DIRECT_WORK


def header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The first bytes of an .npy file, in C order."""
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    text = repr(described).encode().ljust(HEADER - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text


def _write_at(fd: int, array: NDArray, place: int) -> None:
    """Write all bytes of an array at a place, however many the system takes at a time. Raises OSError."""
    left = array.data.cast("B")
    while left:
        done = os.pwrite(fd, left, place)
        left, place = left[done:], place + done


def write(path: Path, array: NDArray) -> None:
    """Write an .npy file that appears when it is whole."""
    with files.writing(path), files.replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(header(array.shape, array.dtype))
        file.write(np.ascontiguousarray(array).data)


def check(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raises UserError for a file of ours that is not as long as it should be."""
    expected = HEADER + int(np.prod(shape)) * dtype.itemsize
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
        raise UserError(f"{path} has {size} bytes, expected {expected}: it was cut short; remove it")


def read(path: Path, dtype: type, at: int, shape: tuple[int, ...]) -> NDArray:
    """Values from place `at` on."""
    size = np.dtype(dtype).itemsize
    try:
        values: NDArray = np.fromfile(path, dtype, int(np.prod(shape)), offset=HEADER + at * size)
    except OSError as error:
        raise WorkError(f"cannot read {path}: {error.strerror}") from None
    if len(values) != np.prod(shape):
        raise UserError(f"{path} was cut short: remove it")
    return values.reshape(shape)


def add_file(counts: NDArray[np.int32], path: Path) -> None:
    """Add the counts [N, N] in a file to those in memory, which never holds two matrices."""
    for start in range(0, len(counts), _STRIP):
        strip = counts[start : start + _STRIP]
        strip += read(path, np.int32, start * len(counts), strip.shape)
