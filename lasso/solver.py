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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lasso.design import Counts, Scale, correlations, divide, moments
from lasso.moments import Cross
from lasso.rows import Progress, silent
from train.config import Fit
from train.errors import WorkError

_PER_CALL = 8
"""Targets solved between two looks at the progress."""
_PATH_SWEEPS, _REFIT_SWEEPS = 200, 200
"""Sweeps that may go into a gap far below the promised one, so that the choice of lambda and the weights are sharp."""
_ROUNDS = 6
"""Exact gradients of a refit at most."""
_STORED = 1e-6
"""Relative gap that weights meet after they were rounded to float32, however small the tolerance."""
_LARGE = 4096
"""Examples from which a GPU is worth its while."""
SMALL_BYTES = 2**28
"""Size up to which several matrices [N, N] of 4 bytes are kept in memory; of larger ones there is one at a time."""


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


def is_small(n_train: int) -> bool:
    """Whether several matrices [N, N] may be in memory."""
    return 4 * n_train**2 <= SMALL_BYTES


class Matrices:
    """What descent needs of the counts. Large correlations take turns in one buffer: ask for them one after the other.

    bits: masks of the held-out rows, [N, words] of 64 rows each, filled up with zeros anywhere.
    """

    def __init__(self, counts: Counts, bits: NDArray[np.uint64]) -> None:
        self.counts, self.bits = counts, bits
        ones, others = counts.ones
        self.scale = Scale.of(counts.rows[0], ones)
        self.whole_scale = Scale.of(sum(counts.rows), ones + others)
        self.held_rows = counts.rows[1]
        self.held_ones = others.astype(np.float64)
        self.n_train = len(ones)
        self.constant_examples = int(np.count_nonzero(self.whole_scale.inv == 0))
        self.moments = np.zeros((0, 0), np.float32)
        if is_small(self.n_train) and self.held_rows > 2 * self.n_train:
            self.moments = moments(self.scale, counts)
        self._found: dict[bool, NDArray[np.float32]] = {}

    @property
    def corr(self) -> NDArray[np.float32]:
        """Correlations of the training rows."""
        return self._correlations(False)

    @property
    def whole_corr(self) -> NDArray[np.float32]:
        """Correlations of all rows."""
        return self._correlations(True)

    def _correlations(self, whole: bool) -> NDArray[np.float32]:
        if whole not in self._found:
            buffer = None
            if not is_small(self.n_train) and self._found:
                buffer = self._found.pop(not whole)
            scale, groups = (self.whole_scale, (0, 1)) if whole else (self.scale, (0,))
            self._found[whole] = correlations(scale, self.counts, groups, buffer)
        return self._found[whole]

    @property
    def held_width(self) -> int:
        """Length of what descent keeps of the held-out rows."""
        return len(self.moments) or 64 * self.bits.shape[1]

    def held_bits(self) -> NDArray[np.uint64]:
        """The bits, or [N, 0] where the moments are the shorter way."""
        return self.bits[:, :0] if len(self.moments) else self.bits


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
    lot = Lot(matrices, training, heldout, fit, first, threads)
    targets = len(training.sums)
    lot.follow_paths(lambda done: progress("path", done, targets))
    lot.refit(lambda done: progress("refit", done, targets))
    lot.check()
    return lot.solution


def uses_fista(fit: Fit, n_train: int, targets: int) -> bool:
    """Whether the paths go through torch: where that is asked for, or there is a GPU with the memory for them."""
    if fit.solver != "auto":
        return fit.solver == "fista"
    if n_train < _LARGE or targets < _LARGE // 32:
        return False
    import torch

    if not torch.cuda.is_available():
        return False
    from lasso import fista

    return fista.bytes_needed(n_train) <= torch.cuda.mem_get_info()[0]


def device_of(fit: Fit, n_train: int, targets: int) -> str:
    """What the paths are followed on, for the report."""
    if not uses_fista(fit, n_train, targets):
        return "cpu"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _choose_in_tiles(lot: "Lot", progress: Callable[[int], None]) -> None:
    """What `Lot.choose` does, in torch on a GPU where there is one, for tiles of targets aligned to absolute ones."""
    import torch

    from lasso import fista

    device = "cuda" if torch.cuda.is_available() else "cpu"
    at = lot.matrices
    corr = fista.Correlations(at.corr, device)
    held = fista.HeldoutMasks(at.bits, at.held_rows, at.scale.mean, at.scale.inv, corr)
    targets, first = len(lot.solution.lam), lot.first
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
            for place, (target, path) in enumerate(begun):
                chosen, tried, error, gap = (part[place] for part in best[:4])
                lot.record(target, path, int(chosen), int(tried), float(error), float(gap), best[4][:, place])
        progress(stop)


@dataclass(frozen=True)
class _Path:
    """One target on the training rows, and the lambdas to try."""

    cov: NDArray[np.float64]
    var: float
    lams: NDArray[np.float64]
    heldout: Any
    """heldout.Heldout"""


