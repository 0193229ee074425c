"""Random numbers: each of row r comes from Philox with key (seed, r); each purpose has a counter block, a stream.

Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from collections.abc import Collection
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
    """What a custom network draws while it trains, such as dropout."""
    RESAMPLE = 6
    """Bootstrap replicates of an evaluation, with the replicate's number in place of the row's."""


FIXED = {
    Stream.INITIALISATION: "initialisation",
    Stream.ORDER: "order",
    Stream.AUGMENTATION: "augmentation",
    Stream.NETWORK: "augmentation",
}
"""What a setting may fix, by the streams that it is drawn from."""


def stream_row(fixed: Collection[str], stream: Stream, row: int) -> int:
    """Return the row whose stream a row draws from: its own, or row 0 where the setting fixes what is drawn."""
    return 0 if FIXED.get(stream) in fixed else row


def raw(seed: int, row: int, stream: Stream, n: int) -> NDArray[np.uint64]:
    """Return the first n 64-bit words of one stream of one row."""
    return np.random.Philox(key=np.array([seed, row], dtype=np.uint64), counter=[0, 0, 0, int(stream)]).random_raw(n)


def uniform(seed: int, row: int, stream: Stream, n: int) -> NDArray[np.float32]:
    """Return n uniform floats in [0, 1) of 24 bits each, two from every word of the stream (low half first)."""
    halves = raw(seed, row, stream, (n + 1) // 2).astype("<u8", copy=False).view("<u4")[:n]
    return (halves >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def validation_rows(seed: int, rows: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Return bool [n]: which of the rows [n] are held out to choose lambda; each depends on its row number alone."""
    bound = int(share * 2**64)
    keys = (int(raw(seed, int(row), Stream.VALIDATION, 1)[0]) for row in rows)
    return np.fromiter((key < bound for key in keys), dtype=bool, count=len(rows))
