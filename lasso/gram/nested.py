"""Sums over nested subsets of the estimation rows: each subset is the one before it and some more rows."""

import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.atomic import temporary_beside, writing
from datamodels.lasso.gram.counts import HEADER, DiskCounts, read
from datamodels.lasso.gram.sums import Block, Cross, Gram, gathered
from datamodels.lasso.rows import FitRows, read_features, stored_margins
from datamodels.train.store import BaseStore as Store

_SMALLEST = 1 / 32
"""Share of the rows in the first subset."""
_PACKED_ROWS = 4096
"""Validation rows that are unpacked at a time."""
_STRIP = 512
"""Examples whose counts are added to those in a file at a time."""


def curve_disk_bytes(n_train: int) -> int:
    """Disk space that an LDS curve takes while it is computed: the counts of two groups of rows."""
    return 2 * 4 * n_train**2


@dataclass(frozen=True)
class Subset:
    """The sums over the first rows, over its training and its validation rows."""

    rows: int
    counts: DiskCounts
    crosses: tuple[Cross, Cross]
    bits: NDArray[np.uint64]
    """Masks of the validation rows [N, words], 64 rows to a word."""


def nested_subsets(
    store: Store, split: str, rows: FitRows, columns: NDArray[np.int64], points: int
) -> Generator[Subset]:
    """Sums of about geometric subsets with the targets at `columns`; each with 2 training and 1 validation row or more.

    Every row is read once. Memory holds one matrix [N, N] at a time, since the counts of the rows so far are in
    temporary files; a subset's counts and sums change when the next one is asked for. Raises WorkError.
    """
    n_train = store.n_features
    total = len(rows.rows)
    sizes = np.geomspace(total * _SMALLEST, total, points) if points > 1 else [total]
    crosses = Cross(n_train, len(columns)), Cross(n_train, len(columns))
    bits: list[NDArray[np.uint64]] = []
    folder = temporary_beside(store.derived / "datamodels" / "curve")
    paths = folder / "training.npy", folder / "validation.npy"

    try:
        with writing(folder):
            folder.mkdir(parents=True)
        start = 0
        for stop in np.unique(np.maximum(1, np.round(sizes)).astype(int)).tolist():
            added = FitRows(rows.rows[start:stop], rows.validation[start:stop])
            bits += _add_rows(store, split, added, columns, crosses, paths)
            start = stop
            validation = int(rows.validation[:stop].sum())
            if stop - validation >= 2 and validation >= 1:
                counts = DiskCounts([paths], n_train, (stop - validation, validation))
                yield Subset(stop, counts, crosses, np.concatenate(bits, axis=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _add_rows(
    store: Store,
    split: str,
    rows: FitRows,
    columns: NDArray[np.int64],
    crosses: tuple[Cross, Cross],
    paths: tuple[Path, Path],
) -> list[NDArray[np.uint64]]:
    """Add rows to the sums with the margins and to the counts in files; returns the masks of the validation rows."""
    from datamodels.lasso.gram.popcount import pack

    gram, validation = Gram(store.n_features), [np.zeros((0, (store.n_features + 7) // 8), np.uint8)]
    for group, packed, margins in gathered(_blocks(store, split, rows, columns)):
        crosses[group].add(packed, margins)
        if group:
            validation.append(packed)
        else:
            gram.add(packed)
    _add_to_file(paths[0], gram.finish().counts)

    del gram
    gram = Gram(store.n_features)  # the validation rows are counted last, so that memory holds one matrix
    together = np.concatenate(validation)
    gram.add(together)
    _add_to_file(paths[1], gram.finish().counts)
    starts = range(0, len(together), _PACKED_ROWS)
    return [pack(np.unpackbits(together[at : at + _PACKED_ROWS], axis=1, count=store.n_features)) for at in starts]


def _blocks(store: Store, split: str, rows: FitRows, columns: NDArray[np.int64]) -> Iterator[Block]:
    for block in rows.blocks(store):
        masks = np.packbits(read_features(store, block.rows), axis=1)
        yield block.validation, masks, stored_margins(store, split, block.rows, columns)


def _add_to_file(path: Path, counts: NDArray[np.int32]) -> None:
    """Add counts [N, N] to those in a .npy file, in place and strip by strip; the first ones make the file."""
    with writing(path):
        if not path.exists():
            np.save(path, counts)
            return
        with open(path, "r+b") as file:
            for start in range(0, len(counts), _STRIP):
                strip = counts[start : start + _STRIP]
                total = strip + read(path, np.dtype(np.int32), start * len(counts), strip.shape)
                file.seek(HEADER + 4 * start * len(counts))
                file.write(total.data)
