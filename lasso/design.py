"""Masks as a design matrix: standardised columns, and products of masks with weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SPARSE = 0.05
"""Share of nonzero weights below which the product is sparse."""


@dataclass(frozen=True)
class Scale:
    """How the columns of a group of rows are standardised."""

    rows: float
    mean: NDArray[np.float64]
    """[N]"""
    inv: NDArray[np.float64]
    """[N]: 1 / standard deviation (ddof 0), 0 for a column without variance"""

    @classmethod
    def of(cls, rows: int, ones: NDArray[np.integer]) -> Scale:
        """From the number of rows and the number of ones [N] in every column."""
        count = ones.astype(np.float64)
        deviation = np.sqrt(count * (rows - count)) / rows
        return cls(float(rows), count / rows, divide(np.ones_like(deviation), deviation))

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


def product_with(weight: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """A function masks -> masks @ weight, which is sparse where most weights are 0."""
    if np.count_nonzero(weight) > _SPARSE * weight.size:
        return lambda masks: masks @ weight
    from scipy.sparse import csr_array

    sparse = csr_array(weight.T)
    return lambda masks: (sparse @ np.ascontiguousarray(masks.T)).T
