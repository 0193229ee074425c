"""Sums over nested subsets of the estimation rows: each subset is the one before it and some more rows."""

import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.atomic import temporary_beside, writing
from datamodels.lasso.gram.counts import HEADER, DiskCounts, read
from datamodels.lasso.gram.matrices import MaskBits, Matrices, bits_of, has_few_rows
from datamodels.lasso.gram.sums import Block, Cross, Gram, gathered
from datamodels.lasso.rows import FitRows, read_features, stored_margins
from datamodels.train.store import BaseStore as Store

_SMALLEST = 1 / 32
"""Share of the rows in the first subset."""
_STRIP = 512
"""Examples whose counts are added to those in a file at a time."""


def curve_disk_bytes(models: int, n_train: int) -> int:
    """Disk space that an LDS curve takes while it is computed: the counts of two groups of rows, if they are used."""
    return 0 if has_few_rows(models, n_train) else 2 * 4 * n_train**2


@dataclass(frozen=True)
class Subset:
    """The sums over the first rows, over its training and its validation rows."""

    rows: int
    matrices: Matrices
    crosses: tuple[Cross, Cross]


def nested_subsets(
    store: Store, split: str, rows: FitRows, columns: NDArray[np.int64], points: int
) -> Generator[Subset]:
    """Sums of about geometric subsets with the targets at `columns`; each with 2 training and 1 validation row or more.

    Every row is read once. Memory holds one matrix [N, N] at a time, since the counts of the rows so far are in
    temporary files; a subset's counts and sums change when the next one is asked for. Raises WorkError.
    """
    n_train = store.n_features
    total = len(rows.rows)
    stops = np.geomspace(total * _SMALLEST, total, points) if points > 1 else [total]
    crosses = Cross(n_train, len(columns)), Cross(n_train, len(columns))
    none: NDArray[np.uint64] = np.zeros((n_train, 0), np.uint64)
    bits: tuple[list[NDArray[np.uint64]], list[NDArray[np.uint64]]] = [], []
    folder = temporary_beside(store.derived / "datamodels" / "curve")
    paths = folder / "training.npy", folder / "validation.npy"

    try:
        with writing(folder):
            folder.mkdir(parents=True)
        start = 0
        for stop in np.unique(np.maximum(1, np.round(stops)).astype(int)).tolist():
            added = FitRows(rows.rows[start:stop], rows.validation[start:stop])
            few = has_few_rows(stop, n_train)
            gram = None if has_few_rows(total, n_train) else Gram(n_train)
            packed = _add_rows(store, split, added, columns, crosses, gram, few)
            if gram:
                _add_to_file(paths[0], gram.finish().counts)
                del gram  # the validation rows are counted last, so that memory holds one matrix
                gram = Gram(n_train)
                gram.add(packed[1])
                _add_to_file(paths[1], gram.finish().counts)
                del gram
            for group in (0, 1) if few else (1,):
                bits[group].append(bits_of(packed[group], n_train))
            start = stop
            validation = int(rows.validation[:stop].sum())
            sizes = stop - validation, validation
            if sizes[0] >= 2 and validation >= 1:
                training, others = (np.concatenate([none, *pieces], axis=1) for pieces in bits)
                source = MaskBits(training, others, sizes) if few else DiskCounts([paths], n_train, sizes)
                yield Subset(stop, Matrices(source, others), crosses)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _add_rows(
    store: Store,
    split: str,
    rows: FitRows,
    columns: NDArray[np.int64],
    crosses: tuple[Cross, Cross],
    gram: Gram | None,
    keep: bool,
) -> list[NDArray[np.uint8]]:
    """Add rows to the sums with the margins, and the training rows to a Gram if there is one.

    Returns the masks of the training rows (none unless `keep`) and of the validation rows, 8 examples to a byte.
    """
    none = np.zeros((0, (store.n_features + 7) // 8), np.uint8)
    packed = [none], [none]
    for group, masks, margins in gathered(_blocks(store, split, rows, columns)):
        crosses[group].add(masks, margins)
        if gram and group == 0:
            gram.add(masks)
        if keep or group == 1:
            packed[group].append(masks)
    return [np.concatenate(pieces) for pieces in packed]


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
