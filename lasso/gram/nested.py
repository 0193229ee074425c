"""The sums of growing subsets of the estimation rows, each the rows of the one before and some more.

Memory holds one matrix [N, N] at a time where these are large: what was counted so far is kept on the disk then.
"""

import contextlib
import itertools
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import files
from datamodels.lasso.design import Counts, GramCounts
from datamodels.lasso.gram.cache import Statistics, count_parts, file_ranges, folder_of
from datamodels.lasso.gram.matrices import is_small
from datamodels.lasso.gram.moments import Cross, Gram, new_cross
from datamodels.lasso.gram.on_disk import StoredCounts, add_counts, empty_counts
from datamodels.lasso.rows import Split, read_margins, read_masks, target_count
from datamodels.train.store import ReadableStore as Store

if TYPE_CHECKING:
    import torch

_SMALLEST = 1 / 32
"""Share of the rows in the first subset."""
_FEWEST_PARTS = 4
"""Parts of the statistics that are enough for a curve without reading rows again."""
_PACKED_ROWS = 4096
"""Held-out rows that are unpacked at a time."""

Crosses = tuple[Cross, Cross]


def disk_bytes(models: int, n_train: int, n_test: int) -> int:
    """What the subsets of a fitted store take on disk while they are gone through, beside what the fit has kept."""
    in_place = is_small(n_train) or count_parts(models, n_train, n_test) >= _FEWEST_PARTS
    return 0 if in_place else 2 * 4 * n_train**2


@dataclass(frozen=True)
class Prefix:
    """The sums of a subset, of its training and of its held-out rows."""

    rows: int
    counts: Counts
    crosses: Crosses
    bits: NDArray[np.uint64]
    """Masks of the held-out rows [N, words]"""


def prefixes(
    store: Store,
    split: str,
    rows: Split,
    columns: NDArray[np.int64],
    points: int,
    device: "torch.device | None" = None,
) -> Generator[Prefix]:
    """Subsets of about geometric sizes that have 2 training and 1 validation row or more, with the sums of the targets
    at `columns`: from the disk where a fit has kept them in parts, else made on the device.

    What was made of a subset is to be forgotten before the next is asked for, which changes its sums.
    """
    statistics = Statistics(store, rows) if folder_of(store).exists() else None  # a fit made it, in parts or as one
    kept = statistics is not None and len(statistics.parts) >= _FEWEST_PARTS
    with _room(store, kept) as room:
        found = (
            _from_parts(statistics, store, split, columns, points, room)
            if statistics and kept
            else _from_rows(store, split, rows, columns, points, room, device)
        )
        for prefix in found:
            if prefix.counts.rows[0] >= 2 and prefix.counts.rows[1] >= 1:
                yield prefix


class _Room(Protocol):
    """Where counts are added up."""

    def add(self, group: int, gram: Gram) -> None:
        """Add finished counts of more rows to those of the training (0) or held-out rows (1)."""

    def counts(self) -> Counts:
        """All so far."""


class _Memory:
    def __init__(self, n_train: int) -> None:
        self.grams = Gram(n_train), Gram(n_train)

    def add(self, group: int, gram: Gram) -> None:
        self.grams[group].absorb(gram.rows, gram.counts)

    def counts(self) -> Counts:
        return GramCounts(*self.grams)


class _Disk:
    def __init__(self, n_train: int, folder: Path) -> None:
        self.n_train, self.rows = n_train, [0, 0]
        self.paths = folder / "training.gram.npy", folder / "heldout.gram.npy"
        for path in self.paths:
            empty_counts(path, n_train)

    def add(self, group: int, gram: Gram) -> None:
        self.rows[group] += gram.rows
        add_counts(self.paths[group], gram.counts)

    def counts(self) -> Counts:
        return StoredCounts([self.paths], self.n_train, (self.rows[0], self.rows[1]))


