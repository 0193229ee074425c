"""Sums over rows that hold everything the LASSO needs: counts X'X of the masks, and X'Y, Y'1, Y'Y of the margins.

Exactness: counts are integers. Float16 margins are multiples of 2**-24, so a float64 sum of them is exact while the sum
of |margin| stays below 2**29. Results therefore depend neither on the order of rows nor on the number of threads.

Both sums take masks packed, 8 examples to a byte as `np.packbits(masks, axis=1)` gives them, and thousands of rows at a
time: `gathered` makes such pieces of smaller blocks.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_STRIP = 512
"""Examples whose counts one matrix product gives."""
_SMALL = 512
"""Examples below which a matrix product is fast enough; it needs no compiled kernel."""
_UNPACKED = 2**27
"""Mask entries that are unpacked at a time."""
_PIECE = 16320
"""Rows whose sums with margins are added up before they go to memory; divisible by the 30 rows of a word."""
_PIECE_BYTES = 2**28
"""Margins that fewer rows are added up for."""
_TOGETHER = 512
"""Targets whose margins are split into integers at a time."""

Route = Literal["popcount", "product"]


def fastest_route(n_train: int) -> Route:
    """Population count where the CPU has it for vectors, else float32 matrix products. Both are exact."""
    if n_train < _SMALL:
        return "product"
    from datamodels.lasso.gram.popcount import has_vector_popcount

    return "popcount" if has_vector_popcount() else "product"


class Gram:
    """Counts [N_train, N_train] of the rows that hold both example i and example j; the diagonal counts example i.

    Rows may be added before and after `finish`; `counts` are complete after it alone.
    """

    def __init__(self, n_train: int, route: Route | None = None) -> None:
        self.rows = 0
        self.counts: NDArray[np.int32] = np.zeros((n_train, n_train), np.int32)
        self._route = route or fastest_route(n_train)

    def add(self, packed: NDArray[np.uint8]) -> None:
        """Add masks [rows, N_train / 8]; population count fills rows up to a multiple of 512."""
        self.rows += len(packed)
        height = max(512, min(2**20, _UNPACKED // len(self.counts) // 512 * 512))  # float32 is exact below 2**24
        for start in range(0, len(packed), height):
            masks = np.unpackbits(packed[start : start + height], axis=1, count=len(self.counts))
            if self._route == "popcount":
                self._add_by_popcount(masks)
                continue
            x = masks.astype(np.float32)
            for at in range(0, len(self.counts), _STRIP):
                strip = x[:, at : at + _STRIP].T @ x[:, at:]
                self.counts[at : at + _STRIP, at:] += strip.astype(np.int32)

    def _add_by_popcount(self, masks: NDArray[np.uint8]) -> None:
        from datamodels.lasso.gram.popcount import add_counts, pack

        bits = pack(masks)
        starts = range(0, len(self.counts), 64)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda start: add_counts(bits, self.counts, start, min(start + 64, len(bits))), starts))

    def finish(self) -> "Gram":
        """Fill the lower triangle from the upper one, in place."""
        for start in range(0, len(self.counts), _STRIP):
            stop = start + _STRIP
            for other in range(0, start, _STRIP):
                tile = slice(other, other + _STRIP)
                self.counts[start:stop, tile] = self.counts[tile, start:stop].T
            corner = np.triu(self.counts[start:stop, start:stop])
            self.counts[start:stop, start:stop] = corner + np.triu(corner, 1).T
        return self


class Cross:
    """Sums with the margins of T targets: `table` [T, N_train + 2] has X'y, the sum of y and the sum of y^2."""

    def __init__(self, n_train: int, targets: int) -> None:
        self.table = np.zeros((targets, n_train + 2))

    @property
    def cross(self) -> NDArray[np.float64]:
        """[T, N_train]: Y'X"""
        return self.table[:, :-2]

    @property
    def sums(self) -> NDArray[np.float64]:
        """[T]"""
        return self.table[:, -2]

    @property
    def squares(self) -> NDArray[np.float64]:
        """[T]"""
        return self.table[:, -1]

    def add(self, packed: NDArray[np.uint8], margins: NDArray[np.floating]) -> None:
        """Add masks [rows, N_train / 8] and finite margins [rows, T] of any precision."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for start in range(0, len(packed), _PIECE):
                self._add_piece(pool, packed[start : start + _PIECE], margins[start : start + _PIECE])

    def _add_piece(self, pool: ThreadPoolExecutor, packed: NDArray[np.uint8], margins: NDArray[np.floating]) -> None:
        from datamodels.lasso.gram.products import LANES, ROWS, STRIP, add_products, pack_words, split

        words = np.empty(((len(packed) + ROWS - 1) // ROWS, 8 * packed.shape[1]), np.uint32)
        list(pool.map(lambda word: pack_words(packed, words, word), range(len(words))))

        def numbers(first: int) -> tuple[NDArray, ...]:
            y, targets = np.zeros((len(words) * ROWS, LANES)), slice(first, min(first + LANES, len(self.table)))
            y[: len(margins), : targets.stop - first] = margins[:, targets]
            self.sums[targets] += y.sum(axis=0)[: targets.stop - first]
            self.squares[targets] += (y * y).sum(axis=0)[: targets.stop - first]
            return y, *split(y)

        def add(task: tuple[int, int]) -> None:
            start, first = task
            add_products(words, *found[first], start, self.table[first : first + LANES])

        for start in range(0, len(self.table), _TOGETHER):
            firsts = range(start, min(start + _TOGETHER, len(self.table)), LANES)
            found = dict(zip(firsts, pool.map(numbers, firsts), strict=True))
            list(pool.map(add, itertools.product(range(0, self.cross.shape[1], STRIP), firsts)))


Block = tuple[NDArray[np.bool_], NDArray[np.uint8], NDArray[np.floating]]
"""Which rows are validation rows; their masks, 8 examples to a byte; their margins [rows, T]."""


def gathered(blocks: Iterable[Block]) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.floating]]]:
    """Masks and margins of one group of rows at a time, with the group's number: 0 for training rows, 1 for validation.

    As many rows as sums are fast with, unless their margins take much memory; the rest of each group at the end.
    """
    masks: tuple[list, list] = [], []
    margins: tuple[list, list] = [], []

    def take(group: int) -> tuple[int, NDArray[np.uint8], NDArray[np.floating]]:
        piece = group, np.concatenate(masks[group]), np.concatenate(margins[group])
        masks[group].clear()
        margins[group].clear()
        return piece

    for validation, packed, values in blocks:
        for group in (0, 1):
            chosen = validation == bool(group)
            masks[group].append(packed[chosen])
            margins[group].append(values[chosen])
            if sum(map(len, masks[group])) >= _PIECE or sum(y.nbytes for y in margins[group]) >= _PIECE_BYTES:
                yield take(group)
    for group in (0, 1):
        if masks[group]:
            yield take(group)
