"""Compiled kernels: the squared error of one target's weights on the validation rows.

It follows from the product of the validation rows' masks, kept as bits, with the weights. The product is updated where
weights change, as R w is in descent. With many more validation rows than examples, their second moments take less time.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.compiled import compiled
from datamodels.lasso.solver.buffers import Buffers, Matrix, add_rows
from datamodels.lasso.solver.gap import Vector


class Validation(NamedTuple):
    """One target on the validation rows, standardised by the training rows."""

    bits: NDArray[np.uint64]
    """[N, words]: the rows that hold each example, 64 to a word; or [N, 0], and then there are moments"""
    moments: Matrix
    """Z'Z [N, N], or [0, 0]"""
    rows: int
    mean: Vector
    """[N]: of the masks over the training rows"""
    inv: Vector
    """[N]: 1 / standard deviation of the masks over the training rows"""
    cross: Vector
    """Z'(y - mean) [N]"""
    squares: float
    """||y - mean||^2"""


@compiled
def validation_squares(validation: Validation, buffers: Buffers) -> float:
    """Sum of the squared errors on the validation rows; updates `predicted` to the weights."""
    w, change = buffers.w, buffers.change
    count, linear, quadratic, shift = 0, 0.0, 0.0, 0.0
    for j in range(w.shape[0]):
        change[j] = w[j] - buffers.predicted_w[j]
        buffers.predicted_w[j] = w[j]
        buffers.picked[count] = j
        count += change[j] != 0.0
        linear += w[j] * validation.cross[j]
    if validation.bits.shape[1] > 0:
        for j in range(w.shape[0]):
            change[j] *= validation.inv[j]
            shift += w[j] * validation.inv[j] * validation.mean[j]
        _add_columns(validation.bits, buffers.picked, count, change, buffers.predicted)
        total = 0.0
        for row in range(buffers.predicted.shape[0]):  # rows that only fill up words are 0
            total += buffers.predicted[row]
            quadratic += buffers.predicted[row] * buffers.predicted[row]
        quadratic += shift * (validation.rows * shift - 2.0 * total)
    else:
        add_rows(validation.moments, buffers.picked, count, change, buffers.predicted)
        for j in range(w.shape[0]):
            quadratic += w[j] * buffers.predicted[j]
    return validation.squares - 2.0 * linear + quadratic


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
