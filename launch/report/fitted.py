"""The datamodels that a report is about: those of all targets, or the pieces that are fitted so far."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import VECTORS, Datamodels, find, is_fresh, load, piece_of, pieces, places, target_count
from datamodels.train import UserError
from datamodels.train.store import BaseStore


@dataclass(frozen=True)
class Part:
    """Datamodels of the targets [first, last), which are some `columns` of a file."""

    datamodels: Datamodels
    first: int
    last: int
    columns: slice
    file: str
    """Name, size and time of the file: one that takes its place later has others."""

    def weight(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights [rows, targets] of some training examples, in mask units."""
        found = self.datamodels.stored_weight[rows, self.columns].astype(np.float32)
        if self.datamodels.units == "mask":
            return found
        return found * self.datamodels.scale.inv.astype(np.float32)[rows, None]


class Fitted:
    """The datamodels of a split. A whole fit that is stale gives way to pieces of today's rows and options, if any."""

    def __init__(self, store: BaseStore, split: str) -> None:
        """Raises UserError if none is fitted."""
        self.parts, self.whole = _parts(store, split)
        """whole: the weights are those of one file of all targets, which `evaluate` finds too"""
        self.report: dict[str, Any] = self.parts[0].datamodels.report or {}
        """The .json beside the .pt; empty if there is none."""
        self.stale = self.whole and bool(self.report) and not is_fresh(store, self.parts[0].datamodels.path)
        """Whether the weights are known to be of other rows or options than the store's."""
        self.n_train, self.width = store.n_features, target_count(store, split)
        for part in self.parts:
            examples = len(part.datamodels.stored_weight)
            if examples != self.n_train or part.last > self.width:
                raise UserError(
                    f"{part.datamodels.path} is of {examples} training examples and {part.last} targets, expected "
                    f"{self.n_train} and {self.width}: run `datamodels fit`"
                )
        self.targets = np.concatenate([np.arange(part.first, part.last) for part in self.parts])
        """[t] columns of the margins, ascending"""

    @cached_property
    def vectors(self) -> dict[str, NDArray[Any]]:
        """What a fit keeps of each target [t] beside its weights, by name; empty if the files are not of a fit."""
        if not all(VECTORS.keys() <= part.datamodels.arrays.keys() for part in self.parts):
            return {}
        return {
            name: np.concatenate([part.datamodels.arrays[name][part.columns] for part in self.parts])
            for name in VECTORS
        }

    def rows(self, examples: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Weights [examples, t] of some training examples, in mask units."""
        return np.concatenate([part.weight(examples) for part in self.parts], axis=1)

    @cached_property
    def bias(self) -> NDArray[np.float64]:
        """[t] in mask units"""
        return np.concatenate([part.datamodels.bias[part.columns] for part in self.parts]).astype(np.float64)


def _parts(store: BaseStore, split: str) -> tuple[list[Part], bool]:
    """The whole file if it is fresh, else fresh pieces of one folder, else the whole file; and whether it is that.

    Raises UserError if there is nothing.
    """
    found = [path for path in places(store, split) if path.exists()][:1]
    if not (found and is_fresh(store, found[0])):
        for whole in places(store, split):
            parts: list[Part] = []
            reached = 0
            for first, last in sorted(pieces(whole)):
                path = piece_of(whole, (first, last))
                if last > reached and is_fresh(store, path):
                    parts.append(_part(path, first, max(first, reached)))
                    reached = last
            if parts:
                return parts, False
    return [_part(find(store, split), 0, 0)], True


def _part(path: Path, first: int, start: int) -> Part:
    """The targets from `start` on in a file whose first target is `first`. Raises UserError."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    datamodels = load(path)
    last = first + datamodels.stored_weight.shape[1]
    file = f"{path.name} {status.st_size} {status.st_mtime_ns}"
    return Part(datamodels, start, last, slice(start - first, last - first), file)
