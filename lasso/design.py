"""Masks as a design matrix: standardised columns, the solver's matrices from exact counts, products with weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datamodels.lasso.gram.moments import Gram

_STRIP = 256
_SPARSE = 0.05
"""Share of nonzero weights below which they are multiplied one by one."""


@dataclass(frozen=True)
class Scale:
    """How the columns of one group of rows are standardised."""

    rows: float
    mean: NDArray[np.float64]
    """[N]"""
    inv: NDArray[np.float64]
    """[N]: 1 / standard deviation (ddof 0), 0 for a column without variance"""

    @classmethod
    def of(cls, rows: int, ones: NDArray[np.integer]) -> Scale:
        """From the number of rows and of ones in every column."""
        held = ones.astype(np.float64)
        spread = np.sqrt(held * (rows - held)) / rows
        return cls(float(rows), held / rows, divide(np.ones_like(spread), spread))

    def unscaled(
        self, weight: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """weight [N, T] and bias [T] for masks as they are, from those for standardised columns."""
        weight = weight * self.inv[:, None]
        return weight, bias - self.mean @ weight

    def target(
        self, cross: NDArray[np.float64], total: float, squares: float
    ) -> tuple[float, float, NDArray[np.float64]]:
        """mean(y), var(y) and c = Z'y/n [N] of one target, from X'y [N], sum(y) and sum(y^2)."""
        mean = total / self.rows
        var = max(squares / self.rows - mean * mean, 0.0)
        return mean, var, (cross / self.rows - self.mean * mean) * self.inv


def divide(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quotient, 0 where the denominator is not positive."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


class Counts(Protocol):
    """X'X of training rows and of held-out rows, wherever it is kept."""

    rows: tuple[int, int]
    """Training rows, held-out rows."""
    ones: NDArray[np.int64]
    """[2, N]: ones in every column of the training rows and of the held-out rows"""

    def strip(self, groups: tuple[int, ...], start: int, stop: int) -> NDArray[np.int32]:
        """Counts [stop - start, N] of examples [start, stop) in the groups 0 (training), 1 (held out) or both."""

    def whole(self, examples: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """A matrix, and in which of its rows the counts [N] of each of these examples over all rows are."""


class GramCounts:
    """Counts in memory."""

    def __init__(self, training: Gram, heldout: Gram) -> None:
        self.grams = training, heldout
        self.rows = training.rows, heldout.rows
        self.ones = np.stack([np.diagonal(gram.counts) for gram in self.grams]).astype(np.int64)

    def strip(self, groups: tuple[int, ...], start: int, stop: int) -> NDArray[np.int32]:
        strips = [self.grams[group].counts[start:stop] for group in groups]
        return strips[0] if len(strips) == 1 else strips[0] + strips[1]

    def whole(self, examples: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        return self._sum, examples

    @cached_property
    def _sum(self) -> NDArray[np.int32]:
        return self.grams[0].counts + self.grams[1].counts


def correlations(
    scale: Scale, counts: Counts, groups: tuple[int, ...], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Z'Z/n - I [N, N] of the rows of one or both groups, Z standardised by `scale` of these rows."""
    n_train = counts.ones.shape[1]
    found = np.empty((n_train, n_train), np.float32) if out is None else out
    for start in range(0, n_train, _STRIP):
        strip = slice(start, start + _STRIP)
        values = counts.strip(groups, start, min(start + _STRIP, n_train)).astype(np.float64)
        values /= scale.rows
        values -= scale.mean[strip, None] * scale.mean
        values *= scale.inv[strip, None] * scale.inv
        found[strip] = values
    np.fill_diagonal(found, 0)
    return found


def moments(scale: Scale, counts: Counts) -> NDArray[np.float32]:
    """Z'Z [N, N] of the held-out rows, Z standardised by the `scale` of the training rows."""
    ones, n_train = counts.ones[1].astype(np.float64), counts.ones.shape[1]
    found = np.empty((n_train, n_train), np.float32)
    for start in range(0, n_train, _STRIP):
        strip = slice(start, start + _STRIP)
        values = counts.strip((1,), start, min(start + _STRIP, n_train)).astype(np.float64)
        values -= scale.mean[strip, None] * (ones - counts.rows[1] * scale.mean) + ones[strip, None] * scale.mean
        values *= scale.inv[strip, None] * scale.inv
        found[strip] = values
    return found


def product_with(weight: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """masks -> masks @ weight, which skips weights of 0 where most of them are."""
    if np.count_nonzero(weight) > _SPARSE * weight.size:
        return lambda masks: masks @ weight
    from scipy.sparse import csr_array

    sparse = csr_array(weight.T)
    return lambda masks: (sparse @ np.ascontiguousarray(masks.T)).T
