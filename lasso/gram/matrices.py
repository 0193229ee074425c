"""What the solver needs of the masks: counts of all examples, or the masks themselves as bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.design import Scale
from datamodels.lasso.gram.counts import Counts

SMALL_BYTES = 2**28
"""Size up to which several matrices [N, N] of 4 bytes are kept in memory; of larger ones there is one at a time."""
_STRIP = 256
"""Examples whose counts are converted at a time."""
_UNPACKED_ROWS = 4096
"""Rows that are unpacked at a time."""
_MOST = 2**15 - 1
"""Largest number of 16 bits."""


def is_small(n_train: int) -> bool:
    """Whether several matrices [N, N] may be in memory."""
    return 4 * n_train**2 <= SMALL_BYTES


def has_few_rows(rows: int, n_train: int) -> bool:
    """Whether pairs of examples are counted target by target, from bits, and not all of them at first.

    That takes less time up to half as many rows as examples (docs/benchmarks.md); where the counts of all are large it
    is done up to as many, since it needs no such matrix.
    """
    return rows < (n_train / 2 if is_small(n_train) else n_train)


def bits_of(packed: NDArray[np.uint8], n_train: int) -> NDArray[np.uint64]:
    """Masks [N, words] of 64 rows each, from the masks of rows, 8 examples to a byte; zeros fill up the last rows."""
    from datamodels.lasso.gram.popcount import pack

    starts = range(0, max(1, len(packed)), _UNPACKED_ROWS)
    unpacked = (np.unpackbits(packed[at : at + _UNPACKED_ROWS], axis=1, count=n_train) for at in starts)
    return np.concatenate([pack(masks) for masks in unpacked], axis=1)


class MaskBits:
    """Masks of the training and of the validation rows, [N, words] of 64 rows each, filled up with zeros anywhere."""

    def __init__(self, training: NDArray[np.uint64], validation: NDArray[np.uint64], rows: tuple[int, int]) -> None:
        self.groups, self.rows = (training, validation), rows
        self.ones = np.stack([np.bitwise_count(bits).sum(axis=1, dtype=np.int64) for bits in self.groups])


class Matrices:
    """Masks of training and validation rows. Large matrices take turns: use one, then ask for the other."""

    def __init__(self, masks: Counts | MaskBits, bits: NDArray[np.uint64]) -> None:
        """bits: masks of the validation rows, [N, words] of 64 rows each, filled up with zeros anywhere."""
        self.masks, self.bits = masks, bits
        ones, others = masks.ones
        self.scale = Scale.of(masks.rows[0], ones)
        self.whole_scale = Scale.of(sum(masks.rows), ones + others)
        self.validation_rows = masks.rows[1]
        self.validation_ones = others.astype(np.float64)
        self.n_train = len(ones)
        self.moments = np.zeros((0, 0), np.float32)
        if not isinstance(masks, MaskBits) and is_small(self.n_train) and self.validation_rows > 2 * self.n_train:
            self.moments = moments(self.scale, masks)
        self._found: dict[bool, tuple[NDArray[Any], NDArray[np.uint64], int]] = {}

    def part(self, whole: bool) -> tuple[NDArray[Any], NDArray[np.uint64], int]:
        """Of the training rows, or of all: counts [N, N] less a number, bits [N, words], and that number.

        One of the two arrays is empty. The diagonal of the counts is 0.
        """
        if whole not in self._found:
            if not is_small(self.n_train):
                self._found.clear()
            self._found[whole] = self._make(whole)
        return self._found[whole]

    def _make(self, whole: bool) -> tuple[NDArray[Any], NDArray[np.uint64], int]:
        masks, groups = self.masks, (0, 1) if whole else (0,)
        if isinstance(masks, MaskBits):
            wide = np.int16 if sum(masks.rows) <= _MOST else np.int32
            bits = np.concatenate(masks.groups, axis=1) if whole else masks.groups[0]
            return np.zeros((0, 0), wide), bits, 0
        none: NDArray[np.uint64] = np.zeros((self.n_train, 0), np.uint64)
        base = 0
        if sum(masks.rows[group] for group in groups) > _MOST:
            base = round(float(masks.strip(groups, 0, min(_STRIP, self.n_train)).mean()))
        found = differences(masks, groups, base, np.int16)
        if found is not None:
            return found, none, base
        return differences(masks, groups, 0, np.int32), none, 0  # type: ignore[return-value]


def differences(counts: Counts, groups: tuple[int, ...], base: int, dtype: type) -> NDArray[Any] | None:
    """Counts [N, N] of the rows of one or both groups less `base`, the diagonal 0; None where a number does not fit."""
    n_train, most = counts.ones.shape[1], np.iinfo(dtype).max
    found: NDArray[Any] = np.empty((n_train, n_train), dtype)
    for start in range(0, n_train, _STRIP):
        stop = min(start + _STRIP, n_train)
        values = counts.strip(groups, start, stop) - np.int32(base)
        values[np.arange(stop - start), np.arange(start, stop)] = 0
        if max(values.max(), -values.min()) > most:
            return None
        found[start:stop] = values
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
