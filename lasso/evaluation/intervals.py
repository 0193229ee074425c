"""Bootstrap intervals of rank correlations: the evaluation masks are resampled, with all their runs.

A resample holds masks several times, which biases its rank correlation towards 0; for a mean over many targets, by more
than its spread. So replicates are moved until their mean is the estimate. Bounds are BCa (Efron, "Better bootstrap
confidence intervals", JASA 1987): percentiles corrected for the median's bias and, by the jackknife, for skewness.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.train import Stream, raw

_LEFT_OUT = 200
"""Groups of masks that the jackknife leaves out in turn, at most: each mask by itself where there are no more."""
_AT_ONCE = 32
"""Targets of which a thread has the replicates in memory; fixed, so that sums over targets are the same anywhere."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval: docs/evaluation.md."""

    low: float
    high: float
    level: float
    """Share of such intervals that hold what other samples of as many masks give on average."""
    replicates: int

    @classmethod
    def of(cls, estimate: float, resampled: Values, level: float, replicates: int) -> "Interval":
        """From the estimate's values [resamples]: those of the replicates, then those of the jackknife."""
        low, high = _bounds(np.array([estimate]), resampled[None], level, replicates)
        return cls(float(low[0]), float(high[0]), level, replicates)


class Bootstrap:
    """Resamples of n masks, the same for every target: `replicates` with replacement, then those of the jackknife."""

    def __init__(self, masks: int, replicates: int, level: float, seed: int) -> None:
        from datamodels.lasso.evaluation.resampled import LANES

        self.replicates, self.level = replicates, level
        groups = min(masks, _LEFT_OUT)
        group = np.arange(masks) * groups // masks
        self.resamples = replicates + groups
        counts = np.zeros((-(-self.resamples // LANES) * LANES, masks), np.float32)
        for number in range(replicates):
            counts[number] = _draw(masks, seed, number)
        for number in range(groups):
            counts[replicates + number] = group != number
        self._counts = np.ascontiguousarray(counts.reshape(-1, LANES, masks).transpose(0, 2, 1))

    def targets(self, estimate: Values, a: Values, b: Values) -> tuple[Values, Values, Values]:
        """Bounds [t] of the interval of each target's Spearman correlation `estimate` [t] of a with b, [masks, t] each,
        and the sum over targets in each resample. A correlation that is undefined is 0.
        """
        pieces = [slice(start, start + _AT_ONCE) for start in range(0, len(estimate), _AT_ONCE)]

        def work(piece: slice) -> tuple[Values, Values, Values]:
            values = self._correlations(a[:, piece], b[:, piece])
            low, high = _bounds(estimate[piece], values, self.level, self.replicates)
            return np.maximum(low, -1), np.minimum(high, 1), values.sum(axis=0)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            lows, highs, totals = zip(*pool.map(work, pieces), strict=True)
        return np.concatenate(lows), np.concatenate(highs), np.sum(totals, axis=0)

    def _correlations(self, a: Values, b: Values) -> Values:
        """Spearman correlations [t, resamples]."""
        from datamodels.lasso.evaluation.resampled import LANES, correlate

        masks, targets = a.shape
        order, last = (np.stack(sides) for sides in zip(_sorted(a), _sorted(b), strict=True))
        found = np.empty((targets, len(self._counts) * LANES), np.float32)
        work = np.empty((masks, LANES), np.float32), np.empty((6, LANES), np.float32)
        correlate(order, last, self._counts, *work, found)
        return found[:, : self.resamples].astype(np.float64)


def _bounds(estimate: Values, values: Values, level: float, replicates: int) -> tuple[Values, Values]:
    """BCa bounds [t] for estimates [t] and their values [t, resamples]."""
    from scipy.special import ndtr, ndtri

    drawn, left_out, middle = values[:, :replicates], values[:, replicates:], estimate[:, None]
    drawn = drawn + middle - drawn.mean(axis=1, keepdims=True)
    below = ((drawn < middle).sum(axis=1) + (drawn <= middle).sum(axis=1)) / 2
    bias = ndtri(np.clip(below, 0.5, replicates - 0.5) / replicates)
    pull = left_out.mean(axis=1, keepdims=True) - left_out
    spread = (pull**2).sum(axis=1) ** 1.5
    acceleration = np.divide((pull**3).sum(axis=1), 6 * spread, out=np.zeros_like(spread), where=spread > 0)
    ascending = np.sort(drawn, axis=1)
    low, high = (
        _quantile(ascending, ndtr(bias + (bias + z) / np.maximum(1 - acceleration * (bias + z), 1e-9)))
        for z in ndtri([(1 - level) / 2, (1 + level) / 2])
    )
    return low, high


def _draw(masks: int, seed: int, number: int) -> NDArray[np.int64]:
    """How often a resample has each of the masks."""
    words = raw(seed, number, Stream.RESAMPLE, masks) >> np.uint64(32)
    return np.bincount((words * np.uint64(masks) >> np.uint64(32)).astype(np.int64), minlength=masks)


def _sorted(values: Values) -> Iterator[NDArray]:
    """Order [t, masks] of each target's values [masks, t], and whether the next one differs."""
    order = np.argsort(values, axis=0)
    ascending = np.take_along_axis(values, order, axis=0)
    last = np.ones(values.shape, bool)
    last[:-1] = ascending[1:] != ascending[:-1]
    yield np.ascontiguousarray(order.T, np.uint32)
    yield np.ascontiguousarray(last.T)


def _quantile(ascending: Values, share: Values) -> Values:
    """The quantile at each row's own share, interpolated between the values of ascending [t, n]."""
    place = share * (ascending.shape[1] - 1)
    lower = np.minimum(place.astype(np.int64), ascending.shape[1] - 2)
    row = np.arange(len(ascending))
    start, end = ascending[row, lower], ascending[row, lower + 1]
    return start + (place - lower) * (end - start)
