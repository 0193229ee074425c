"""Compiled kernels: the squared error of one target's weights on the held-out rows.

It follows from the held-out rows' masks times the weights, kept as bits: like R w in descent, their product is brought
up to date where weights move. Where there are many more held-out rows than examples, their second moments are the
shorter way.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.compiled import compiled
from datamodels.lasso.solver.buffers import Matrix, Workspace, add_rows
from datamodels.lasso.solver.gap import Vector


class Heldout(NamedTuple):
    """One target on the held-out rows, standardised by the training rows."""

    bits: NDArray[np.uint64]
    """[N, words]: the rows that hold each example, 64 to a word; or [N, 0], and then there are moments"""
    moments: Matrix
    """Z'Z [N, N], or [0, 0]"""
    rows: int
    mean: Vector
    """[N]: of the masks over the training rows"""
    inv: Vector
    """[N]: 1 / deviation of the masks over the training rows"""
    cross: Vector
    """Z'(y - mean) [N]"""
    squares: float
    """||y - mean||^2"""


@compiled
def _add_columns(bits: NDArray[np.uint64], index: NDArray[np.int64], count: int, steps: Vector, out: Vector) -> None:
    """out [64 words] += sum over the first `count` indices j of steps[j] * bits[j]."""
    one, zero = np.uint64(1), np.uint64(0)
    for at in range(0, count - count % 2, 2):
        i, j = index[at], index[at + 1]
        a, b = steps[i], steps[j]
        for word in range(bits.shape[1]):
            first, second = bits[i, word], bits[j, word]
            for place in range(64):
                here = one << np.uint64(place)
                x = a if first & here != zero else 0.0
                y = b if second & here != zero else 0.0
                out[64 * word + place] += x + y
    if count % 2:
        i = index[count - 1]
        for word in range(bits.shape[1]):
            first = bits[i, word]
            for place in range(64):
                out[64 * word + place] += steps[i] if first & (one << np.uint64(place)) != zero else 0.0


@compiled
def heldout_squares(heldout: Heldout, work: Workspace) -> float:
    """Sum of the squared errors on the held-out rows; brings `held` up to date with the weights."""
    w = work.w
    by_bits = heldout.bits.shape[1] > 0
    count, linear, quadratic, shift = 0, 0.0, 0.0, 0.0
    for j in range(w.shape[0]):
        work.excess[j] = w[j] - work.foreseen[j]
        work.foreseen[j] = w[j]
        work.picked[count] = j
        count += work.excess[j] != 0.0
        linear += w[j] * heldout.cross[j]
    if by_bits:
        for j in range(w.shape[0]):
            work.excess[j] *= heldout.inv[j]
            shift += w[j] * heldout.inv[j] * heldout.mean[j]
        _add_columns(heldout.bits, work.picked, count, work.excess, work.held)
        total = 0.0
        for row in range(work.held.shape[0]):  # those that only fill up words are 0
            total += work.held[row]
            quadratic += work.held[row] * work.held[row]
        quadratic += shift * (heldout.rows * shift - 2.0 * total)
    else:
        add_rows(heldout.moments, work.picked, count, work.excess, work.held)
        for j in range(w.shape[0]):
            quadratic += w[j] * work.held[j]
    return heldout.squares - 2.0 * linear + quadratic
