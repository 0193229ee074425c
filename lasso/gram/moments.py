"""Sums over rows that hold everything the LASSO needs: counts X'X of the masks, and X'Y, Y'1, Y'Y of the margins.

Exactness. Counts are integers. Float16 margins are multiples of 2**-24, so a float64 sum of them is exact while the
sum of |margin| stays below 2**29, whatever the order: the results depend neither on the number of threads nor on how
the targets are divided. Margins are besides summed in tiles of fixed shape aligned to the absolute target index, so
that this division never matters.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from datamodels.lasso.gram.device_sums import Counter

TILE = 128
"""Targets whose margins are summed together."""
_STRIP = 512
"""Examples whose counts one matrix product, or one task of a thread, gives."""
_ROWS, _BYTES = 8192, 2**28
"""Rows, or bytes of masks, that are gathered before their ones are counted: few at a time would be mostly padding."""
_SMALL = 512
"""Examples below which a matrix product is quick enough, and spares the compiling of kernels."""

Route = Literal["popcount", "product"]


def quickest_route(n_train: int) -> Route:
    """Population count of bits where the CPU has it for vectors, else float32 matrix products. Both are exact."""
    if n_train < _SMALL:
        return "product"
    from datamodels.lasso.gram.popcount import has_vector_popcount

    return "popcount" if has_vector_popcount() else "product"


class Gram:
    """Counts [N_train, N_train] of the rows that hold both example i and example j; the diagonal counts example i.

    Rows may be added before and after `finish`; `counts` are whole after it alone. They are made on a device of torch
    where one is given.
    """

    def __init__(self, n_train: int, route: Route | None = None, device: "torch.device | None" = None) -> None:
        self.rows = 0
        self.counts: NDArray[np.int32] = np.zeros((n_train, n_train), np.int32)
        self._route = route or quickest_route(n_train)
        self._pending: list[NDArray[np.bool_]] = []
        self._counter: Counter | None = None
        if device is not None:
            from datamodels.lasso.gram import device_sums

            self._counter = device_sums.Counter(n_train, device)

    def add(self, masks: NDArray[np.bool_]) -> None:
        """Add masks [rows, N_train]."""
        self.rows += len(masks)
        if self._counter:
            self._counter.add(masks)
        elif self._route == "product":
            for start in range(0, len(masks), 2**20):  # float32 counts are exact below 2**24
                self._multiply(masks[start : start + 2**20].astype(np.float32))
        elif len(masks):
            self._pending.append(masks)
            waiting = sum(map(len, self._pending))
            if waiting >= _ROWS or waiting * masks.shape[1] >= _BYTES:
                self.flush()

    def _multiply(self, masks: NDArray[np.float32]) -> None:
        for start in range(0, len(self.counts), _STRIP):
            strip = masks[:, start : start + _STRIP].T @ masks[:, start:]
            self.counts[start : start + _STRIP, start:] += strip.astype(np.int32)

    def flush(self) -> None:
        """Count what is pending."""
        if self._counter:
            self._counter.move_into(self.counts)
        if not self._pending:
            return
        from datamodels.lasso.gram.popcount import add_counts, pack

        masks = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        self._pending = []
        bits = pack(masks.view(np.uint8))
        del masks
        starts = range(0, len(self.counts), 64)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda start: add_counts(bits, self.counts, start, min(start + 64, len(bits))), starts))

    def finish(self) -> "Gram":
        """Take in what is pending and fill the lower triangle from the upper one, in place."""
        self.flush()
        for start in range(0, len(self.counts), _STRIP):
            stop = start + _STRIP
            for other in range(0, start, _STRIP):
                tile = slice(other, other + _STRIP)
                self.counts[start:stop, tile] = self.counts[tile, start:stop].T
            corner = np.triu(self.counts[start:stop, start:stop])
            self.counts[start:stop, start:stop] = corner + np.triu(corner, 1).T
        return self

    def clear(self) -> "Gram":
        """Begin anew in the same memory."""
        self.rows, self._pending = 0, []
        self.counts[:] = 0
        return self

    def absorb(self, rows: int, counts: NDArray[np.int32]) -> "Gram":
        """Add finished counts of other rows."""
        self.rows += rows
        self.counts += counts
        return self


class Cross:
    """Sums that involve the margins of some targets: cross [T, N_train] = Y'X, sums [T], squares [T], all float64.

    first: absolute index of the first target, which places the tiles; targets that need no place may leave it 0.
    """

    def __init__(self, n_train: int, width: int, first: int = 0) -> None:
        self._inside = slice(first % TILE, first % TILE + width)
        padded = -(-self._inside.stop // TILE) * TILE
        self._cross = np.zeros((padded, n_train))
        self._sums = np.zeros(padded)
        self._squares = np.zeros(padded)

    @property
    def cross(self) -> NDArray[np.float64]:
        return self._cross[self._inside]

    @property
    def sums(self) -> NDArray[np.float64]:
        return self._sums[self._inside]

    @property
    def squares(self) -> NDArray[np.float64]:
        return self._squares[self._inside]

    def add(self, masks: NDArray[np.float64], margins: NDArray[np.floating]) -> None:
        """Add masks [rows, N_train] of 0 and 1 and margins [rows, T] of any precision."""
        if not len(masks):
            return
        padded = np.zeros((len(margins), len(self._sums)))
        padded[:, self._inside] = margins
        for start in range(0, len(self._sums), TILE):
            tile = slice(start, start + TILE)
            margins_RT = np.ascontiguousarray(padded[:, tile])
            self._cross[tile] += margins_RT.T @ masks
            self._sums[tile] += margins_RT.sum(axis=0)
            self._squares[tile] += (margins_RT * margins_RT).sum(axis=0)

    def add_packed(self, packed: NDArray[np.uint8], margins: NDArray[np.floating]) -> None:
        """Add masks [rows, N_train / 8] of 8 examples to a byte, and margins [rows, T]."""
        self.add(np.unpackbits(packed, axis=1, count=self._cross.shape[1]).astype(np.float64), margins)

    def finish(self) -> None:
        """To be called after rows were added, before the sums are read."""

    def absorb(
        self, at: int, cross: NDArray[np.float64], sums: NDArray[np.float64], squares: NDArray[np.float64]
    ) -> None:
        """Add the sums of other rows, of the targets from place `at` on."""
        targets = slice(at, at + len(sums))
        self.cross[targets] += cross
        self.sums[targets] += sums
        self.squares[targets] += squares


def new_cross(n_train: int, width: int, first: int, device: "torch.device | None") -> Cross:
    """A Cross of no rows yet, whose sums are made on a device of torch where one is given."""
    if device is None:
        return Cross(n_train, width, first)
    from datamodels.lasso.gram.device_sums import DeviceCross

    return DeviceCross(n_train, width, first, device)
