"""The LASSO of every target: choose lambda on held-out rows, refit on all rows, certify.

Objective of target j (contract section 4):

    P(w) = 1/(2n) ||y_j - b_j - Z w_j||^2 + lam_j ||w_j||_1

with Z the masks standardised by mean and standard deviation (ddof 0) of the n rows being fitted, and b_j the mean.
The path has k geometric lambdas from lambda_max = max|Z'(y - mean)|/n of the training rows down to eps times it; it
ends once `min_lambdas` were tried and the last `patience` of them brought no smaller held-out error. A tie goes to the
larger lambda. The relative gap is the duality gap over P(0) = var(y)/2.
"""

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lasso.design import Scale, correlations, divide, moments
from lasso.moments import Cross, Gram
from lasso.rows import Progress, silent
from train.config import Fit
from train.errors import WorkError

_PER_CALL = 8
"""Targets solved between two looks at the progress."""
_PATH_SWEEPS, _REFIT_SWEEPS = 200, 200
"""Sweeps that may go into a gap far below the promised one, so that the choice of lambda and the weights are sharp."""
_LARGE = 4096
"""Examples from which a GPU is worth its while."""
_KEPT_BYTES = 2**29
"""Matrices that are made once and kept; larger ones are made anew for every lot of targets."""


@dataclass(frozen=True)
class Solution:
    """Fits of T targets."""

    weight: NDArray[np.float32]
    """[T, N_train], in the units that `fit.weight_units` asks for"""
    bias: NDArray[np.float32]
    """[T]: of mask @ weight + bias, or of ((mask - mean) / deviation) @ weight + bias"""
    lam: NDArray[np.float32]
    """[T]: exactly the lambda of the refit, in units of the margin."""
    chosen: NDArray[np.int32]
    """[T]: index of the chosen lambda on the path; -1 for a target without variance."""
    tried: NDArray[np.int32]
    """[T]: lambdas tried before the path ended."""
    validation_mse: NDArray[np.float64]
    """[T]: mean squared error on the held-out rows at the chosen lambda, before the refit."""
    variance: NDArray[np.float64]
    """[T]: variance of the margins over the rows of the refit."""
    gap: NDArray[np.float64]
    """[T]: relative gap of the float32 weights, recomputed from the counts; at most tol where they allow it."""
    kkt: NDArray[np.float64]
    """[T]: largest violation of the optimality conditions by the float32 weights, over lambda."""
    path_gap: NDArray[np.float64]
    """[T]: largest relative gap along the path."""

    @classmethod
    def empty(cls, targets: int, n_train: int) -> "Solution":
        return cls(
            weight=np.zeros((targets, n_train), np.float32),
            bias=np.zeros(targets, np.float32),
            lam=np.zeros(targets, np.float32),
            chosen=np.full(targets, -1, np.int32),
            tried=np.zeros(targets, np.int32),
            validation_mse=np.zeros(targets),
            variance=np.zeros(targets),
            gap=np.zeros(targets),
            kkt=np.zeros(targets),
            path_gap=np.zeros(targets),
        )


class Matrices:
    """What descent needs of two Grams, both finished: of the training rows, and of the held-out rows.

    A matrix lives as long as it is asked for, or for ever where all are small: `dropped` frees it.
    """

    def __init__(self, training: Gram, heldout: Gram) -> None:
        self.training, self.heldout = training, heldout
        ones, others = np.diagonal(training.counts), np.diagonal(heldout.counts)
        self.scale = Scale.of(training.rows, ones)
        self.whole_scale = Scale.of(training.rows + heldout.rows, ones + others)
        self.held_rows = heldout.rows
        self.held_ones = others.astype(np.float64)
        self.n_train = len(ones)
        self.bits = np.zeros((self.n_train, 0), np.uint64)
        self.constant_examples = int(np.count_nonzero(self.whole_scale.inv == 0))

    @cached_property
    def corr(self) -> NDArray[np.float32]:
        """Correlations of the training rows."""
        return correlations(self.scale, self.training)

    @cached_property
    def held(self) -> NDArray[np.float32]:
        """Second moments of the held-out rows, standardised by the training rows."""
        return moments(self.scale, self.heldout)

    @cached_property
    def whole_corr(self) -> NDArray[np.float32]:
        """Correlations of all rows."""
        return correlations(self.whole_scale, self.training, self.heldout)

    @cached_property
    def whole_counts(self) -> NDArray[np.int32]:
        return self.training.counts + self.heldout.counts

    def make(self, *names: str) -> None:
        """Make matrices before many threads ask for them."""
        for name in names:
            getattr(self, name)

    def drop(self, *names: str) -> None:
        """Free matrices, unless all of them are small."""
        if 16 * self.n_train**2 > _KEPT_BYTES:
            for name in names:
                self.__dict__.pop(name, None)


