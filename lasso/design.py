"""The matrices of the solver, from the exact counts of the training rows and of the held-out rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lasso.moments import Gram

_STRIP = 256


@dataclass(frozen=True)
class Scale:
    """How the columns of one group of rows are standardised."""

    rows: float
    mean: NDArray[np.float64]
    """[N]"""
    inv: NDArray[np.float64]
    """[N]: 1 / standard deviation (ddof 0), 0 for a column without variance"""

    @classmethod
    def of(cls, rows: int, ones: NDArray[np.integer]) -> "Scale":
        """From the number of rows and of ones in every column."""
        held = ones.astype(np.float64)
        spread = np.sqrt(held * (rows - held)) / rows
        return cls(float(rows), held / rows, divide(np.ones_like(spread), spread))

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


def correlations(scale: Scale, *grams: Gram) -> NDArray[np.float32]:
    """Z'Z/n - I [N, N] of the rows of one or two Grams together, Z standardised by `scale` of these rows."""
    found = np.empty(grams[0].counts.shape, np.float32)
    for start in range(0, len(found), _STRIP):
        strip = slice(start, start + _STRIP)
        counts = np.sum([gram.counts[strip] for gram in grams], axis=0, dtype=np.float64)
        counts /= scale.rows
        counts -= scale.mean[strip, None] * scale.mean
        counts *= scale.inv[strip, None] * scale.inv
        found[strip] = counts
    np.fill_diagonal(found, 0)
    return found


def moments(scale: Scale, gram: Gram) -> NDArray[np.float32]:
    """Z'Z [N, N] of the rows of a Gram, Z standardised by the `scale` of other rows."""
    ones = np.diagonal(gram.counts).astype(np.float64)
    found = np.empty(gram.counts.shape, np.float32)
    for start in range(0, len(found), _STRIP):
        strip = slice(start, start + _STRIP)
        counts = gram.counts[strip].astype(np.float64)
        counts -= scale.mean[strip, None] * (ones - gram.rows * scale.mean) + ones[strip, None] * scale.mean
        counts *= scale.inv[strip, None] * scale.inv
        found[strip] = counts
    return found
