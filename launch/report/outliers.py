"""Which training examples have far larger weights than all others for a target, and how many of these are chance.

Duplicates of a target's image among the training examples share its weight, so that the largest weight alone may be
little above the next. The outlier score of a target is therefore the largest gap between one of its DEPTH largest
weights and the next, in units of the root mean square of the weights below the gap. If few weights are other than 0,
that unit is small and any gap is large: the unit is therefore at least its median over the targets with any weight.

Noise and shared features make gaps too, but as many among negative weights, where duplicates make none. So scores are
above noise down to where negative weights have ALLOWED of as many, after the counts of decoys in mass spectrometry
(Elias and Gygi, Nature Methods 2007). Of two equal samples, either may hold the largest score: scores of negative
weights are multiplied by HEADROOM, so that a score has to be larger by more than chance makes it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEPTH = 4
"""Training examples that may be above a gap together."""
ALLOWED = 0.1
"""Share of the outliers shown that may be chance."""
HEADROOM = 1.5
"""How many times as large as those of negative weights scores have to be."""


class Largest:
    """The DEPTH + 1 largest weights of each of t targets, times `sign`, updated band by band."""

    def __init__(self, targets: int, sign: int) -> None:
        self._sign = sign
        self.values = np.full((DEPTH + 1, targets), -np.inf, np.float32)
        """[DEPTH + 1, t], largest first; -inf if there are fewer training examples"""
        self.examples = np.zeros((DEPTH + 1, targets), np.int64)
        """[DEPTH + 1, t]: the training examples that have these weights"""

    def add(self, first: int, place: slice, band: NDArray[np.float32]) -> None:
        """Add weights `band` [rows, targets] of the training examples from `first` on for the targets at `place`."""
        best = band.max(axis=0) if self._sign > 0 else -band.min(axis=0)
        columns = np.flatnonzero(best > self.values[-1, place])  # of a late band, few
        some, into = self._sign * band[:, columns], place.start + columns
        keep = min(len(band), DEPTH + 1)
        rows = np.argpartition(some, len(some) - keep, axis=0)[len(some) - keep :]
        rows.sort(axis=0)  # of equal weights, the first training example counts
        values = np.concatenate([self.values[:, into], np.take_along_axis(some, rows, axis=0)])
        examples = np.concatenate([self.examples[:, into], first + rows])
        order = np.argsort(-values, axis=0, kind="stable")[: DEPTH + 1]
        self.values[:, into] = np.take_along_axis(values, order, axis=0)
        self.examples[:, into] = np.take_along_axis(examples, order, axis=0)


@dataclass(frozen=True)
class Outliers:
    score: NDArray[np.float64]
    """[t] 0 without a positive weight"""
    count: NDArray[np.int64]
    """[t] how many of a target's largest weights are above the gap"""


def outliers_of(largest: NDArray[np.float32], squares: NDArray[np.float64], n_train: int) -> Outliers:
    """Outliers of targets with these largest weights [DEPTH + 1, t] and this sum [t] of all their squared weights."""
    values = np.where(np.isfinite(largest), largest, 0).astype(np.float64)
    above = np.cumsum(values[:-1] ** 2, axis=0)
    below = np.maximum(1, n_train - np.arange(1, DEPTH + 1))[:, None]
    rest = np.sqrt(np.maximum(0, squares - above) / below)
    gaps = np.where(values[:-1] > 0, values[:-1] - values[1:], 0)
    unit = np.maximum(rest, np.median(rest[0][rest[0] > 0]) if rest[0].any() else 0)
    score = np.divide(gaps, unit, out=np.zeros_like(gaps), where=unit > 0)
    return Outliers(score.max(axis=0), score.argmax(axis=0) + 1)


def count_above_noise(scores: NDArray[np.float64], negative: NDArray[np.float64]) -> int:
    """How many of the largest scores [t] are above noise; negative: the scores [t] of negative weights."""
    ordered = np.sort(scores[scores > 0])[::-1]
    chance = len(negative) - np.searchsorted(np.sort(HEADROOM * negative), ordered)
    good = np.flatnonzero(chance <= ALLOWED * np.arange(1, len(ordered) + 1))
    return int(good[-1]) + 1 if len(good) else 0