def solve(
    matrices: Matrices,
    training: Cross,
    heldout: Cross,
    fit: Fit,
    first: int = 0,
    progress: Progress = silent,
    threads: int | None = None,
) -> Solution:
    """Fit every target of the sums.

    first: absolute index of the first target, for messages. Each target is computed by itself, so that a result does
    not depend on which others are solved with it. Raises WorkError where a target misses its gap: `fit.tol` at the
    refit, 100 times that along the path.
    """
    lot = _Lot(matrices, training, heldout, fit)
    targets = len(training.sums)
    matrices.make("corr", "held")
    if _wants_fista(fit, matrices.n_train, targets):
        _choose_in_tiles(lot, first, lambda done: progress("path", done, targets))
    else:
        lot.each(lot.choose, threads, lambda done: progress("path", done, targets))
    matrices.drop("corr", "held")
    matrices.make("whole_corr", "whole_counts")
    lot.each(lot.refit, threads, lambda done: progress("refit", done, targets))
    matrices.drop("whole_corr", "whole_counts")
    lot.check(first)
    return lot.solution


def _wants_fista(fit: Fit, n_train: int, targets: int) -> bool:
    if fit.solver != "auto":
        return fit.solver == "fista"
    if n_train < _LARGE or targets < _LARGE // 32:
        return False
    import torch

    return torch.cuda.is_available()


def _choose_in_tiles(lot: "_Lot", first: int, progress: Callable[[int], None]) -> None:
    """What `_Lot.choose` does, in torch on a GPU where there is one, for tiles of targets aligned to absolute ones."""
    import torch

    from lasso import fista

    device = "cuda" if torch.cuda.is_available() else "cpu"
    corr = fista.Correlations(lot.matrices.corr, device)
    held = torch.from_numpy(lot.matrices.held).to(device)
    targets = len(lot.solution.lam)
    cuts = [0, *range(fista.TILE - first % fista.TILE, targets, fista.TILE), targets]
    for start, stop in itertools.pairwise(cuts):
        begun = [(target, found) for target in range(start, stop) if (found := lot.begin(target))]
        if begun:
            _, paths = zip(*begun, strict=True)
            lams = np.stack([path.lams for path in paths], axis=1)
            cross = np.stack([path.heldout.cross for path in paths], axis=1)
            squares = np.array([path.heldout.squares for path in paths])
            cov, var = np.stack([path.cov for path in paths], axis=1), np.array([path.var for path in paths])
            tile = fista.Tile(corr, cov, var, (first + start) % fista.TILE)
            fit = lot.fit
            best = fista.choose(tile, held, cross, squares, lams, 100 * fit.tol, fit.patience, fit.min_lambdas)
            for at, (target, path) in enumerate(begun):
                chosen, tried, error, gap = (part[at] for part in best[:4])
                lot.record(target, path, int(chosen), int(tried), float(error), float(gap), best[4][:, at])
        progress(stop)


@dataclass(frozen=True)
class _Path:
    """One target on the training rows, and the lambdas to try."""

    cov: NDArray[np.float64]
    var: float
    lams: NDArray[np.float64]
    heldout: Any
    """descent.Heldout"""


