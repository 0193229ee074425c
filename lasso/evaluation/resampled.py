"""Compiled kernel: rank correlations of resampled observations, 64 resamples at a time.

A resample is how often it has each observation, so that its ranks follow from the order of the whole sample by running
sums: no resample is ever sorted.
"""

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.compiled import compiled

LANES = 64
"""Resamples to a vector."""
_HALF = np.float32(0.5)


@compiled
def correlate(
    order: NDArray[np.uint32],
    last: NDArray[np.bool_],
    counts: NDArray[np.float32],
    ranks: NDArray[np.float32],
    sums: NDArray[np.float32],
    found: NDArray[np.float32],
) -> None:
    """Spearman correlations of t targets in every resample, to found [t, blocks LANES]; 0 where one side is constant.

    order [2, t, n]: observations by ascending value, of either side; last [2, t, n]: whether the next one's value
    differs. counts [blocks, n, LANES]: how often a resample has each observation. ranks [n, LANES] and sums [6, LANES]
    are memory to work in.
    """
    lowest, below, rank, xx, yy, xy = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
    for block in range(counts.shape[0]):
        for lane in range(LANES):
            lowest[lane] = 0
        for k in range(counts.shape[1]):
            row = counts[block, k]
            for lane in range(LANES):
                lowest[lane] -= _HALF * row[lane]
        for t in range(order.shape[1]):
            for lane in range(LANES):
                xx[lane] = yy[lane] = xy[lane] = 0
            for side in range(2):
                for lane in range(LANES):
                    below[lane] = lowest[lane]
                at = order[side, t]
                first = 0
                for k in range(counts.shape[1]):
                    if not last[side, t, k]:
                        continue
                    # observations first .. k are equal: all have the rank in the middle of theirs, less the mean rank
                    for lane in range(LANES):
                        rank[lane] = _HALF * below[lane]
                    for i in range(first, k + 1):
                        row = counts[block, at[i]]
                        for lane in range(LANES):
                            below[lane] += row[lane]
                    for lane in range(LANES):
                        rank[lane] += _HALF * below[lane]
                    for i in range(first, k + 1):
                        row, other = counts[block, at[i]], ranks[at[i]]
                        if side == 0:
                            for lane in range(LANES):
                                other[lane] = rank[lane]
                                xx[lane] += row[lane] * rank[lane] * rank[lane]
                        else:
                            for lane in range(LANES):
                                part = row[lane] * rank[lane]
                                yy[lane] += part * rank[lane]
                                xy[lane] += part * other[lane]
                    first = k + 1
            for lane in range(LANES):
                scale = np.sqrt(xx[lane]) * np.sqrt(yy[lane])
                found[t, block * LANES + lane] = xy[lane] / scale if scale > 0 else 0