@contextlib.contextmanager
def _room(store: Store, kept: bool) -> Iterator[_Room | None]:
    """In memory, or in a folder that is removed at the end; None where parts that are kept are read in place."""
    if is_small(store.n_train):
        yield _Memory(store.n_train)
    elif kept:
        yield None
    else:
        folder = files.aside(folder_of(store))
        try:
            with files.writing(folder):
                folder.mkdir(parents=True)
                files.remove_orphans(folder.parent)  # of curves that were killed
            yield _Disk(store.n_train, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _from_parts(
    statistics: Statistics, store: Store, split: str, columns: NDArray[np.int64], points: int, room: _Room | None
) -> Iterator[Prefix]:
    width, total = target_count(store, split), _Total(store.n_train, len(columns))
    for only in _lots(np.cumsum([len(part.split.rows) for part in statistics.parts]), points):
        statistics.make(split, 0, width, only)
        total.add(_columns_of(statistics, store, split, columns, only), statistics.held_bits(only))
        if room:
            for group, gram in enumerate(statistics.grams(only)):
                room.add(group, gram)
        yield total.prefix(room.counts() if room else statistics.stored_counts(slice(only.stop)))


def _from_rows(
    store: Store,
    split: str,
    rows: Split,
    columns: NDArray[np.int64],
    points: int,
    room: _Room | None,
    device: "torch.device | None",
) -> Iterator[Prefix]:
    total, start = _Total(store.n_train, len(columns)), 0
    for size in _sizes(len(rows.rows), points).round().astype(int):
        if size > start and room:
            more = Split(rows.rows[start:size], rows.heldout[start:size])
            total.add(*_count(store, split, more, columns, room, device))
            yield total.prefix(room.counts())
        start = size


def _count(
    store: Store, split: str, rows: Split, columns: NDArray[np.int64], room: _Room, device: "torch.device | None"
) -> tuple[Crosses, NDArray[np.uint64]]:
    """Sums with the margins, and masks of the held-out rows; counts go into the room, one matrix after the other."""
    from datamodels.lasso.gram.popcount import pack

    n_train = store.n_train
    gram = Gram(n_train, device=device)
    crosses = new_cross(n_train, len(columns), 0, device), new_cross(n_train, len(columns), 0, device)
    held, bits = [np.zeros((0, (n_train + 7) // 8), np.uint8)], []
    for block in rows.blocks(store):
        masks = read_masks(store, block.rows)
        margins = read_margins(store, split, block.rows, columns)
        packed = np.packbits(masks, axis=1)
        gram.add(masks[~block.heldout])
        for cross, group in zip(crosses, (~block.heldout, block.heldout), strict=True):
            cross.add_packed(packed[group], margins[group])
        held.append(packed[block.heldout])
    for cross in crosses:
        cross.finish()
    room.add(0, gram.finish())
    gram.clear()
    packed = np.concatenate(held)
    for start in range(0, max(1, len(packed)), _PACKED_ROWS):
        unpacked = np.unpackbits(packed[start : start + _PACKED_ROWS], axis=1, count=n_train)
        gram.add(unpacked.view(bool))
        bits.append(pack(unpacked))
    room.add(1, gram.finish())
    return crosses, np.concatenate(bits, axis=1)


class _Total:
    """Sums with the margins, and masks of the held-out rows, of all rows so far."""

    def __init__(self, n_train: int, width: int) -> None:
        self.crosses = Cross(n_train, width), Cross(n_train, width)
        self.bits: list[NDArray[np.uint64]] = []

    def add(self, crosses: Crosses, bits: NDArray[np.uint64]) -> None:
        for total, more in zip(self.crosses, crosses, strict=True):
            total.absorb(0, more.cross, more.sums, more.squares)
        self.bits.append(bits)

    def prefix(self, counts: Counts) -> Prefix:
        return Prefix(sum(counts.rows), counts, self.crosses, np.concatenate(self.bits, axis=1))


def _columns_of(statistics: Statistics, store: Store, split: str, columns: NDArray[np.int64], only: slice) -> Crosses:
    """The sums of some targets, file by file."""
    found = Cross(store.n_train, len(columns)), Cross(store.n_train, len(columns))
    for first, last in file_ranges(store, split, 0, target_count(store, split)):
        inside = np.flatnonzero((columns >= first) & (columns < last))
        if not len(inside):
            continue
        places = columns[inside] - first
        for cross, kept in zip(found, statistics.crosses(split, first, last, only), strict=True):
            cross.cross[inside] = kept.cross[places]
            cross.sums[inside], cross.squares[inside] = kept.sums[places], kept.squares[places]
    return found


def _sizes(total: int, points: int) -> NDArray[np.float64]:
    return np.geomspace(total * _SMALLEST, total, points) if points > 1 else np.array([float(total)])


def _lots(ends: NDArray[np.int64], points: int) -> list[slice]:
    """Parts that make a point each, from the rows at which they end: those that come closest to the sizes wanted."""
    wanted = np.log(_sizes(int(ends[-1]), points))
    cuts = sorted({int(np.argmin(abs(np.log(ends) - size))) + 1 for size in wanted})
    return [slice(first, last) for first, last in itertools.pairwise([0, *cuts])]