class _Lot:
    """Some targets on their way to a Solution: `weight` holds standardised weights of the path until the refit."""

    def __init__(self, matrices: Matrices, training: Cross, heldout: Cross, fit: Fit) -> None:
        self.matrices, self.training, self.heldout, self.fit = matrices, training, heldout, fit
        self.ratios = np.geomspace(1.0, fit.eps, fit.k)
        self.own = threading.local()
        targets = len(training.sums)
        self.refit_gap = np.zeros(targets)
        self.solution = Solution.empty(targets, matrices.n_train)

    def each(self, work: Callable[[int, Any], None], threads: int | None, progress: Callable[[int], None]) -> None:
        """Do some work for every target, in threads that have a workspace each."""
        from lasso.descent import Workspace

        def run(targets: range) -> None:
            if not hasattr(self.own, "work"):
                self.own.work = Workspace.empty(self.matrices.n_train)
            for target in targets:
                work(target, self.own.work)

        targets = len(self.solution.lam)
        pieces = [range(start, min(start + _PER_CALL, targets)) for start in range(0, targets, _PER_CALL)]
        pool = ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)))
        try:
            for piece, _ in zip(pieces, pool.map(run, pieces), strict=True):
                progress(piece.stop)
        finally:
            pool.shutdown(cancel_futures=True)  # an interruption waits for the pieces in hand alone

    def choose(self, target: int, work: Any) -> None:
        """Record a target's lambda of least held-out error, and its weights on the training rows."""
        from lasso import descent

        if (path := self.begin(target)) is None:
            return
        weights = np.zeros(self.matrices.n_train)
        chosen, tried, squares, gap = descent.choose(
            self.matrices.corr, path.cov, path.var, path.heldout, path.lams, 100 * self.fit.tol, self.fit.patience,
            self.fit.min_lambdas, _PATH_SWEEPS, work, weights,
        )  # fmt: skip
        self.record(target, path, chosen, tried, squares, gap, weights)

    def begin(self, target: int) -> _Path | None:
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
        return _Path(cov, var, top * self.ratios, heldout)

    def record(
        self, target: int, path: _Path, chosen: int, tried: int, squares: float, gap: float, w: NDArray[np.float64]
    ) -> None:
        found = self.solution
        found.chosen[target], found.tried[target], found.lam[target] = chosen, tried, path.lams[chosen]
        found.path_gap[target], found.validation_mse[target] = gap, squares / self.matrices.held_rows
        found.weight[target] = w

    def _heldout(self, target: int, mean: float) -> Any:
        """One target on the held-out rows, standardised by the training rows, `mean` being its mean over these."""
        from lasso.descent import Heldout

        at = self.matrices
        total, squares = float(self.heldout.sums[target]), float(self.heldout.squares[target])
        centred = at.held_ones - at.held_rows * at.scale.mean
        cross = (self.heldout.cross[target] - at.scale.mean * total - mean * centred) * at.scale.inv
        squares += mean * (at.held_rows * mean - 2 * total)
        return Heldout(at.bits, at.held, at.held_rows, at.scale.mean, at.scale.inv, cross, squares)

    def refit(self, target: int, work: Any) -> None:
        """Refit a target at its lambda on all rows, and certify the weights as they are stored."""
        from lasso import certificate, descent

        found, at, scale = self.solution, self.matrices, self.matrices.whole_scale
        a, b = self.training, self.heldout
        total, squares = float(a.sums[target] + b.sums[target]), float(a.squares[target] + b.squares[target])
        mean, var, cov = scale.target(a.cross[target] + b.cross[target], total, squares)
        found.bias[target], found.variance[target] = mean, var
        lam = float(found.lam[target])
        if lam == 0.0:
            return
        exact = (at.whole_counts, scale.rows, scale.mean, scale.inv)
        weights = found.weight[target] * divide(at.scale.inv, scale.inv)
        self.refit_gap[target] = descent.refit(
            at.whole_corr, *exact, cov, var, lam, self.fit.tol, _REFIT_SWEEPS, work, weights
        )
        stored = (weights * scale.inv).astype(np.float32)
        if self.fit.weight_units == "mask":
            found.weight[target] = stored
            found.bias[target] = mean - scale.mean @ stored.astype(np.float64)
            weights = divide(stored.astype(np.float64), scale.inv)
        else:
            found.weight[target] = weights
            weights = found.weight[target].astype(np.float64)
        certificate.exact_gradient(*exact, cov, weights, work.foreseen)
        found.gap[target], found.kkt[target] = certificate.certify(cov, var, lam, weights, work.foreseen)

    def check(self, first: int) -> None:
        """Raise WorkError for the worst target that misses its gap."""
        tol = self.fit.tol
        for gaps, allowed, where in (
            (self.solution.path_gap, 100 * tol, "along its path"),
            (self.refit_gap, tol, "at the refit"),
        ):
            worst = int(np.argmax(gaps))
            if not gaps[worst] <= allowed:
                raise WorkError(
                    f"target {first + worst} has a relative duality gap of {gaps[worst]:.3g} {where}, expected at most "
                    f"{allowed:.3g} (fit.tol {tol:g}): descent did not converge; raise fit.tol or fit.eps"
                )
