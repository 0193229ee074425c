"""Fitted datamodels in mask units, in pieces: a file of weights may be larger than the memory.

Shape letters: N training examples, T targets, n or t those of one piece.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Progress, find, load, staleness, target_count
from datamodels.launch.progress import notice
from datamodels.train import UserError
from datamodels.train.store import BaseStore


class Weights:
    """Weights [N, T] and bias [T] of a split's datamodels: mask @ weight + bias is the predicted margin."""

    piece_values = 2**23
    """Weights in memory at a time: 64 MiB as float64."""

    def __init__(self, store: BaseStore, split: str, progress: Progress) -> None:
        """Opens the datamodels under --out or else in the root, with a notice if they are stale.

        Raises UserError if there are none.
        """
        path = find(store, split)
        self.datamodels, self.progress = load(path), progress
        self.shape = store.n_features, target_count(store, split)
        """(N, T)"""
        found = tuple(self.datamodels.stored_weight.shape)
        if found != self.shape:
            raise UserError(f"{path} has shape {found}, expected {self.shape}: [N_train, targets]")
        for text in staleness(store, path):
            notice(text)

    def tiles(self) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
        """Yield (first target, weight [N, t], bias [t]) for one range of targets after the other. Raises UserError."""
        n_train, targets = self.shape
        width = max(1, self.piece_values // n_train)
        for start in range(0, targets, width):
            stop = min(start + width, targets)
            weight, bias = self.datamodels.columns(slice(start, stop))
            yield start, self._finite(weight), self._finite(bias)
            self.progress("weights", stop, targets)

    def bands(self) -> Iterator[NDArray[np.float32]]:
        """Yield weight [n, T] for one range of training examples after the other. Raises UserError."""
        n_train, targets = self.shape
        height = max(1, self.piece_values // targets)
        for start in range(0, n_train, height):
            stop = min(start + height, n_train)
            yield self._finite(self.datamodels.rows(slice(start, stop)))
            self.progress("weights", stop, n_train)

    def _finite(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        if not np.isfinite(values).all():
            raise UserError(f"{self.datamodels.path} holds weights that are not finite")
        return values.astype(np.float32)
