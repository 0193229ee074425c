"""Compiled kernels: the squared error of one target's weights on the validation rows.

It follows from the product of the validation rows' masks, kept as bits, with the weights. The product is updated where
weights change, as in descent. With many more validation rows than examples, their second moments take less time.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.compiled import jitable
from datamodels.lasso.solver.working_set import Bits, Vector, WorkingSet, add_columns, add_rows, copy


class Validation(NamedTuple):
    """One target on the validation rows, standardised by the training rows."""

    bits: Bits
    """[N, words]: the rows that hold each example, 64 to a word; or [N, 0], and then there are moments"""
    moments: NDArray[np.float32]
    """Z'Z [N, N], or [0, 0]; with them, all examples are in the working set"""
    rows: int
    cross: Vector
    """Z'(y - mean) [N]"""
    squares: float
    """||y - mean||^2"""


@jitable
def validation_squares(validation: Validation, at: WorkingSet) -> float:
    """Sum of the squared errors on the validation rows; updates `predicted` to the weights."""
    linear, quadratic = 0.0, 0.0
    for j in range(at.size[0]):
        linear += at.w[j] * validation.cross[at.members[j]]
    if validation.bits.shape[1] > 0:
        count, shift, total = 0, 0.0, 0.0
        for j in range(at.size[0]):
            difference = at.w[j] - at.predicted_w[j]
            at.picked[count] = at.members[j]
            at.change[count] = difference * at.inv[j]
            count += difference != 0.0
            shift += at.w[j] * at.inv[j] * at.mean[j]
        add_columns(validation.bits, at.picked, count, at.change, at.predicted)
        for row in range(at.predicted.shape[0]):  # rows that only fill up words are 0
            total += at.predicted[row]
            quadratic += at.predicted[row] * at.predicted[row]
        quadratic += shift * (validation.rows * shift - 2.0 * total)
    else:
        count = 0
        for j in range(at.size[0]):
            at.change[count] = at.w[j] - at.predicted_w[j]
            at.picked[count] = j
            count += at.change[count] != 0.0
        add_rows(validation.moments, at.picked, count, at.change, at.size[0], at.predicted)
        for j in range(at.size[0]):
            quadratic += at.w[j] * at.predicted[j]
    copy(at.w, at.size[0], at.predicted_w)
    return validation.squares - 2.0 * linear + quadratic
