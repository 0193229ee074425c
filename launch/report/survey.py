"""One pass over all weights, and what it finds."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Progress
from datamodels.launch.report.fitted import Fitted
from datamodels.launch.report.outliers import Largest, Outliers, outliers_of
from datamodels.train import UserError


@dataclass
class Survey:
    """What one pass over the weights of N_train examples and t targets finds, all of it in mask units.

    If the targets are the training examples themselves, an example's weight for itself is left out of everything but
    `own`.
    """

    largest: Largest
    """The largest weights of each target."""
    smallest: Largest
    """The same of the weights with their sign turned."""
    squares: NDArray[np.float64]
    """[t] sum of a target's squared weights"""
    nonzero: NDArray[np.int64]
    """[t] number of a target's weights other than 0"""
    influence: NDArray[np.float64]
    """[N_train] mean over targets of an example's absolute weight"""
    effect: NDArray[np.float64]
    """[N_train] mean over targets of an example's weight"""
    columns: NDArray[np.float32]
    """[N_train, c] weights of the targets asked for"""
    own: NDArray[np.float32] | None
    """[t] weight of each target for itself, if targets are training examples"""

    @cached_property
    def outliers(self) -> Outliers:
        """Training examples with far larger weights than all others."""
        return outliers_of(self.largest.values, self.squares, len(self.columns))

    @cached_property
    def negative_outliers(self) -> Outliers:
        """The same of the weights with their sign turned: what noise and shared features make."""
        return outliers_of(self.smallest.values, self.squares, len(self.columns))


def survey(
    fitted: Fitted, positions: NDArray[np.int64], own: bool, progress: Progress, band_values: int = 2**22
) -> Survey:
    """Read all weights once. Raises UserError if one is not finite.

    positions: places in `fitted.targets` of the targets whose columns are kept. own: whether the targets are training
    examples. band_values: weights in memory at a time, by default 16 MiB.
    """
    n_train, width = fitted.n_train, len(fitted.targets)
    found = Survey(
        largest=Largest(width, 1),
        smallest=Largest(width, -1),
        squares=np.zeros(width),
        nonzero=np.zeros(width, np.int64),
        influence=np.zeros(n_train),
        effect=np.zeros(n_train),
        columns=np.empty((n_train, len(positions)), np.float32),
        own=np.zeros(width, np.float32) if own else None,
    )
    start = done = 0
    for part in fitted.parts:
        place = slice(start, start + part.last - part.first)
        kept = np.flatnonzero((positions >= place.start) & (positions < place.stop))
        height = max(1, band_values // (part.last - part.first))
        for first in range(0, n_train, height):  # a .pt holds a row for each training example: its bytes are read once
            rows = slice(first, min(first + height, n_train))
            band = part.weight(rows)
            if found.own is not None:
                themselves = np.arange(max(rows.start, part.first), min(rows.stop, part.last))
                diagonal = themselves - rows.start, themselves - part.first
                found.own[place.start + diagonal[1]] = band[diagonal]
                band[diagonal] = 0
            found.columns[rows, kept] = band[:, positions[kept] - place.start]
            found.squares[place] += np.einsum("ij,ij->j", band, band)
            found.nonzero[place] += np.count_nonzero(band, axis=0)
            found.influence[rows] += np.abs(band).sum(axis=1)
            found.effect[rows] += band.sum(axis=1, dtype=np.float64)
            found.largest.add(rows.start, place, band)
            found.smallest.add(rows.start, place, band)
            done += band.size
            progress("weights", done, n_train * width)
        start = place.stop
    if not np.isfinite(found.squares).all():
        raise UserError("the datamodels hold weights that are not finite: run `datamodels fit`")
    counts = width - np.isin(np.arange(n_train), fitted.targets) if own else np.full(n_train, width)
    found.influence /= np.maximum(1, counts)
    found.effect /= np.maximum(1, counts)
    return found
