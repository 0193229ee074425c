"""Accelerated proximal gradient (FISTA) for a tile of targets at once, in torch: the solver for GPUs.

Every iteration is one product R W with R = Z'Z/n - I and W [N, TILE]. The gradient at the extrapolated point follows
from that at the weights, which are linear in each other, so that the duality gap costs nothing more. Momentum restarts
wherever it points uphill (O'Donoghue & Candes 2015); along the path W is extrapolated linearly.

Precision. All is float64 but the products, which are as good as in float32. A refit counts from an anchor: products are
of W less the anchor, whose own product was made in float64, so that their error vanishes as W comes close. The tile has
a fixed width (narrower ones are padded), so that results do not depend on how the targets are divided.

Beck & Teboulle, "A fast iterative shrinkage-thresholding algorithm" (SIAM J. Imaging Sci. 2009).
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lasso.correlations import Correlations, HeldoutMasks

TILE = 256
"""Targets solved together, on any device."""
_AIMS = (0.5, 1e-2, 1e-3)
"""Relative gaps, over the tolerance, on the way, and of lambdas whose held-out errors come close."""
_IDLE = 100
"""Iterations without progress after which such a lambda is left: products in float32 allow no smaller gap."""
_DOUBT = 30.0
"""What a relative gap leaves open of the held-out squared error, over gap times squares."""
_HARD_LIMIT = 20_000
"""Iterations at one lambda after which a target counts as not converged."""
_ROUNDS = 6
"""Anchors of a refit at most."""

Vector = NDArray[np.float64]


def bytes_needed(n_train: int) -> int:
    """Device memory of R while it is made and of a tile's tensors, at most."""
    return 4 * n_train**2 + 8 * 40 * n_train * TILE


class Tile:
    """Weights [N, TILE] of some targets at some lambdas."""

    def __init__(self, corr: Correlations, cov: Vector, var: Vector, place: int = 0) -> None:
        """cov [N, t], var [t]; place: column of the tile that the first target takes, place + t at most TILE."""
        self.corr, self.inside = corr, slice(place, place + len(var))
        self.cov, self.var = self.padded(cov), self.padded(var, 1.0)
        self.w = torch.zeros_like(self.cov)
        self.h = torch.zeros_like(self.cov)
        self._before: Tensor | None = None
        self._anchor: tuple[Tensor, Tensor] | None = None

    def padded(self, values: NDArray, other: float = 0.0) -> Tensor:
        """values [..., t] in their columns of the tile."""
        wide = np.full((*values.shape[:-1], TILE), other)
        wide[..., self.inside] = values
        return torch.from_numpy(wide).to(self.corr.device)

    def unpadded(self, values: Tensor) -> Vector:
        return values[..., self.inside].cpu().numpy()

    def start(self, weights: Vector) -> None:
        """Begin at weights [N, t], with their product in float64."""
        self.w = self.padded(weights)
        self.anchor()

    def anchor(self) -> None:
        """Make R w in float64, and count from here."""
        self.h = self.corr.exactly(self.w)
        self._anchor = self.w, self.h

    def foresee(self, ratio: float) -> None:
        """Extrapolate to the next lambda; weights that would change sign stop at 0."""
        before, self._before = self._before, self.w
        if before is not None:
            ahead = self.w + ratio * (self.w - before)
            self.w = torch.where(ahead * self.w > 0, ahead, 0.0)
            self.h = self._product(self.w)

    def _product(self, w: Tensor) -> Tensor:
        if self._anchor is None:
            return self.corr(w)
        return self._anchor[1] + self.corr(w - self._anchor[0])

    def gaps(self, lam: Tensor) -> Tensor:
        """Relative duality gaps [TILE] (lasso.certificate has the formula)."""
        grad = self.cov - self.h - self.w
        steepest = grad.abs().amax(dim=0).clamp_min(1e-300)
        weight_cov, weight_grad = (self.w * self.cov).sum(dim=0), (self.w * grad).sum(dim=0)
        along = self.var - weight_cov
        squares = (along - weight_grad).clamp_min(0)
        scale = torch.minimum(lam / steepest, along / squares.clamp_min(1e-300)).maximum(-lam / steepest)
        primal = squares / 2 + lam * self.w.abs().sum(dim=0)
        return (primal - scale * along + scale * scale * squares / 2).clamp_min(0) / (self.var / 2)

    def residuals(self, lam: Tensor) -> Tensor:
        """Largest violation [TILE] of the optimality (KKT) conditions, over lambda."""
        grad = self.cov - self.h - self.w
        off = torch.where(self.w == 0, grad.abs() - lam, (grad - lam * self.w.sign()).abs())
        return off.amax(dim=0).clamp_min(0) / lam

    def minimise(self, lams: Vector, aims: float | Vector, enough: float, idle: int = 10) -> Vector:
        """Iterate at lams [t] until every gap is at most its aim, or at most enough and stalls; returns the gaps [t].

        idle: iterations without progress that count as stalling. A target that is there stays as it is, so that it does
        not depend on its company.
        """
        lam = self.padded(lams, 1.0)
        aim = self.padded(np.broadcast_to(aims, lams.shape), np.inf)
        step = 1.0 / self.corr.lipschitz
        y_w, y_h = self.w, self.h
        momentum = torch.ones_like(self.var)
        best, stalled = torch.full_like(self.var, torch.inf), torch.zeros_like(self.var)
        gaps = self.gaps(lam)
        for _ in range(_HARD_LIMIT):
            stalled = torch.where(gaps < 0.9 * best, 0.0, stalled + 1)
            best = torch.minimum(best, gaps)
            going = (gaps > aim) & (stalled < torch.where(gaps > enough, 500, idle))
            if not bool(going.any()):
                break
            grad = self.cov - y_h - y_w
            moved = y_w + step * grad
            new_w = moved - moved.clamp(-step * lam, step * lam)
            new_h = self._product(new_w)
            uphill = ((y_w - new_w) * (new_w - self.w)).sum(dim=0) > 0
            grown = torch.where(uphill, 1.0, (1 + (1 + 4 * momentum**2).sqrt()) / 2)
            push = torch.where(uphill, 0.0, (momentum - 1) / grown)
            y_w = new_w + push * (new_w - self.w)
            y_h = new_h + push * (new_h - self.h)
            momentum = grown
            self.w = torch.where(going, new_w, self.w)
            self.h = torch.where(going, new_h, self.h)
            gaps = torch.where(going, self.gaps(lam), gaps)
        return self.unpadded(gaps)


