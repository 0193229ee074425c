"""Accelerated proximal gradient (FISTA) for a tile of targets at once, in torch: the solver for GPUs.

Every iteration is one matrix product R W with R = Z'Z/n - I and W [N, TILE]. The gradient at the extrapolated point
follows from that at the weights, which are linear in each other, so that the duality gap costs nothing more. Momentum
restarts wherever it points uphill (O'Donoghue & Candes 2015); along the path W and R W are extrapolated linearly.

Precision. The unit diagonal is kept out of the product. On a GPU, R and W are split into two parts of 11 bits each,
whose products TensorFloat-32 forms exactly; plain TF32 is off. Sums are float32, so certificates are recomputed in
float64 elsewhere. The tile has a fixed width (narrower ones are padded), so that results do not depend on how the
targets are divided.

Beck & Teboulle, "A fast iterative shrinkage-thresholding algorithm" (SIAM J. Imaging Sci. 2009).
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE = 256
"""Targets solved together, on any device."""
_HARD_LIMIT = 20_000
"""Iterations at one lambda after which a target counts as not converged."""


class Correlations:
    """R on a device, and products with it."""

    def __init__(self, corr: NDArray[np.float32], device: str, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.split = self.device.type == "cuda" and dtype == torch.float32
        whole = torch.from_numpy(corr).to(self.device, dtype)
        self.parts = halves(whole) if self.split else (whole,)
        self.lipschitz = self._largest_eigenvalue()

    def __call__(self, w: Tensor) -> Tensor:
        """R w of w [N, TILE]"""
        if not self.split:
            return self.parts[0] @ w
        return split_product(self.parts, w)

    def _largest_eigenvalue(self) -> float:
        """Of R + I, from above by a little, by power iteration."""
        v = torch.ones(len(self.parts[0]), TILE, device=self.device, dtype=self.dtype)
        v[1::2, 1:] *= -1
        top = 1.0
        for _ in range(60):
            v = v / torch.linalg.vector_norm(v, dim=0)
            v = self(v) + v
            top = float(torch.linalg.vector_norm(v, dim=0).max())
        return 1.05 * top


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as a sum of two tensors of which TF32, with its 11 bits of mantissa, loses but the last bits of the second."""
    high = (x.view(torch.int32) & -8192).view(torch.float32)
    return high, x - high


