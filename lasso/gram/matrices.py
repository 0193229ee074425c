"""What the solver needs of the masks: correlations from exact counts, and the masks of the validation rows."""

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.design import Scale
from datamodels.lasso.gram.counts import Counts

SMALL_BYTES = 2**28
"""Size up to which several matrices [N, N] of 4 bytes are kept in memory; of larger ones there is one at a time."""
_STRIP = 256
"""Examples whose correlations are computed at a time."""


def is_small(n_train: int) -> bool:
    """Whether several matrices [N, N] may be in memory."""
    return 4 * n_train**2 <= SMALL_BYTES


class Matrices:
    """Correlations and validation masks. Large correlations take turns in one buffer: use one, then ask for the other.

    bits: masks of the validation rows, [N, words] of 64 rows each, filled up with zeros anywhere.
    """

    def __init__(self, counts: Counts, bits: NDArray[np.uint64]) -> None:
        self.counts, self.bits = counts, bits
        ones, others = counts.ones
        self.scale = Scale.of(counts.rows[0], ones)
        self.whole_scale = Scale.of(sum(counts.rows), ones + others)
        self.validation_rows = counts.rows[1]
        self.validation_ones = others.astype(np.float64)
        self.n_train = len(ones)
        self.moments = np.zeros((0, 0), np.float32)
        if is_small(self.n_train) and self.validation_rows > 2 * self.n_train:
            self.moments = moments(self.scale, counts)
        self._found: dict[bool, NDArray[np.float32]] = {}

    @property
    def corr(self) -> NDArray[np.float32]:
        """Z'Z/n - I of the training rows."""
        return self._correlations(False)

    @property
    def whole_corr(self) -> NDArray[np.float32]:
        """Z'Z/n - I of all rows."""
        return self._correlations(True)

    def _correlations(self, whole: bool) -> NDArray[np.float32]:
        if whole not in self._found:
            buffer = None
            if not is_small(self.n_train) and self._found:
                buffer = self._found.pop(not whole)
            scale, groups = (self.whole_scale, (0, 1)) if whole else (self.scale, (0,))
            self._found[whole] = correlations(scale, self.counts, groups, buffer)
        return self._found[whole]


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
    """Z'Z [N, N] of the validation rows, Z standardised by the `scale` of the training rows."""
    ones, n_train = counts.ones[1].astype(np.float64), counts.ones.shape[1]
    found = np.empty((n_train, n_train), np.float32)
    for start in range(0, n_train, _STRIP):
        strip = slice(start, start + _STRIP)
        values = counts.strip((1,), start, min(start + _STRIP, n_train)).astype(np.float64)
        values -= scale.mean[strip, None] * (ones - counts.rows[1] * scale.mean) + ones[strip, None] * scale.mean
        values *= scale.inv[strip, None] * scale.inv
        found[strip] = values
    return found
