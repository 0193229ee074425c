"""The fitted weights as the report needs them: which there are, and what one pass over all of them finds.

A .pt holds weights row after row, a row for each training example; the pass goes down them in bands, so that memory
does not grow with the file and every byte is read once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import VECTORS, Datamodels, Progress, find, is_fresh, load, piece_of, pieces, places, target_count
from datamodels.launch.report.outliers import Largest, Leads
from datamodels.train import UserError
from datamodels.train.store import ReadableStore

_BAND_VALUES = 2**22
"""Weights of a band: 16 MiB."""


@dataclass(frozen=True)
class Part:
    """Datamodels of the targets [first, last), which are the file's columns from `skip` on."""

    datamodels: Datamodels
    first: int
    last: int
    made: str
    """What tells the file from one that takes its place later."""
    skip: int = 0

    @classmethod
    def of(cls, path: Path, first: int = 0, start: int = 0) -> "Part":
        """A file of the targets from `first` on, those before `start` left out. Raises UserError."""
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        datamodels = load(path)
        last, made = first + datamodels.stored_weight.shape[1], f"{path.name} {status.st_size} {status.st_mtime_ns}"
        return cls(datamodels, start, last, made, start - first)

    @property
    def report(self) -> dict[str, Any]:
        """The .json beside the .pt; empty where there is none."""
        return self.datamodels.report or {}

    @property
    def columns(self) -> slice:
        return slice(self.skip, self.skip + self.last - self.first)

    def weight(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights [rows, targets] of some training examples, in mask units."""
        found = self.datamodels.stored_weight[rows, self.columns].astype(np.float32)
        if self.datamodels.units == "mask":
            return found
        return found * self.datamodels.scale.inv.astype(np.float32)[rows, None]

    def bands(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """All weights, from the first training example to the last: which they are of, and weights [rows, targets]."""
        n_train = len(self.datamodels.stored_weight)
        height = max(1, _BAND_VALUES // (self.last - self.first))
        for start in range(0, n_train, height):
            rows = slice(start, min(start + height, n_train))
            yield rows, self.weight(rows)


class Fitted:
    """The datamodels of a split: of all targets, or of those that are fitted by now.

    A whole fit that is stale gives way to pieces of today's rows and options, where there are any.
    """

    def __init__(self, store: ReadableStore, split: str) -> None:
        """Raises UserError where none is fitted."""
        self.parts, self.whole = _parts(store, split)
        """whole: the weights are those of one file of all targets, which `evaluate` finds too"""
        self.stale = self.whole and bool(self.report) and not is_fresh(store, self.parts[0].datamodels.path)
        """Whether the weights are known to be of other rows or options than the store's."""
        self.n_train, self.width = store.n_train, target_count(store, split)
        shape = {len(part.datamodels.stored_weight) for part in self.parts}, self.parts[-1].last
        if shape[0] != {self.n_train} or shape[1] > self.width:
            raise UserError(
                f"{self.parts[0].datamodels.path} is of {shape[0].pop()} training examples and {shape[1]} targets, "
                f"expected {self.n_train} and {self.width}: run `datamodels fit`"
            )
        self.targets = np.concatenate([np.arange(part.first, part.last) for part in self.parts])
        """[t] columns of the margins, ascending"""

    @property
    def report(self) -> dict[str, Any]:
        return self.parts[0].report

    def vectors(self) -> dict[str, NDArray[Any]]:
        """What a fit keeps of each target [t] beside its weights, by name; nothing where the files are not of a fit."""
        if not all(VECTORS.keys() <= part.datamodels.arrays.keys() for part in self.parts):
            return {}
        return {
            name: np.concatenate([part.datamodels.arrays[name][part.columns] for part in self.parts])
            for name in VECTORS
        }

    def example(self, name: str) -> NDArray[Any] | None:
        """A value a training example [N_train], or None."""
        return self.parts[0].datamodels.arrays.get(name)

    def rows(self, examples: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights [examples, t] of some training examples, in mask units."""
        return np.concatenate([part.weight(examples) for part in self.parts], axis=1)

    @cached_property
    def bias(self) -> NDArray[np.float64]:
        """[t] in mask units"""
        return np.concatenate([part.datamodels.bias[part.columns] for part in self.parts]).astype(np.float64)


def _parts(store: ReadableStore, split: str) -> tuple[list[Part], bool]:
    """The whole file where it is fresh, else fresh pieces of one folder, else the whole file; and whether it is that.

    Raises UserError where there is nothing.
    """
    found = [path for path in places(store, split) if path.exists()][:1]
    if not (found and is_fresh(store, found[0])):
        for path in places(store, split):
            if parts := _pieces(store, path):
                return parts, False
    path = find(store, split)
    return [Part.of(path)], True


def _pieces(store: ReadableStore, whole: Path) -> list[Part]:
    """Pieces of today's rows and options, each from where the one before it ends."""
    parts: list[Part] = []
    reached = 0
    for first, last in sorted(pieces(whole)):
        path = piece_of(whole, (first, last))
        if last > reached and is_fresh(store, path):
            parts.append(Part.of(path, first, max(first, reached)))
            reached = last
    return parts


@dataclass
class Survey:
    """What one pass over the weights of N_train examples and t targets finds, all of it in mask units.

    Where the targets are the training examples themselves, an example's weight for itself is left out of everything
    but `own`.
    """

    largest: Largest
    """of each target"""
    smallest: Largest
    """the same of the weights with their sign turned"""
    squares: NDArray[np.float64]
    """[t] sum of its squared weights"""
    nonzero: NDArray[np.int64]
    """[t]"""
    influence: NDArray[np.float64]
    """[N_train] mean over targets of an example's absolute weight"""
    effect: NDArray[np.float64]
    """[N_train] mean over targets of an example's weight"""
    columns: NDArray[np.float32]
    """[N_train, c] weights of the targets asked for"""
    own: NDArray[np.float32] | None
    """[t] weight of each target for itself, where targets are training examples"""

    @cached_property
    def leads(self) -> Leads:
        """What stands out among each target's weights."""
        return Leads.of(self.largest.values, self.squares, len(self.columns))

    @cached_property
    def mirrored(self) -> Leads:
        """The same of the weights with their sign turned: how far something stands out where nothing is a copy."""
        return Leads.of(self.smallest.values, self.squares, len(self.columns))


def survey(fitted: Fitted, positions: NDArray[np.int64], own: bool, progress: Progress) -> Survey:
    """Read all weights once. Raises UserError where one is not finite.

    positions: places in `fitted.targets` of the targets whose columns are kept. own: whether the targets are training
    examples.
    """
    width = len(fitted.targets)
    found = Survey(
        largest=Largest(width, 1),
        smallest=Largest(width, -1),
        squares=np.zeros(width),
        nonzero=np.zeros(width, np.int64),
        influence=np.zeros(fitted.n_train),
        effect=np.zeros(fitted.n_train),
        columns=np.empty((fitted.n_train, len(positions)), np.float32),
        own=np.zeros(width, np.float32) if own else None,
    )
    offset = done = 0
    for part in fitted.parts:
        place = slice(offset, offset + part.last - part.first)
        for rows, band in part.bands():
            _add(found, part, rows, place, band, positions)
            done += band.size
            progress("weights", done, fitted.n_train * width)
        offset = place.stop
    if not np.isfinite(found.squares).all():
        raise UserError("the datamodels hold weights that are not finite: run `datamodels fit`")
    counts = width - np.isin(np.arange(fitted.n_train), fitted.targets) if own else np.full(fitted.n_train, width)
    found.influence /= np.maximum(1, counts)
    found.effect /= np.maximum(1, counts)
    return found


def _add(
    found: Survey, part: Part, rows: slice, place: slice, band: NDArray[np.float32], positions: NDArray[np.int64]
) -> None:
    """Take in weights `band` of the training examples `rows` for the targets at `place`."""
    if found.own is not None:
        themselves = np.arange(max(rows.start, part.first), min(rows.stop, part.last))
        diagonal = themselves - rows.start, themselves - part.first
        found.own[place.start + diagonal[1]] = band[diagonal]
        band[diagonal] = 0
    kept = np.flatnonzero((positions >= place.start) & (positions < place.stop))
    found.columns[rows, kept] = band[:, positions[kept] - place.start]
    found.squares[place] += np.einsum("ij,ij->j", band, band)
    found.nonzero[place] += np.count_nonzero(band, axis=0)
    found.influence[rows] += np.abs(band).sum(axis=1)
    found.effect[rows] += band.sum(axis=1, dtype=np.float64)
    found.largest.add(rows.start, place, band)
    found.smallest.add(rows.start, place, band)
