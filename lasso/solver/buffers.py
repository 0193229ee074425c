"""What the compiled kernels of the solver share: memory, and the addition of rows."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.compiled import compiled
from datamodels.lasso.solver.gap import Vector

Matrix = NDArray[np.float32]

PAST = 16
"""Lambdas whose weights are remembered."""


class Workspace(NamedTuple):
    """Memory that one thread uses for target after target, [N] if nothing else is said."""

    w: Vector
    """standardised weights"""
    h: Vector
    """R w, with R = Z'Z/n - I"""
    foreseen: Vector
    """the weights that `held` belongs to"""
    excess: Vector
    picked: NDArray[np.int64]
    """[N + 1]: coordinates picked"""
    face: NDArray[np.float64]
    """[5, N]"""
    held: Vector
    """[N] held-out moments times w, or [64 words] held-out masks times w / deviation"""
    ws: NDArray[np.float64]
    """[PAST, N]: the last lambdas' w, lambda i in place i % PAST"""
    hs: NDArray[np.float64]
    """[PAST, N]"""
    helds: NDArray[np.float64]
    """[PAST, ...]"""

    @classmethod
    def empty(cls, n_train: int, held: int = 0) -> "Workspace":
        """held: length of `held`, N where nothing else is said."""
        w, h, foreseen, excess = np.zeros((4, n_train))
        picked, face = np.zeros(n_train + 1, np.int64), np.zeros((5, n_train))
        (ws, hs), helds = np.zeros((2, PAST, n_train)), np.zeros((PAST, held or n_train))
        return cls(w, h, foreseen, excess, picked, face, np.zeros(held or n_train), ws, hs, helds)


@compiled
def start(work: Workspace) -> None:
    """Weights of 0."""
    work.w[:], work.h[:], work.held[:], work.foreseen[:] = 0.0, 0.0, 0.0, 0.0


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
