"""Proximal gradient for a tile of targets at once, in torch: the solver for GPUs.

Every iteration is one product R W with R = Z'Z/n - I and W [N, TILE]. The gradient is linear in the weights, so that it
is known at extrapolated ones too: the duality gap and extrapolation along the path cost nothing more. Steps fit the
curvature of the last move (Barzilai & Borwein, "Two-point step size gradient methods", IMA J. Numer. Anal. 1988), since
few weights are nonzero and R is far from its largest eigenvalue among them. Where they bring no progress, FISTA takes
over: steps that always work, with momentum, which restarts wherever it points uphill (O'Donoghue & Candes 2015).

Precision. All is float64 but the products (datamodels.lasso.solver.halves). What the choice of lambda hangs on, and a
refit, counts from an anchor: products are of W less the anchor, whose own product was made in float64, so that their
error vanishes as W comes close. The tile has a fixed width (narrower ones are padded), so that results do not depend on
how the targets are divided.

Beck & Teboulle, "A fast iterative shrinkage-thresholding algorithm" (SIAM J. Imaging Sci. 2009).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodels.lasso.solver.correlations import Correlations

TILE = 256
"""Targets solved together, on any device."""
_BOLD = 10
"""Iterations without progress after which a target's steps are no longer longer than 1 / (largest eigenvalue)."""
_LONGEST, _WORSE = 100.0, 1e3
"""How many times longer a step may be, and how many times larger than the least a gap on the way there."""
_HARD_LIMIT = 20_000
"""Iterations at one lambda after which a target counts as not converged."""
_ROUNDS = 20
"""Anchors of a refit at most."""
_BRIEF, IDLE = 10, 100
"""Iterations without progress after which what is solved as far as can be gets a new anchor, and is left."""

Vector = NDArray[np.float64]
Pair = tuple[Tensor, Tensor]
"""w and R w, [N, TILE]"""


def bytes_needed(n_train: int, k: int = 100) -> int:
    """Device memory of R in two planes, of a tile's tensors, and of its weights at k lambdas, at most."""
    return 4 * n_train**2 + (8 * 40 + 4 * k) * n_train * TILE


