"""Some targets on their way through the solver: paths and choice of lambda, refit, certificate."""

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.design import divide
from datamodels.lasso.gram import Cross, Matrices
from datamodels.lasso.solver.solution import Solution
from datamodels.train import Fit, WorkError

if TYPE_CHECKING:
    import torch

Vector = NDArray[np.float64]

_PER_CALL = 8
"""Targets solved between two looks at the progress."""
_PATH_SWEEPS, _REFIT_SWEEPS = 200, 200
"""Sweeps that may go into a gap far below the promised one, so that the choice of lambda and the weights are sharp."""
_ROUNDS = 20
"""Exact gradients of a refit at most; two or three are enough but where examples outnumber rows by far."""
_STORED = 1e-6
"""Relative gap that weights meet after they were rounded to float32, however small the tolerance."""


@dataclass(frozen=True)
class Path:
    """One target on the training rows, and the lambdas to try."""

    cov: Vector
    var: float
    lams: Vector
    heldout: Any
    """heldout.Heldout"""


class Lot:
    """Targets of which `solution.weight` holds standardised weights of the path until the refit.

    Only the methods that say so need the correlations: large ones are made once for the paths of all lots, and once
    for their refits.
    """

    def __init__(
        self,
        matrices: Matrices,
        training: Cross,
        heldout: Cross,
        fit: Fit,
        first: int = 0,
        threads: int | None = None,
        solution: Solution | None = None,
        device: "torch.device | None" = None,
    ) -> None:
        """first: absolute index of the first target; solution: what an earlier `follow_paths` left; device: where FISTA
        runs for many targets at once, None for coordinate descent."""
        self.matrices, self.training, self.heldout, self.fit = matrices, training, heldout, fit
        self.first, self.threads, self.device = first, threads, device
        self.ratios = np.geomspace(1.0, fit.eps, fit.k)
        self.own = threading.local()
        targets = len(training.sums)
        self.refit_gap = np.zeros(targets)
        self.solution = solution or Solution.empty(targets, matrices.n_train)

    def follow_paths(self, progress: Callable[[int], None]) -> None:
        """Choose every target's lambda, with the correlations of the training rows."""
        due = np.arange(len(self.solution.lam))
        if self.device is not None:
            from datamodels.lasso.solver import tiles

            tiles.follow_paths(self, self.device, progress)
            due, progress = self._missed(self.solution.path_gap, 100 * self.fit.tol), lambda done: None
        if len(due):
            _ = self.matrices.corr  # made before many threads ask for it
            self.each(self.choose, due, progress)

    def refit(self, progress: Callable[[int], None]) -> None:
        """Refit every target at its lambda, with the correlations of all rows."""
        due = np.arange(len(self.solution.lam))
        if self.device is not None:
            from datamodels.lasso.solver import tiles

            tiles.refit(self, self.device, progress)
            due, progress = self._missed(self.refit_gap, self.fit.tol), lambda done: None
            self.solution.weight[due] = 0.0  # where descent begins; the path's were replaced
        if len(due):
            _ = self.matrices.whole_corr, self.matrices.counts.whole(np.zeros(1, np.int64))
            self.each(self.refit_one, due, progress)

    def _missed(self, gaps: Vector, allowed: float) -> NDArray[np.int64]:
        """Targets that a device could not bring to their gap, which descent then takes; the log says so."""
        missed = np.flatnonzero(~(gaps <= allowed))
        if len(missed):
            logging.getLogger(__name__).warning(
                "%d of %d targets missed a relative duality gap of %.3g on %s: descent on the CPU takes them over",
                len(missed), len(gaps), allowed, self.device,
            )  # fmt: skip
        return missed

    def each(self, work: Callable[[int, Any], None], due: NDArray[np.int64], progress: Callable[[int], None]) -> None:
        """Do some work for each of these targets, in threads that have a workspace each."""
        from datamodels.lasso.solver.buffers import Workspace

        def run(targets: list[int]) -> None:
            if not hasattr(self.own, "work"):
                self.own.work = Workspace.empty(self.matrices.n_train, self.matrices.held_width)
            for target in targets:
                work(target, self.own.work)

        starts = range(0, len(due), _PER_CALL)
        pieces = [due[start : start + _PER_CALL].tolist() for start in starts]
        pool = ThreadPoolExecutor(self.threads or len(os.sched_getaffinity(0)))
        try:
            for start, piece, _ in zip(starts, pieces, pool.map(run, pieces), strict=True):
                progress(start + len(piece))
        finally:
            pool.shutdown(cancel_futures=True)  # an interruption waits for the pieces in hand alone

    def choose(self, target: int, work: Any) -> None:
        """Record a target's lambda of least held-out error, and its weights on the training rows."""
        from datamodels.lasso.solver import path as kernels

        if (path := self.begin(target)) is None:
            return
        weights = np.zeros(self.matrices.n_train)
        chosen, tried, squares, gap = kernels.choose(
            self.matrices.corr, path.cov, path.var, path.heldout, path.lams, 100 * self.fit.tol, self.fit.patience,
            self.fit.min_lambdas, _PATH_SWEEPS, work, weights,
        )  # fmt: skip
        self.record(target, path, chosen, tried, squares, gap, weights)

    def begin(self, target: int) -> Path | None:
        """The path of a target; None for one that does not vary with any example over the training rows, which keeps
        lambda 0 and weights 0."""
        fit, found, at = self.fit, self.solution, self.matrices
        sums = self.training
        mean, var, cov = at.scale.target(sums.cross[target], float(sums.sums[target]), float(sums.squares[target]))
        heldout = self._heldout(target, mean)
        found.validation_mse[target] = heldout.squares / at.held_rows
        if var == 0.0 or not np.any(cov):
            return None
        top = np.max(np.abs(cov * divide(np.ones_like(cov), at.scale.inv) if fit.lambda_max == "upstream" else cov))
        return Path(cov, var, top * self.ratios, heldout)

    def record(self, target: int, path: Path, chosen: int, tried: int, squares: float, gap: float, w: Vector) -> None:
        found = self.solution
        found.chosen[target], found.tried[target], found.lam[target] = chosen, tried, path.lams[chosen]
        found.path_gap[target], found.validation_mse[target] = gap, squares / self.matrices.held_rows
        found.weight[target] = w

    def _heldout(self, target: int, mean: float) -> Any:
        """One target on the held-out rows, standardised by the training rows, `mean` being its mean over these."""
        from datamodels.lasso.solver.validation import Heldout

        at = self.matrices
        total, squares = float(self.heldout.sums[target]), float(self.heldout.squares[target])
        centred = at.held_ones - at.held_rows * at.scale.mean
        cross = (self.heldout.cross[target] - at.scale.mean * total - mean * centred) * at.scale.inv
        squares += mean * (at.held_rows * mean - 2 * total)
        return Heldout(at.held_bits(), at.moments, at.held_rows, at.scale.mean, at.scale.inv, cross, squares)

    def whole(self, target: int) -> tuple[float, Vector]:
        """var(y) and c = Z'y/n [N] of a target over all rows; records bias and variance of weights of 0."""
        a, b = self.training, self.heldout
        total, squares = float(a.sums[target] + b.sums[target]), float(a.squares[target] + b.squares[target])
        mean, var, cov = self.matrices.whole_scale.target(a.cross[target] + b.cross[target], total, squares)
        self.solution.bias[target], self.solution.variance[target] = mean, var
        return var, cov

    def begin_refit(self, target: int) -> Vector:
        """The path's weights, standardised by all rows."""
        at = self.matrices
        return self.solution.weight[target] * divide(at.scale.inv, at.whole_scale.inv)

    def store(self, target: int, weights: Vector) -> Vector:
        """Record standardised weights in the units asked for; returns what they are after they were rounded."""
        found, scale = self.solution, self.matrices.whole_scale
        if self.fit.weight_units == "standardised":
            found.weight[target] = weights
            return found.weight[target].astype(np.float64)
        found.weight[target] = weights * scale.inv
        stored = found.weight[target].astype(np.float64)
        a, b = self.training, self.heldout
        found.bias[target] = float(a.sums[target] + b.sums[target]) / scale.rows - scale.mean @ stored
        return divide(stored, scale.inv)

    def refit_one(self, target: int, work: Any) -> None:
        """Refit a target at its lambda on all rows, and certify the weights as they are stored."""
        from datamodels.lasso.solver import gap as certificate

        found, at, scale = self.solution, self.matrices, self.matrices.whole_scale
        var, cov = self.whole(target)
        lam = float(found.lam[target])
        if lam == 0.0:
            return
        weights, self.refit_gap[target] = self._refined(cov, var, lam, work, self.begin_refit(target))
        weights = self.store(target, weights)
        certificate.exact_gradient(at.counts, scale.rows, scale.mean, scale.inv, cov, weights, work.foreseen)
        found.gap[target], found.kkt[target] = certificate.certify(cov, var, lam, weights, work.foreseen)

    def _refined(self, cov: Vector, var: float, lam: float, work: Any, weights: Vector) -> tuple[Vector, float]:
        """Weights minimised at lam on all rows, and their gap, from rounds that each begin with an exact gradient."""
        from datamodels.lasso.solver import descent
        from datamodels.lasso.solver import gap as certificate

        at, scale, tol = self.matrices, self.matrices.whole_scale, self.fit.tol
        work.w[:] = weights
        best = np.inf
        for _ in range(_ROUNDS):
            certificate.exact_gradient(at.counts, scale.rows, scale.mean, scale.inv, cov, work.w, work.foreseen)
            gap, _ = certificate.certify(cov, var, lam, work.w, work.foreseen)
            halved = gap <= 0.5 * best
            if gap < best:
                weights[:], best = work.w, gap
            if best <= 1e-6 * tol or (best <= tol and not halved):  # done, or rounding allows no better
                break
            descent.refine(at.whole_corr, cov, var, lam, tol, _REFIT_SWEEPS, work, work.foreseen)
        return weights, best

    def check(self) -> None:
        """Raise WorkError for the worst target that misses its gap."""
        tol = self.fit.tol
        for gaps, allowed, where in (
            (self.solution.path_gap, 100 * tol, "along its path"),
            (self.refit_gap, tol, "at the refit"),
            (self.solution.gap, max(tol, _STORED), "as it is stored"),
        ):
            worst = int(np.argmax(gaps))
            if not gaps[worst] <= allowed:
                raise WorkError(
                    f"target {self.first + worst} has a relative duality gap of {gaps[worst]:.3g} {where}, expected at "
                    f"most {allowed:.3g} (fit.tol {tol:g}): the solver did not converge; raise fit.tol (what meets it "
                    "already is kept) or fit.eps"
                )
