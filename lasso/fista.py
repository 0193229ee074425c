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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE = 256
"""Targets solved together, on any device."""
_AIMS = (0.5, 1e-2, 1e-3)
"""Relative gaps, over the tolerance, on the way, and of lambdas whose held-out errors come close."""
_IDLE = 100
"""Iterations without progress after which such a lambda is left: float32 allows no smaller gap."""
_DOUBT = 30.0
"""What a relative gap leaves open of the held-out squared error, over gap times squares."""
_WORDS = 32
"""64-row words of the held-out masks that are unpacked at a time."""
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


def bytes_needed(n_train: int) -> int:
    """Device memory of R in two parts while it is made, and of a tile's tensors, roughly."""
    return 12 * n_train**2 + 64 * n_train * TILE


class HeldoutMasks:
    """The masks of the held-out rows on a device."""

    def __init__(
        self,
        bits: NDArray[np.uint64],
        rows: int,
        mean: NDArray[np.float64],
        inv: NDArray[np.float64],
        corr: Correlations,
    ) -> None:
        """bits [N, words]: the rows that hold each example, 64 to a word; mean, inv [N]: of the training rows."""
        self.bits, self.rows = bits, rows
        self.mean, self.inv = (torch.from_numpy(part).to(corr.device, corr.dtype)[:, None] for part in (mean, inv))

    def squares(self, w: Tensor) -> Tensor:
        """||Z w||^2 [TILE] of standardised weights [N, TILE], in float64."""
        v = w * self.inv
        shift = (self.mean * v).sum(dim=0).double()
        total, found = torch.zeros_like(shift), torch.zeros_like(shift)
        for start in range(0, self.bits.shape[1], _WORDS):
            piece = np.ascontiguousarray(self.bits[:, start : start + _WORDS]).view(np.uint8)
            packed = torch.from_numpy(piece).to(w.device)
            places = torch.arange(8, device=w.device, dtype=torch.uint8)
            masks = ((packed[:, :, None] >> places) & 1).reshape(len(packed), -1).to(w.dtype)
            predicted = (masks.T @ v).double()
            total += predicted.sum(dim=0)
            found += (predicted * predicted).sum(dim=0)
        return found + shift * (self.rows * shift - 2 * total)


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

    def minimise(
        self, lams: NDArray[np.float64], aims: float | NDArray[np.float64], enough: float, idle: int = 10
    ) -> NDArray[np.float64]:
        """Iterate at lams [t] until every gap is at most its aim, or at most enough and stalls; returns the gaps [t].

        idle: iterations without progress that count as stalling.

        A target that is there stays as it is, so that it does not depend on its company.
        """
        lam = self.padded(lams, 1.0)
        aim = self.padded(np.broadcast_to(aims, lams.shape), np.inf)
        step = 1.0 / self.corr.lipschitz
        y_w, y_h = self.w, self.h
        momentum = torch.ones(TILE, device=self.corr.device, dtype=self.corr.dtype)
        best, stalled = torch.full_like(self.var, torch.inf), torch.zeros_like(self.var)
        gaps = self.gaps(lam)
        for _ in range(_HARD_LIMIT):
            stalled = torch.where(gaps < 0.9 * best, torch.zeros_like(stalled), stalled + 1)
            best = torch.minimum(best, gaps)
            going = (gaps > aim) & (stalled < torch.where(gaps > enough, 500, idle))
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


class _Best:
    """The best lambda of every target of a tile so far, and how it compares with another."""

    def __init__(
        self, tile: Tile, held: HeldoutMasks, cross: NDArray[np.float64], squares: NDArray[np.float64]
    ) -> None:
        self.tile, self.held, self.squares = tile, held, squares
        self.cross = tile.padded(cross).double()
        width = len(squares)
        self.index, self.error = np.zeros(width, np.int32), np.full(width, np.inf)
        self.aim = np.full(width, _AIMS[0])
        self.w, self.h = torch.zeros_like(tile.w), torch.zeros_like(tile.w)

    def errors(self) -> NDArray[np.float64]:
        """Held-out squares [t] of the tile's weights."""
        linear = (self.tile.w.double() * self.cross).sum(dim=0)
        found = self.held.squares(self.tile.w) - 2 * linear
        return self.squares + found[self.tile.inside].cpu().numpy()

    def compare(self, i: int, lams: NDArray[np.float64], tol: float, going: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which targets [t] are better off at lambda i; both sides are solved further where they come close."""
        error, aim = self.errors(), np.full(len(self.squares), _AIMS[0])
        for finer in _AIMS[1:]:
            doubt = _DOUBT * tol * self.squares * (aim + self.aim)
            close = going & (abs(error - self.error) <= doubt)
            if not close.any():
                break
            self.tile.minimise(lams[i], np.where(close, finer * tol, np.inf), tol, _IDLE)
            error, aim = np.where(close, self.errors(), error), np.where(close, finer, aim)
            self._solve_further(lams, finer, tol, close & (self.aim > finer))
        better = going & (error < self.error)
        self.index[better], self.error[better], self.aim[better] = i, error[better], aim[better]
        wide = self.tile.padded(better.astype(np.float64)) > 0
        self.w, self.h = torch.where(wide, self.tile.w, self.w), torch.where(wide, self.tile.h, self.h)
        return better

    def _solve_further(self, lams: NDArray[np.float64], aim: float, tol: float, these: NDArray[np.bool_]) -> None:
        if not these.any():
            return
        tile, here = self.tile, (self.tile.w, self.tile.h)
        tile.w, tile.h = self.w, self.h
        tile.minimise(lams[self.index, np.arange(len(these))], np.where(these, aim * tol, np.inf), tol, _IDLE)
        self.error, self.aim = np.where(these, self.errors(), self.error), np.where(these, aim, self.aim)
        self.w, self.h = tile.w, tile.h
        tile.w, tile.h = here


def choose(
    tile: Tile,
    held: HeldoutMasks,
    cross: NDArray[np.float64],
    squares: NDArray[np.float64],
    lams: NDArray[np.float64],
    tol: float,
    patience: int,
    least: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Follow the paths lams [k, t] of a tile and choose each target's lambda by its held-out error.

    cross [N, t], squares [t]: of the held-out rows with the targets. Returns (index chosen [t], lambdas tried [t],
    held-out squares [t], largest gap [t], weights [N, t]).
    """
    width = len(squares)
    best = _Best(tile, held, cross, squares)
    tried, worst, going = np.zeros(width, np.int32), np.zeros(width), np.ones(width, bool)
    for i in range(len(lams)):
        steps = np.diff(lams[max(i - 2, 0) : i + 1, 0])
        tile.foresee(steps[1] / steps[0] if i > 1 else 0.0)
        gaps = tile.minimise(lams[i], np.where(going, _AIMS[0] * tol, np.inf), tol)
        worst[going] = np.maximum(worst, gaps)[going]
        tried[going] += 1
        best.compare(i, lams, tol, going)
        going &= ~((tried >= least) & (i - best.index >= patience))
        if not going.any():
            break
    weights = best.w[:, tile.inside].double().cpu().numpy()
    return best.index, tried, best.error, worst, weights