class Tile:
    """Weights [N, TILE] of some targets at some lambdas."""

    def __init__(self, corr: Correlations, cov: Vector, var: Vector, place: int = 0) -> None:
        """cov [N, t], var [t]; place: column of the tile that the first target takes, place + t at most TILE."""
        self.corr, self.inside = corr, slice(place, place + len(var))
        self.cov, self.var = self.padded(cov), self.padded(var, 1.0)
        self.w = torch.zeros_like(self.cov)
        self.h = torch.zeros_like(self.cov)
        self._before: Pair | None = None
        self._ahead: Pair | None = None
        self._anchor: Pair | None = None
        self._step: Tensor | None = None

    def padded(self, values: NDArray, other: float = 0.0) -> Tensor:
        """values [t] or [N, t] in their columns of the tile; transposed on the device, which is quicker at it."""
        wide = np.full((TILE, *values.shape[:-1]), other)
        wide[self.inside] = values.T
        sent = torch.from_numpy(wide).to(self.corr.device)
        return sent.T.contiguous() if values.ndim == 2 else sent

    def unpadded(self, values: Tensor) -> Vector:
        """values [TILE] or [N, TILE] of the tile's targets."""
        columns = values.T if values.dim() == 2 else values
        return columns[self.inside].contiguous().cpu().numpy().T

    def start(self, weights: Vector) -> None:
        """Begin at weights [N, t], with their product in float64."""
        self.begin(self.padded(weights))

    def begin(self, w: Tensor) -> None:
        """Begin at w [N, TILE], with its product in float64."""
        self.w, self._ahead = w, None
        self.anchor()

    def anchor(self) -> None:
        """Make R w in float64, and count from here."""
        self.h = self.corr.exactly(self.w)
        self._anchor = self.w, self.h

    def state(self) -> tuple[Pair, Pair | None, Pair | None, Tensor | None]:
        """Where the tile is on its path."""
        return (self.w, self.h), self._before, self._anchor, self._step

    def restore(self, state: tuple[Pair, Pair | None, Pair | None, Tensor | None]) -> None:
        (self.w, self.h), self._before, self._anchor, self._step = state
        self._ahead = None

    def foresee(self, ratio: float) -> None:
        """Let the next lambda begin from what the last two give by extrapolation, which costs no product."""
        before, self._before = self._before, (self.w, self.h)
        if before is not None:
            self._ahead = self.w + ratio * (self.w - before[0]), self.h + ratio * (self.h - before[1])

    def _product(self, w: Tensor) -> Tensor:
        if self._anchor is None:
            return self.corr(w)
        return self._anchor[1] + self.corr(w - self._anchor[0])

    def gaps(self, lam: Tensor) -> Tensor:
        """Relative duality gaps [TILE] (datamodels.lasso.solver.gap has the formula)."""
        grad = self.cov - self.h - self.w
        steepest = grad.abs().amax(dim=0).clamp_min(1e-300)
        weight_cov, weight_grad = (self.w * self.cov).sum(dim=0), (self.w * grad).sum(dim=0)
        along = self.var - weight_cov
        squares = (along - weight_grad).clamp_min(0)
        scale = torch.minimum(lam / steepest, along / squares.clamp_min(1e-300)).maximum(-lam / steepest)
        primal = squares / 2 + lam * self.w.abs().sum(dim=0)
        return (primal - scale * along + scale * scale * squares / 2).clamp_min(0) / (self.var / 2)

    @staticmethod
    def _steps(move: Tensor, moved_h: Tensor, least: Tensor) -> Tensor:
        """Steps [TILE] that fit the curvature along the last moves [N, TILE] (Barzilai & Borwein 1988)."""
        steps = (move * move).sum(dim=0) / (move * (move + moved_h)).sum(dim=0).clamp_min(1e-300)
        return steps.maximum(least).minimum(_LONGEST * least)

    def residuals(self, lam: Tensor) -> Tensor:
        """Largest violation [TILE] of the optimality (KKT) conditions, over lambda."""
        grad = self.cov - self.h - self.w
        off = torch.where(self.w == 0, grad.abs() - lam, (grad - lam * self.w.sign()).abs())
        return off.amax(dim=0).clamp_min(0) / lam

    def minimise(self, lams: Vector, aims: float | Vector, enough: float, idle: int | Vector = _BRIEF) -> Vector:
        """Iterate at lams [t] until every gap is at most its aim, or at most enough and stalls; returns the gaps [t].

        idle: iterations without progress that count as stalling. A target that is there stays as it is, so that it does
        not depend on its company.
        """
        lam = self.padded(lams, 1.0)
        aim = self.padded(np.broadcast_to(aims, lams.shape), np.inf)
        patience = self.padded(np.broadcast_to(idle, lams.shape))
        safe = torch.full_like(self.var, 1.0 / self.corr.lipschitz)
        step = safe if self._step is None else self._step
        momentum, bold = torch.ones_like(self.var), torch.ones_like(lam, dtype=torch.bool)
        (y_w, y_h), self._ahead = self._ahead or (self.w, self.h), None
        best, stalled = torch.full_like(self.var, torch.inf), torch.zeros_like(self.var)
        gaps = self.gaps(lam)
        for _ in range(_HARD_LIMIT):
            stalled = torch.where(gaps < 0.9 * best, 0.0, stalled + 1)
            best = torch.minimum(best, gaps)
            going = (gaps > aim) & (stalled < torch.where(gaps > enough, 500.0, patience))
            if not bool(going.any()):
                break
            grad = self.cov - y_h - y_w
            moved = y_w + step * grad
            new_w = moved - moved.clamp(-step * lam, step * lam)
            new_h = self._product(new_w)
            bold &= (stalled < _BOLD) & (gaps <= _WORSE * best)
            move, uphill = new_w - y_w, ((y_w - new_w) * (new_w - self.w)).sum(dim=0) > 0
            step = torch.where(going, torch.where(bold, self._steps(move, new_h - y_h, safe), safe), step)
            restart = bold | uphill
            grown = torch.where(restart, 1.0, (1 + (1 + 4 * momentum**2).sqrt()) / 2)
            push = torch.where(restart, 0.0, (momentum - 1) / grown)
            y_w = new_w + push * (new_w - self.w)
            y_h = new_h + push * (new_h - self.h)
            momentum = grown
            self.w = torch.where(going, new_w, self.w)
            self.h = torch.where(going, new_h, self.h)
            gaps = torch.where(going, self.gaps(lam), gaps)
        self._step = step
        return self.unpadded(gaps)


def refit(tile: Tile, lams: Vector, weights: Vector, tol: float) -> tuple[Vector, Vector]:
    """Minimise at lams [t] from weights [N, t]; returns weights and relative gaps, from exact gradients.

    Each round counts from an anchor of its own, until the gap is far below tol, or below it and no longer halves. What
    keeps a gap from falling is mostly the distance to the anchor, so that rounds are brief, and one that did not halve
    it is followed by a long one.
    """
    lam = tile.padded(lams, 1.0)
    tile.start(weights)
    best, best_gap = tile.w, torch.full_like(tile.var, torch.inf)
    going, long = torch.ones_like(tile.var, dtype=torch.bool), torch.zeros_like(tile.var, dtype=torch.bool)
    for _ in range(_ROUNDS):
        gaps = tile.gaps(lam)
        better, halved = going & (gaps < best_gap), gaps <= 0.5 * best_gap
        going &= (gaps > 1e-6 * tol) & (halved | ~long | (gaps > 0.5 * tol))
        long = ~halved
        best, best_gap = torch.where(better, tile.w, best), torch.where(better, gaps, best_gap)
        wanted = tile.unpadded(going)
        if not wanted.any():
            break
        idle = np.where(tile.unpadded(long), IDLE, _BRIEF)
        tile.minimise(lams, np.where(wanted, 0.5e-6 * tol, np.inf), 0.1 * tol, idle)
        tile.anchor()
    return tile.unpadded(best), tile.unpadded(best_gap)


def certify(tile: Tile, lams: Vector, weights: Vector) -> tuple[Vector, Vector]:
    """Relative gaps [t] and KKT residuals over lambda [t] of any weights [N, t], in float64 throughout."""
    lam = tile.padded(lams, 1.0)
    tile.start(weights)
    return tile.unpadded(tile.gaps(lam)), tile.unpadded(tile.residuals(lam))
