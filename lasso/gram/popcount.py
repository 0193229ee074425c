"""Compiled kernels: exact counts X'X of 0/1 rows by AND and population count on bits, 64 rows to a word.

LLVM turns the loops into AVX-512 VPOPCNTQ where the CPU has it.
"""

import numpy as np
from llvmlite import binding  # type: ignore[import-untyped]
from numpy.typing import NDArray

from datamodels.lasso.compiled import compiled, ones

_TILE = 16
"""Examples to a side of the tiles in which the counts are made: both sides' bits stay in the L1 cache."""


def has_vector_popcount() -> bool:
    """Whether this CPU counts the bits of 512-bit vectors."""
    return bool(binding.get_host_cpu_features().get("avx512vpopcntdq", False))


@compiled
def pack(masks: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Bits [N, words] of 0/1 masks [rows, N], the last rows filled up with zeros to 512 at a time."""
    rows, n_train = masks.shape
    words = (rows + 511) // 512 * 8
    bits = np.zeros((n_train, words), np.uint64)
    word = np.zeros(n_train, np.uint64)
    for at in range((rows + 63) // 64):
        word[:] = 0
        for place in range(min(64, rows - 64 * at)):
            row = masks[64 * at + place]
            shift = np.uint64(place)
            for j in range(n_train):
                word[j] |= np.uint64(row[j]) << shift
        for j in range(n_train):
            bits[j, at] = word[j]
    return bits


@compiled
def add_counts(bits: NDArray[np.uint64], counts: NDArray[np.int32], start: int, stop: int) -> None:
    """Add the counts of bits [N, words] to rows [start, stop) of counts [N, N], on and right of the diagonal tiles."""
    n_train, words = bits.shape
    for row in range(start, stop, _TILE):
        for column in range(row, n_train, _TILE):
            for i in range(row, min(row + _TILE, stop)):
                a = bits[i]
                last = min(column + _TILE, n_train)
                for j in range(column, last - (last - column) % 4, 4):
                    b, c, d, e = bits[j], bits[j + 1], bits[j + 2], bits[j + 3]
                    p, q, r, s = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
                    for w in range(words):
                        p += ones(a[w] & b[w])
                        q += ones(a[w] & c[w])
                        r += ones(a[w] & d[w])
                        s += ones(a[w] & e[w])
                    counts[i, j] += np.int32(p)
                    counts[i, j + 1] += np.int32(q)
                    counts[i, j + 2] += np.int32(r)
                    counts[i, j + 3] += np.int32(s)
                for j in range(last - (last - column) % 4, last):
                    b = bits[j]
                    p = np.uint64(0)
                    for w in range(words):
                        p += ones(a[w] & b[w])
                    counts[i, j] += np.int32(p)