class _Best:
    """The best lambda of every target of a tile so far, and how it compares with another."""

    def __init__(self, tile: Tile, held: HeldoutMasks, cross: Vector, squares: Vector) -> None:
        self.tile, self.held, self.squares = tile, held, squares
        self.cross = tile.padded(cross)
        width = len(squares)
        self.index, self.error = np.zeros(width, np.int32), np.full(width, np.inf)
        self.aim = np.full(width, _AIMS[0])
        self.w, self.h = torch.zeros_like(tile.w), torch.zeros_like(tile.w)

    def errors(self) -> Vector:
        """Held-out squares [t] of the tile's weights."""
        linear = (self.tile.w * self.cross).sum(dim=0)
        return self.squares + self.tile.unpadded(self.held.squares(self.tile.w) - 2 * linear)

    def compare(self, i: int, lams: Vector, tol: float, going: NDArray[np.bool_]) -> None:
        """Note which targets [t] are better off at lambda i; both sides are solved further where they come close."""
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

    def _solve_further(self, lams: Vector, aim: float, tol: float, these: NDArray[np.bool_]) -> None:
        if not these.any():
            return
        tile, here = self.tile, (self.tile.w, self.tile.h)
        tile.w, tile.h = self.w, self.h
        tile.minimise(lams[self.index, np.arange(len(these))], np.where(these, aim * tol, np.inf), tol, _IDLE)
        self.error, self.aim = np.where(these, self.errors(), self.error), np.where(these, aim, self.aim)
        self.w, self.h = tile.w, tile.h
        tile.w, tile.h = here


class Choice(NamedTuple):
    """What a path gave for each of t targets."""

    chosen: NDArray[np.int32]
    """[t]: of the lambda chosen"""
    tried: NDArray[np.int32]
    """[t]: lambdas"""
    squares: Vector
    """[t]: held-out squares"""
    gap: Vector
    """[t]: largest along the path"""
    weights: Vector
    """[N, t]"""


def choose(
    tile: Tile, held: HeldoutMasks, cross: Vector, squares: Vector, lams: Vector, tol: float, patience: int, least: int
) -> Choice:
    """Follow the paths lams [k, t] of a tile and choose each target's lambda by its held-out error.

    cross [N, t], squares [t]: of the held-out rows with the targets.
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
    return Choice(best.index, tried, best.error, worst, tile.unpadded(best.w))


def refit(tile: Tile, lams: Vector, weights: Vector, tol: float) -> tuple[Vector, Vector]:
    """Minimise at lams [t] from weights [N, t]; returns weights and relative gaps, from exact gradients.

    Each round counts from an anchor of its own, until the gap is far below tol or no longer halves.
    """
    lam = tile.padded(lams, 1.0)
    tile.start(weights)
    best, best_gap = tile.w, torch.full_like(tile.var, torch.inf)
    going = torch.ones_like(tile.var, dtype=torch.bool)
    for _ in range(_ROUNDS):
        gaps = tile.gaps(lam)
        better = going & (gaps < best_gap)
        going &= (gaps > 1e-6 * tol) & (gaps <= 0.5 * best_gap)
        best, best_gap = torch.where(better, tile.w, best), torch.where(better, gaps, best_gap)
        wanted = tile.unpadded(going)
        if not wanted.any():
            break
        tile.minimise(lams, np.where(wanted, 0.5e-6 * tol, np.inf), 0.5 * tol)
        tile.anchor()
    return tile.unpadded(best), tile.unpadded(best_gap)


def certify(tile: Tile, lams: Vector, weights: Vector) -> tuple[Vector, Vector]:
    """Relative gaps [t] and KKT residuals over lambda [t] of any weights [N, t], in float64 throughout."""
    lam = tile.padded(lams, 1.0)
    tile.start(weights)
    return tile.unpadded(tile.gaps(lam)), tile.unpadded(tile.residuals(lam))
