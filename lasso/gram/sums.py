"""Sums over rows that hold everything the LASSO needs: counts X'X of the masks, and X'Y, Y'1, Y'Y of the margins.

Exactness: counts are integers. Float16 margins are multiples of 2**-24, so a float64 sum of them is exact while the sum
of |margin| stays below 2**29. Results therefore depend neither on the order of rows nor on the number of threads.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_STRIP = 512
"""Examples whose counts one matrix product gives."""
_SMALL = 512
"""Examples below which a matrix product is fast enough; it needs no compiled kernel."""

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

    def add(self, masks: NDArray[np.bool_]) -> None:
        """Add masks [rows, N_train]; thousands at a time, as population count fills rows up to a multiple of 512."""
        self.rows += len(masks)
        if self._route == "popcount":
            self._add_by_popcount(masks)
            return
        for start in range(0, len(masks), 2**20):  # float32 counts are exact below 2**24
            x = masks[start : start + 2**20].astype(np.float32)
            for at in range(0, len(self.counts), _STRIP):
                strip = x[:, at : at + _STRIP].T @ x[:, at:]
                self.counts[at : at + _STRIP, at:] += strip.astype(np.int32)

    def _add_by_popcount(self, masks: NDArray[np.bool_]) -> None:
        from datamodels.lasso.gram.popcount import add_counts, pack

        bits = pack(masks.view(np.uint8))
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

    def add(self, masks: NDArray[np.float64], margins: NDArray[np.floating]) -> None:
        """Add masks [rows, N_train] of 0 and 1 and margins [rows, T] of any precision."""
        y = np.ascontiguousarray(margins, np.float64)
        self.cross[:] += y.T @ masks
        self.sums[:] += y.sum(axis=0)
        self.squares[:] += (y * y).sum(axis=0)
