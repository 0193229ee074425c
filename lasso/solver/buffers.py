"""Memory of the compiled kernels, and the addition of matrix rows."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.compiled import compiled
from datamodels.lasso.solver.gap import Vector

Matrix = NDArray[np.float32]

PAST = 16
"""Lambdas whose weights are remembered."""


class Buffers(NamedTuple):
    """Memory that one thread uses for target after target; [N] where no shape is given."""

    w: Vector
    """standardised weights"""
    h: Vector
    """R w, with R = Z'Z/n - I"""
    predicted: Vector
    """[64 words] validation masks times predicted_w / deviation, or [N] validation moments times predicted_w"""
    predicted_w: Vector
    """the weights that `predicted` belongs to"""
    change: Vector
    """of weights, or any other temporary values"""
    picked: NDArray[np.int64]
    """[N + 1]: indices of coordinates"""
    active: NDArray[np.float64]
    """[4, N]: temporary values of a step on the active set"""
    past_w: NDArray[np.float64]
    """[PAST, N]: w at the last lambdas, lambda i in place i % PAST"""
    past_h: NDArray[np.float64]
    """[PAST, N]"""
    past_predicted: NDArray[np.float64]
    """[PAST, ...]"""

    @classmethod
    def empty(cls, n_train: int, predicted: int = 0) -> "Buffers":
        """predicted: length of `predicted`; 0 for N."""
        w, h, predicted_w, change = np.zeros((4, n_train))
        picked, active = np.zeros(n_train + 1, np.int64), np.zeros((4, n_train))
        past_w, past_h = np.zeros((2, PAST, n_train))
        width = predicted or n_train
        return cls(w, h, np.zeros(width), predicted_w, change, picked, active, past_w, past_h, np.zeros((PAST, width)))


@compiled
def clear(buffers: Buffers) -> None:
    """Set the weights to 0."""
    buffers.w[:], buffers.h[:], buffers.predicted[:], buffers.predicted_w[:] = 0.0, 0.0, 0.0, 0.0


@compiled
def add_rows(matrix: Matrix, index: NDArray[np.int64], count: int, steps: Vector, out: Vector) -> None:
    """out += sum over the first `count` indices j of steps[j] * matrix[j]; four rows share each pass over out."""
    done = count - count % 4
    for at in range(0, done, 4):
        i, j, k, m = index[at], index[at + 1], index[at + 2], index[at + 3]
        a, b, c, d = steps[i], steps[j], steps[k], steps[m]
        row_a, row_b, row_c, row_d = matrix[i], matrix[j], matrix[k], matrix[m]
        for q in range(out.shape[0]):
            out[q] += (a * row_a[q] + b * row_b[q]) + (c * row_c[q] + d * row_d[q])
    for at in range(done, count):
        i = index[at]
        a = steps[i]
        row_a = matrix[i]
        for q in range(out.shape[0]):
            out[q] += a * row_a[q]