class Lot:
    """Some targets on their way to a Solution: `weight` holds standardised weights of the path until the refit.

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
    ) -> None:
        """first: absolute index of the first target; solution: what an earlier `follow_paths` left."""
        self.matrices, self.training, self.heldout, self.fit = matrices, training, heldout, fit
        self.first, self.threads = first, threads
        self.ratios = np.geomspace(1.0, fit.eps, fit.k)
        self.own = threading.local()
        targets = len(training.sums)
        self.refit_gap = np.zeros(targets)
        self.solution = solution or Solution.empty(targets, matrices.n_train)

    def follow_paths(self, progress: Callable[[int], None]) -> None:
        """Choose every target's lambda, with the correlations of the training rows."""
        _ = self.matrices.corr  # made before many threads ask for it
        if uses_fista(self.fit, self.matrices.n_train, len(self.solution.lam)):
            _choose_in_tiles(self, progress)
        else:
            self.each(self.choose, progress)

    def refit(self, progress: Callable[[int], None]) -> None:
        """Refit every target at its lambda, with the correlations of all rows."""
        _ = self.matrices.whole_corr, self.matrices.counts.whole(np.zeros(1, np.int64))
        self.each(self.refit_one, progress)

    def each(self, work: Callable[[int, Any], None], progress: Callable[[int], None]) -> None:
        """Do some work for every target, in threads that have a workspace each."""
        from lasso.workspace import Workspace

        def run(targets: range) -> None:
            if not hasattr(self.own, "work"):
                self.own.work = Workspace.empty(self.matrices.n_train, self.matrices.held_width)
            for target in targets:
                work(target, self.own.work)

        targets = len(self.solution.lam)
        pieces = [range(start, min(start + _PER_CALL, targets)) for start in range(0, targets, _PER_CALL)]
        pool = ThreadPoolExecutor(self.threads or len(os.sched_getaffinity(0)))
        try:
            for piece, _ in zip(pieces, pool.map(run, pieces), strict=True):
                progress(piece.stop)
        finally:
            pool.shutdown(cancel_futures=True)  # an interruption waits for the pieces in hand alone

    def choose(self, target: int, work: Any) -> None:
        """Record a target's lambda of least held-out error, and its weights on the training rows."""
        from lasso import path as kernels

        if (path := self.begin(target)) is None:
            return
        weights = np.zeros(self.matrices.n_train)
        chosen, tried, squares, gap = kernels.choose(
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
        from lasso.heldout import Heldout

        at = self.matrices
        total, squares = float(self.heldout.sums[target]), float(self.heldout.squares[target])
        centred = at.held_ones - at.held_rows * at.scale.mean
        cross = (self.heldout.cross[target] - at.scale.mean * total - mean * centred) * at.scale.inv
        squares += mean * (at.held_rows * mean - 2 * total)
        return Heldout(at.held_bits(), at.moments, at.held_rows, at.scale.mean, at.scale.inv, cross, squares)

    def refit_one(self, target: int, work: Any) -> None:
        """Refit a target at its lambda on all rows, and certify the weights as they are stored."""
        from lasso import certificate

        found, at, scale = self.solution, self.matrices, self.matrices.whole_scale
        a, b = self.training, self.heldout
        total, squares = float(a.sums[target] + b.sums[target]), float(a.squares[target] + b.squares[target])
        mean, var, cov = scale.target(a.cross[target] + b.cross[target], total, squares)
        found.bias[target], found.variance[target] = mean, var
        lam = float(found.lam[target])
        if lam == 0.0:
            return
        weights = found.weight[target] * divide(at.scale.inv, scale.inv)
        weights, self.refit_gap[target] = self._refined(cov, var, lam, work, weights)
        stored = (weights * scale.inv).astype(np.float32)
        if self.fit.weight_units == "mask":
            found.weight[target] = stored
            found.bias[target] = mean - scale.mean @ stored.astype(np.float64)
            weights = divide(stored.astype(np.float64), scale.inv)
        else:
            found.weight[target] = weights
            weights = found.weight[target].astype(np.float64)
        certificate.exact_gradient(at.counts, scale.rows, scale.mean, scale.inv, cov, weights, work.foreseen)
        found.gap[target], found.kkt[target] = certificate.certify(cov, var, lam, weights, work.foreseen)

    def _refined(
        self, cov: NDArray[np.float64], var: float, lam: float, work: Any, weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float]:
        """Weights minimised at lam on all rows, and their gap, from rounds that each begin with an exact gradient."""
        from lasso import certificate, descent

        at, scale, tol = self.matrices, self.matrices.whole_scale, self.fit.tol
        work.w[:] = weights
        gap = np.inf
        for _ in range(_ROUNDS):
            certificate.exact_gradient(at.counts, scale.rows, scale.mean, scale.inv, cov, work.w, work.foreseen)
            now, _ = certificate.certify(cov, var, lam, work.w, work.foreseen)
            if now < gap:
                weights[:] = work.w
            if now <= 1e-6 * tol or now > 0.5 * gap:  # done, or rounding allows no better
                return weights, min(now, gap)
            gap = now
            descent.refine(at.whole_corr, cov, var, lam, tol, _REFIT_SWEEPS, work, work.foreseen)
        return weights, gap

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
                    f"most {allowed:.3g} (fit.tol {tol:g}): descent did not converge; raise fit.tol or fit.eps"
                )
