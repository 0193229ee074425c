"""The correlations of the masks on a device of torch, and products with them in split and in double precision.

With counts K of n rows, means m and deviations s, R_ij = (K_ij - n m_i m_j) / (n s_i s_j) off the diagonal. Masks of
one alpha have counts near one value, so that the integers Q_ij = K_ij - a_i - a_j + k, with a_i = n m_i m and k = n m^2
rounded and m the mean of all means, are small: up to 2,048 float16 holds them in one matrix, else 2,048 H + L in two.
What they leave of K_ij - n m_i m_j is r_i + r_j - r - n d_i d_j with d_i = m_i - m and the remainders r of rounding.
"""

import numpy as np
import torch
from torch import Tensor

from datamodels.lasso.design import Counts, Scale
from datamodels.lasso.solver.halves import Halves

_STRIP = 512
_BASE = 2048
_UNITS = 16
"""Held-out masks of 0 and 1 are moved by as many of these parts of 1 as bring their mean nearest to 0: sums of weights
of one sign then stay small, and so does what rounding takes off them."""
_BYTES = 256
"""Bytes of held-out rows that are unpacked at a time."""


class Correlations:
    """R = Z'Z/n - I [N, N] of the rows of one or both groups, Z standardised by `scale` of these rows."""

    def __init__(self, scale: Scale, counts: Counts, groups: tuple[int, ...], device: torch.device) -> None:
        self.device, self.rows, self.n_train = device, scale.rows, len(scale.mean)
        middle = float(scale.mean.mean())
        plane, level = np.rint(scale.rows * scale.mean * middle), np.rint(scale.rows * middle * middle)
        self.inv = torch.from_numpy(scale.inv).to(device)[:, None]
        self._off = torch.from_numpy(scale.mean - middle).to(device)[:, None]
        self._rest = torch.from_numpy(plane - scale.rows * scale.mean * middle).to(device)[:, None]
        self._level_rest = float(level - scale.rows * middle * middle)
        self._low = torch.empty((self.n_train, self.n_train), dtype=torch.float16, device=device)
        self._high: Tensor | None = None
        planes = torch.from_numpy(plane.astype(np.int32)).to(device)
        for start in range(0, self.n_train, _STRIP):
            stop = min(start + _STRIP, self.n_train)
            values = torch.from_numpy(counts.strip(groups, start, stop)).to(device)
            values = values - planes[start:stop, None] - (planes - int(level))
            values.diagonal(start).zero_()
            self._put(start, values)
        self.products = 0
        """Made so far, by either way."""
        self.lipschitz = self._largest_eigenvalue()

    def _put(self, start: int, values: Tensor) -> None:
        """Store rows of Q, int32."""
        rows = slice(start, start + len(values))
        if int(values.abs().max()) > _BASE:
            if self._high is None:
                self._high = torch.zeros_like(self._low)
            high = torch.div(values + _BASE // 2, _BASE, rounding_mode="floor")
            self._high[rows] = high.half()
            values = values - _BASE * high
        self._low[rows] = values.half()

    def __call__(self, w: Tensor) -> Tensor:
        """R w of w [N, t] in float64, as precise as in float32."""
        self.products += 1
        v = w * self.inv
        halves = Halves(v)
        found = halves.times(self._low)
        if self._high is not None:
            found += _BASE * halves.times(self._high)
        return self._complete(found, v)

    def exactly(self, w: Tensor) -> Tensor:
        """R w in float64 throughout."""
        self.products += 1
        v = w * self.inv
        found = torch.empty_like(v)
        for start in range(0, self.n_train, _STRIP):
            strip = slice(start, start + _STRIP)
            values = self._low[strip].double()
            if self._high is not None:
                values += _BASE * self._high[strip].double()
            found[strip] = values @ v
        return self._complete(found, v)

    def _complete(self, found: Tensor, v: Tensor) -> Tensor:
        """From Q v to R w."""
        total = v.sum(dim=0)
        found += self._rest * total + (self._rest * v).sum(dim=0) - self._level_rest * total
        found -= self.rows * self._off * (self._off * v).sum(dim=0)
        found -= (2 * self._rest - self._level_rest - self.rows * self._off**2) * v  # R has no diagonal
        return found * self.inv / self.rows

    def _largest_eigenvalue(self) -> float:
        """Of R + I, from above by a little, by power iteration."""
        v = torch.ones(self.n_train, 8, device=self.device, dtype=torch.float64)
        v[1::2, 1:] *= -1
        v[::3, 2:] *= -1
        top = torch.ones(8)
        for _ in range(60):
            v = v / torch.linalg.vector_norm(v, dim=0).clamp_min(1e-300)
            v = self(v) + v
            top = torch.linalg.vector_norm(v, dim=0)
        return 1.05 * float(top.max())


class HeldoutMasks:
    """The masks of the held-out rows on a device, standardised by the training rows."""

    def __init__(self, bits: np.ndarray, rows: int, mean: np.ndarray, corr: Correlations) -> None:
        """bits uint64 [N, words]: the rows that hold each example, 64 to a word; mean [N]: over the training rows."""
        self.packed = torch.from_numpy(np.ascontiguousarray(bits).view(np.uint8)).to(corr.device)
        self.rows, self.inv = rows, corr.inv
        self.mean = torch.from_numpy(mean).to(corr.device)[:, None]
        self._level = round(_UNITS * float(mean.mean()))

    def squares(self, w: Tensor, exactly: bool = False) -> Tensor:
        """||Z w||^2 [t] of standardised weights [N, t]; exactly: with products in float64 throughout."""
        v = w * self.inv
        halves, shift, level = Halves(v), (self.mean * v).sum(dim=0), self._level * v.sum(dim=0)
        total, found = torch.zeros_like(shift), torch.zeros_like(shift)
        places = torch.arange(8, device=w.device, dtype=torch.uint8)
        for packed in self.packed.split(_BYTES, dim=1):
            ones = ((packed[:, :, None] >> places) & 1).reshape(len(packed), -1)
            masks = (ones.half() * _UNITS - self._level).T
            product = masks.double() @ v if exactly else halves.times(masks)
            predicted = (product + level) / _UNITS * ones.amax(dim=0)[:, None]  # empty rows fill up words
            total += predicted.sum(dim=0)
            found += (predicted * predicted).sum(dim=0)
        return found + shift * (self.rows * shift - 2 * total)