def split_product(parts: tuple[Tensor, ...], w: Tensor) -> Tensor:
    """The product of a matrix in halves with w, in TF32 where the device has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        (high, low), (w_high, w_low) = parts, halves(w)
        return high @ w_high + (high @ w_low + low @ w_high)
    finally:
        torch.set_float32_matmul_precision(before)


class Tile:
    """Weights [N, TILE] of some targets on their way along the path."""

    def __init__(self, corr: Correlations, cov: NDArray[np.float64], var: NDArray[np.float64], place: int = 0) -> None:
        """cov [N, t], var [t]; place: column of the tile that the first target takes, place + t at most TILE."""
        self.corr, self.inside = corr, slice(place, place + len(var))
        self.cov, self.var = self.padded(cov), self.padded(var, 1.0)
        self.w = torch.zeros_like(self.cov)
        self.h = torch.zeros_like(self.cov)
        self._before: tuple[Tensor, Tensor] | None = None

    def padded(self, values: NDArray[np.float64], other: float = 0.0) -> Tensor:
        """values [..., t] in their columns of the tile."""
        wide = np.full((*values.shape[:-1], TILE), other)
        wide[..., self.inside] = values
        return torch.from_numpy(wide).to(self.corr.device, self.corr.dtype)

    def foresee(self, ratio: float) -> None:
        """Extrapolate to the next lambda; weights that would change sign stop at 0."""
        before, self._before = self._before, (self.w, self.h)
        if before is not None:
            ahead = self.w + ratio * (self.w - before[0])
            self.w = torch.where(ahead * self.w > 0, ahead, torch.zeros_like(ahead))
            self.h = self.corr(self.w)

    def gaps(self, lam: Tensor) -> Tensor:
        """Relative duality gaps [TILE]."""
        grad = self.cov - self.h - self.w
        steepest = grad.abs().amax(dim=0).clamp_min(1e-30)
        weight_cov, weight_grad = (self.w * self.cov).sum(dim=0), (self.w * grad).sum(dim=0)
        along = self.var - weight_cov
        squares = (along - weight_grad).clamp_min(0)
        scale = torch.minimum(lam / steepest, along / squares.clamp_min(1e-30)).maximum(-lam / steepest)
        primal = squares / 2 + lam * self.w.abs().sum(dim=0)
        return (primal - scale * along + scale * scale * squares / 2).clamp_min(0) / (self.var / 2)

    def minimise(self, lams: NDArray[np.float64], aim: float, enough: float) -> NDArray[np.float64]:
        """Iterate at lams [t] until every gap is at most aim, or at most enough and stalls; returns the gaps [t].

        A target that is there stays as it is, so that it does not depend on its company.
        """
        lam = self.padded(lams, 1.0)
        step = 1.0 / self.corr.lipschitz
        y_w, y_h = self.w, self.h
        momentum = torch.ones(TILE, device=self.corr.device, dtype=self.corr.dtype)
        best, stalled = torch.full_like(self.var, torch.inf), torch.zeros_like(self.var)
        gaps = self.gaps(lam)
        for _ in range(_HARD_LIMIT):
            stalled = torch.where(gaps < 0.9 * best, torch.zeros_like(stalled), stalled + 1)
            best = torch.minimum(best, gaps)
            going = (gaps > aim) & (stalled < torch.where(gaps > enough, 500, 10))
            if not bool(going.any()):
                break
            grad = self.cov - y_h - y_w
            moved = y_w + step * grad
            new_w = moved - moved.clamp(-step * lam, step * lam)
            new_h = self.corr(new_w)
            uphill = ((y_w - new_w) * (new_w - self.w)).sum(dim=0) > 0
            grown = torch.where(uphill, torch.ones_like(momentum), (1 + (1 + 4 * momentum**2).sqrt()) / 2)
            push = torch.where(uphill, torch.zeros_like(momentum), (momentum - 1) / grown)
            y_w = new_w + push * (new_w - self.w)
            y_h = new_h + push * (new_h - self.h)
            momentum = grown
            self.w = torch.where(going, new_w, self.w)
            self.h = torch.where(going, new_h, self.h)
            gaps = torch.where(going, self.gaps(lam), gaps)
        return gaps[self.inside].double().cpu().numpy()

    def weights(self) -> NDArray[np.float64]:
        """[N, t]"""
        return self.w[:, self.inside].double().cpu().numpy()


def choose(
    tile: Tile,
    held: Tensor,
    cross: NDArray[np.float64],
    squares: NDArray[np.float64],
    lams: NDArray[np.float64],
    tol: float,
    patience: int,
    least: int,
    tell: Callable[[NDArray[np.float64]], None] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Follow the paths lams [k, t] of a tile and choose each target's lambda by its held-out error.

    held: second moments of the held-out rows [N, N]; cross [N, t], squares [t]: theirs with the targets. tell: called
    with the weights at every lambda. Returns (index chosen [t], lambdas tried [t], held-out squares [t], largest gap
    [t], weights [N, t]).
    """
    width = len(squares)
    best, tried = np.zeros(width, np.int32), np.zeros(width, np.int32)
    best_squares, worst = np.full(width, np.inf), np.zeros(width)
    going, best_w = np.ones(width, bool), np.zeros(cross.shape)
    cross_t = tile.padded(cross).double()
    for i in range(len(lams)):
        steps = np.diff(lams[max(i - 2, 0) : i + 1, 0])
        tile.foresee(steps[1] / steps[0] if i > 1 else 0.0)
        gaps = tile.minimise(lams[i], 1e-2 * tol, tol)
        if tell is not None:
            tell(tile.weights())
        quadratic = (tile.w.double() * (held @ tile.w).double()).sum(dim=0)
        linear = (tile.w.double() * cross_t).sum(dim=0)
        found = squares + (quadratic - 2 * linear)[tile.inside].cpu().numpy()
        worst[going] = np.maximum(worst, gaps)[going]
        tried[going] += 1
        better = going & (found < best_squares)
        best[better], best_squares[better] = i, found[better]
        if better.any():
            best_w[:, better] = tile.weights()[:, better]
        going &= ~((tried >= least) & (i - best >= patience) & ~better)
        if not going.any():
            break
    return best, tried, best_squares, worst, best_w
