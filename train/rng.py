"""Random streams: every random number of row r comes from Philox with key (seed, r), one counter block a purpose.

Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from enum import IntEnum, unique

import numpy as np
from numpy.typing import NDArray


@unique
class Stream(IntEnum):
    MASK = 0
    INITIALISATION = 1
    ORDER = 2
    AUGMENTATION = 3
    VALIDATION = 4
    NETWORK = 5
    """What an own network draws while it trains, such as dropout."""
    RESAMPLE = 6
    """Of a bootstrap replicate, its number in place of the row's."""


def raw(seed: int, row: int, stream: Stream, n: int) -> NDArray[np.uint64]:
    """The first n 64-bit words of one stream of one row."""
    return np.random.Philox(key=np.array([seed, row], dtype=np.uint64), counter=[0, 0, 0, int(stream)]).random_raw(n)


def uniform(seed: int, row: int, stream: Stream, n: int) -> NDArray[np.float32]:
    """n floats, evenly spaced in [0, 1) with 24 bits each, two from every word (low half first)."""
    halves = raw(seed, row, stream, (n + 1) // 2).astype("<u8", copy=False).view("<u4")[:n]
    return (halves >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def validation_rows(seed: int, rows: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Which of the rows are held out to choose lambda: a property of the row alone, so it survives growth."""
    bound = int(share * 2**64)
    keys = (int(raw(seed, int(row), Stream.VALIDATION, 1)[0]) for row in rows)
    return np.fromiter((key < bound for key in keys), dtype=bool, count=len(rows))
