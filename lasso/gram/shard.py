"""The sums of one shard, a range of a store's rows. What is made of it stays on disk between fits.

    {stem}.masks.npy                       uint8 [rows, N/8]      masks, 8 examples to a byte
    {stem}.{training|validation}.gram.npy  int32 [N, N]           counts X'X of the training and the validation rows
    {stem}.{split}.{A}-{B}.npy             float64 [2, B-A, N+2]  X'y, sum of y, sum of y^2 of targets [A, B)

Masks are read from the store once, checked against their checksums, and from then on from the first of these files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.atomic import replacing
from datamodels.lasso.gram.counts import check, read, write
from datamodels.lasso.gram.sums import Block, Cross, Gram, gathered
from datamodels.lasso.rows import FitRows, Progress, read_features, stored_margins
from datamodels.train.store import BaseStore as Store

_GROUPS = ("training", "validation")
_UINT8 = np.dtype(np.uint8)
_AT_ONCE = 2**27
"""Bytes of packed masks that are read at a time."""
PASS_BYTES = 2**29
"""Sums with margins that one pass over the rows may hold in memory, or as much as a matrix of counts takes."""

Range = tuple[int, int]


@dataclass(frozen=True)
class Shard:
    """Rows [first, last) of a store, as far as a fit uses them, and the files of their sums."""

    store: Store
    first: int
    last: int
    rows: FitRows
    stem: Path
    """How the paths of its files begin."""

    def _file(self, what: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{what}.npy")

    @property
    def masks(self) -> Path:
        return self._file("masks")

    def gram(self, group: int) -> Path:
        return self._file(f"{_GROUPS[group]}.gram")

    def cross(self, split: str, targets: Range) -> Path:
        return self._file(f"{split}.{targets[0]}-{targets[1]}")

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of training rows and of validation rows."""
        validation = int(self.rows.validation.sum())
        return len(self.rows.rows) - validation, validation

    def has_counts(self) -> bool:
        return all(self.gram(group).exists() for group in (0, 1))

    def write_masks(self, progress: Progress) -> None:
        """Pack the masks into a file."""
        done, width = 0, (self.store.n_features + 7) // 8
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(self.rows.rows), width)}
        with replacing(self.masks) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in self.rows.blocks(self.store):
                file.write(np.packbits(read_features(self.store, block.rows), axis=1).data)
                done += len(block.rows)
                progress("rows", self.first + done, self.last)

    def read_packed(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Masks of rows [start, stop) of the shard, 8 examples to a byte."""
        width = (self.store.n_features + 7) // 8
        check(self.masks, (len(self.rows.rows), width), _UINT8)
        return read(self.masks, _UINT8, start * width, (stop - start, width))

    def packed_masks(self, group: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(rows read so far, those masks of them that are in the group, 8 examples to a byte), piece by piece."""
        total = len(self.rows.rows)
        height = max(512, 8 * _AT_ONCE // self.store.n_features)
        for start in range(0, total, height):
            stop = min(start + height, total)
            yield stop, self.read_packed(start, stop)[self.rows.validation[start:stop] == bool(group)]

    def write_counts(self, progress: Progress) -> None:
        """Count both groups, one after the other: memory holds one matrix."""
        for group, name in enumerate(_GROUPS):
            gram = Gram(self.store.n_features)
            for done, packed in self.packed_masks(group):
                gram.add(packed)
                progress(f"counts, {name}", self.first + done, self.last)
            write(self.gram(group), gram.finish().counts)
            del gram

    def write_cross(self, split: str, ranges: list[Range], progress: Progress) -> None:
        """Add up the margins of ranges of targets, each into a file.

        One pass over the rows takes as many ranges as fit into the memory that a matrix of counts takes at other times.
        """
        n_train = self.store.n_features
        widest = max(last - first for first, last in ranges)
        each = max(1, max(PASS_BYTES, 4 * n_train**2) // (16 * n_train * widest))
        for at in range(0, len(ranges), each):
            self._pass_over_margins(split, ranges[at : at + each], progress)

    def _pass_over_margins(self, split: str, ranges: list[Range], progress: Progress) -> None:
        n_train, start, stop = self.store.n_features, ranges[0][0], ranges[-1][1]
        sums = Cross(n_train, stop - start), Cross(n_train, stop - start)
        for group, packed, margins in gathered(self._blocks(split, start, stop, progress)):
            sums[group].add(packed, margins)
        progress(f"margins {start}:{stop}", self.last, self.last)
        for first, last in ranges:
            tables = [cross.table[first - start : last - start] for cross in sums]
            write(self.cross(split, (first, last)), np.stack(tables))

    def _blocks(self, split: str, start: int, stop: int, progress: Progress) -> Iterator[Block]:
        """The rows with margins of targets [start, stop), in the blocks in which they are read."""
        done = 0
        for block in self.rows.blocks(self.store):
            margins = stored_margins(self.store, split, block.rows, slice(start, stop))
            yield block.validation, self.read_packed(done, done + len(margins)), margins
            done += len(margins)
            progress(f"margins {start}:{stop}", self.first + done, self.last)
