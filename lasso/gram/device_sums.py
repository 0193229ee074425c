"""The sums of datamodels.lasso.gram.moments on a device of torch: the same numbers, from exact products of float16 matrices.

Counts of up to 8,192 rows, and sums of as many integers of 11 bits, are exact in float32; margins are divided into such
integers, two to four a margin. Blocks are copied from page-locked memory while the device works on those before. What
comes out is checked against sums that were made in another way.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodels.lasso.gram.moments import Cross
from datamodels.lasso.solver.halves import product
from datamodels.train import WorkError

_ROWS = 8192
_STRIP = 2048
_TARGETS = 2048
"""Targets of one product with masks."""
_BITS = 11


def _sent(array: NDArray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Counter:
    """Counts X'X of masks, on and right of the diagonal."""

    def __init__(self, n_train: int, device: torch.device) -> None:
        self.device, self.n_train = device, n_train
        self.counts: Tensor | None = None
        """int32 [N, N], only while there are any"""
        self._expected = torch.zeros(n_train, dtype=torch.float64, device=device)

    def add(self, masks: NDArray[np.bool_]) -> None:
        """Add masks [rows, N]."""
        if self.counts is None:
            self.counts = torch.zeros((self.n_train, self.n_train), dtype=torch.int32, device=self.device)
        for start in range(0, len(masks), _ROWS):
            x = _sent(masks[start : start + _ROWS].view(np.uint8), self.device).half()
            sizes = x.sum(dim=1, dtype=torch.float64)
            for at in range(0, self.n_train, _STRIP):
                strip = x[:, at : at + _STRIP].T
                self.counts[at : at + _STRIP, at:] += product(strip, x[:, at:]).int()
                self._expected[at : at + _STRIP] += strip.double() @ sizes

    def move_into(self, counts: NDArray[np.int32]) -> None:
        """Add the counts to those on and right of the diagonal, and begin anew. Raises WorkError if they are wrong."""
        if self.counts is None:
            return
        total = torch.zeros_like(self._expected)
        for at in range(0, len(counts), _STRIP):
            strip = self.counts[at : at + _STRIP, at:]
            height = len(strip)
            total[at : at + height] += strip.sum(dim=1)
            total[at + height :] += strip[:, height:].sum(dim=0)
            counts[at : at + height, at:] += strip.cpu().numpy()
        if not torch.equal(total, self._expected):
            raise WorkError(f"counts of masks that were made on {self.device} do not add up: set fit.solver to descent")
        self.counts = None
        self._expected.zero_()


class DeviceCross(Cross):
    """Sums with the margins of some targets."""

    def __init__(self, n_train: int, width: int, first: int, device: torch.device) -> None:
        super().__init__(n_train, width, first)
        self.device = device
        self._made = torch.zeros(self._cross.shape, dtype=torch.float64, device=device)
        self._moments = torch.zeros((4, len(self._sums)), dtype=torch.float64, device=device)
        """sum, sum of squares, and of margin times size of the mask, of its absolute value"""
        self._pending: list[tuple[NDArray[np.uint8], NDArray[np.float16]]] = []

    def add_packed(self, packed: NDArray[np.uint8], margins: NDArray[np.floating]) -> None:
        """What `Cross.add_packed` does, once enough rows have come to keep a device busy."""
        self._pending.append((packed, margins.astype(np.float16)))
        if sum(len(block) for block, _ in self._pending) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        packed, margins = (np.concatenate(blocks) for blocks in zip(*self._pending, strict=True))
        self._pending = []
        places = torch.arange(7, -1, -1, device=self.device, dtype=torch.uint8)
        for start in range(0, len(packed), _ROWS):
            block = _sent(packed[start : start + _ROWS], self.device)
            masks = ((block[:, :, None] >> places) & 1).reshape(len(block), -1)[:, : self._made.shape[1]].half()
            wide = np.zeros((len(block), len(self._sums)), np.float16)
            wide[:, self._inside] = margins[start : start + _ROWS]
            self._add(masks, _sent(wide, self.device).double())

    def _add(self, masks: Tensor, margins: Tensor) -> None:
        sized = masks.sum(dim=1, dtype=torch.float64)[:, None] * margins
        for row, values in zip(self._moments, (margins, margins**2, sized, sized.abs()), strict=True):
            row += values.sum(dim=0)
        for quantum, integers in _integers(margins):
            columns = integers.T.contiguous()
            for at in range(0, len(columns), _TARGETS):
                tile = slice(at, at + _TARGETS)
                self._made[tile] += quantum * product(columns[tile], masks).double()

    def finish(self) -> None:
        self._flush()
        sums, squares, sized, absolute = self._moments
        if not bool(((self._made.sum(dim=1) - sized).abs() <= 1e-9 * absolute).all()):
            raise WorkError(f"sums of margins made on {self.device} do not add up: set fit.solver to descent")
        self._cross[:] = self._made.cpu().numpy()
        self._sums[:], self._squares[:] = sums.cpu().numpy(), squares.cpu().numpy()
        del self._made


def _integers(margins: Tensor) -> Iterator[tuple[float, Tensor]]:
    """(quantum, float16 integers of 11 bits) that add up to margins, which are float16's numbers.

    The device is waited for once: the largest and the smallest tell how many there are.
    """
    largest, finest = torch.stack([margins.abs().max(), _finest(margins)]).tolist()
    bits, rest = math.frexp(largest)[1], margins
    while largest and 2.0**bits > max(finest, 2.0**-24):
        bits -= _BITS
        integers = (rest / 2.0**bits).trunc()
        rest = rest - integers * 2.0**bits
        yield 2.0**bits, integers.half()


def _finest(margins: Tensor) -> Tensor:
    """A power of two that all of float16's numbers in margins are multiples of."""
    _, exponent = torch.frexp(margins.abs().where(margins != 0, torch.inf).min())
    return torch.ldexp(torch.ones((), dtype=torch.float64, device=margins.device), exponent - _BITS)
