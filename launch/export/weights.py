"""Fitted datamodels in mask units, in pieces: a file of weights may be larger than the memory.

Shape letters: N training examples, T targets, t targets of one tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Datamodels, Progress, find, is_fresh, load, target_count
from datamodels.launch.progress import notice
from datamodels.train import UserError
from datamodels.train.store import ReadableStore as Store

_TILE_VALUES = 2**23
"""Weights of one tile or band: 64 MiB as float64."""


@dataclass(frozen=True)
class Weights:
    """Weights float32 [N, T] and bias float32 [T] of a split: mask @ weight + bias is the predicted margin."""

    datamodels: Datamodels
    progress: Progress

    @classmethod
    def of(cls, store: Store, split: str, progress: Progress) -> "Weights":
        """Those fitted under --out or else in the store's root; tells where they are not up to date.

        Raises UserError where there are none.
        """
        path = find(store, split)
        datamodels, shape = load(path), (store.n_train, target_count(store, split))
        if datamodels.stored_weight.shape != shape:
            raise UserError(f"{path} has shape {datamodels.stored_weight.shape}, expected {shape}: [N_train, targets]")
        if not is_fresh(store, path):
            notice(f"{path} was fitted on other rows or with other options than today's: run `datamodels fit`")
        return cls(datamodels, progress)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, T)"""
        n_train, targets = self.datamodels.stored_weight.shape
        return n_train, targets

    def tiles(self) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
        """(first target, weight [N, t], bias [t]) of tile after tile of targets. Raises UserError."""
        n_train, targets = self.shape
        width = max(1, _TILE_VALUES // n_train)
        for start in range(0, targets, width):
            stop = min(start + width, targets)
            weight, bias = self.datamodels.columns(slice(start, stop))
            yield start, self._finite(weight), self._finite(bias)
            self.progress("weights", stop, targets)

    def bands(self) -> Iterator[NDArray[np.float32]]:
        """Weights [n, T] of some training examples after the other. Raises UserError."""
        n_train, targets = self.shape
        height = max(1, _TILE_VALUES // targets)
        for start in range(0, n_train, height):
            examples = slice(start, min(start + height, n_train))
            yield self._finite(self.datamodels.rows(examples))
            self.progress("weights", examples.stop, n_train)

    def _finite(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        if not np.isfinite(values).all():
            raise UserError(f"{self.datamodels.path} holds weights that are not finite")
        return values.astype(np.float32)
