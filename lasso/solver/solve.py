"""The LASSO of every target: choose lambda on validation rows, refit on all rows, compute the duality gap.

Objective of target j (docs/format.md):

    P(w) = 1/(2n) ||y_j - b_j - Z w_j||^2 + lam_j ||w_j||_1

with Z the masks standardised by mean and standard deviation (ddof 0) of the n rows being fitted, and b_j the mean.
The path has k geometric lambdas from lambda_max = max|Z'(y - mean)|/n of the training rows down to eps times it; it
ends once `min_lambdas` were tried and the last `patience` of them brought no smaller validation error. A tie goes to
the larger lambda. The relative gap is the duality gap over P(0) = var(y)/2.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from datamodels.lasso.design import divide
from datamodels.lasso.gram import Cross, Matrices
from datamodels.lasso.rows import Progress, silent
from datamodels.lasso.solver.solution import Solution
from datamodels.train import Fit, WorkError

_PER_CALL = 8
"""Targets that a thread solves between two reports of progress."""
_PATH_SWEEPS, _REFIT_SWEEPS = 200, 200
"""Sweeps that may go into a gap far below the promised one, so that the choice of lambda and the weights are exact."""
_ROUNDS = 20
"""Exact gradients of a refit at most; two or three are enough unless examples outnumber rows by far."""
_STORED = 1e-6
"""Relative gap that weights meet after they are rounded to float32, however small the tolerance."""


def solve(
    matrices: Matrices,
    training: Cross,
    validation: Cross,
    fit: Fit,
    first: int = 0,
    progress: Progress = silent,
    threads: int | None = None,
) -> Solution:
    """Fit every target of the sums with the margins of training rows and of validation rows.

    first: absolute index of the first target, for messages. A target's result does not depend on the others. Raises
    WorkError where a target misses its gap: `fit.tol` at the refit, 100 times that along the path.
    """
    batch = TargetBatch(matrices, training, validation, fit, first, threads)
    targets = len(training.sums)
    batch.choose_lambdas(lambda done: progress("path", done, targets))
    batch.refit(lambda done: progress("refit", done, targets))
    batch.check()
    return batch.solution


class TargetBatch:
    """Targets that are solved together: `choose_lambdas`, then `refit`, then `check`.

    Of several batches, first choose the lambdas of all, then refit all: each step prepares a large matrix once.
    """

    def __init__(
        self,
        matrices: Matrices,
        training: Cross,
        validation: Cross,
        fit: Fit,
        first: int = 0,
        threads: int | None = None,
        solution: Solution | None = None,
    ) -> None:
        """first: absolute index of the first target; solution: what an earlier `choose_lambdas` left."""
        self.matrices, self.training, self.validation, self.fit = matrices, training, validation, fit
        self.first, self.threads = first, threads or len(os.sched_getaffinity(0))
        targets = len(training.sums)
        self.solution = solution or Solution.empty(targets, matrices.n_train)
        self.refit_gap = np.zeros(targets)
        """[targets]: relative gap before weights are rounded to float32"""

    def choose_lambdas(self, progress: Callable[[int], None]) -> None:
        """Choose every target's lambda, on the training rows."""
        self._each(self._choose, False, progress)

    def refit(self, progress: Callable[[int], None]) -> None:
        """Refit every target at its lambda, on all rows."""
        self._each(self._refit, True, progress)

    def _each(self, work: Callable[..., Any], whole: bool, progress: Callable[[int], None]) -> None:
        """Call work(target, design, working set) for every target, in threads that have a working set each."""
        from datamodels.lasso.solver.working_set import design_of, working_set

        masks, own = self.matrices, threading.local()
        design = design_of(masks, whole)
        predicted = len(masks.moments) or 64 * masks.bits.shape[1]

        def run(start: int) -> None:
            at = getattr(own, "at", None) or working_set(design, predicted)
            for target in range(start, min(start + _PER_CALL, targets)):
                at = work(target, design, at)
            own.at = at

        targets = len(self.solution.lam)
        pool = ThreadPoolExecutor(self.threads)
        try:
            starts = range(0, targets, _PER_CALL)
            for start, _ in zip(starts, pool.map(run, starts), strict=True):
                progress(min(start + _PER_CALL, targets))
        finally:
            pool.shutdown(cancel_futures=True)  # an interruption waits only for the targets that are being solved

    def _choose(self, target: int, design: Any, at: Any) -> Any:
        """Record a target's lambda of least validation error, and its weights on the training rows.

        A target that does not vary with any example over the training rows keeps lambda 0 and weights 0. Returns the
        working set.
        """
        from datamodels.lasso.solver.path import choose
        from datamodels.lasso.solver.working_set import with_room

        found, masks, fit, sums = self.solution, self.matrices, self.fit, self.training
        mean, var, cov = masks.scale.target(sums.cross[target], float(sums.sums[target]), float(sums.squares[target]))
        validation = self._validation(target, mean)
        found.validation_mse[target] = validation.squares / masks.validation_rows
        if var == 0.0 or not np.any(cov):
            return at
        lambda_max = np.max(
            np.abs(cov * divide(np.ones_like(cov), masks.scale.inv) if fit.lambda_max == "upstream" else cov)
        )
        lams, weights = lambda_max * np.geomspace(1.0, fit.eps, fit.k), np.zeros(masks.n_train)
        options = 100 * fit.tol, fit.patience, fit.min_lambdas, _PATH_SWEEPS
        at, (chosen, tried, squares, gap) = with_room(
            design, at, lambda at: choose(design, at, cov, var, validation, lams, *options, weights)
        )
        found.chosen[target], found.tried[target], found.lam[target] = chosen, tried, lams[chosen]
        found.path_gap[target], found.validation_mse[target] = gap, squares / masks.validation_rows
        found.weight[target] = weights
        return at

    def _validation(self, target: int, mean: float) -> Any:
        """One target on the validation rows, standardised by the training rows, `mean` being its mean over these."""
        from datamodels.lasso.solver.validation import Validation

        masks, sums = self.matrices, self.validation
        total, squares = float(sums.sums[target]), float(sums.squares[target])
        centred = masks.validation_ones - masks.validation_rows * masks.scale.mean
        cross = (sums.cross[target] - masks.scale.mean * total - mean * centred) * masks.scale.inv
        squares += mean * (masks.validation_rows * mean - 2 * total)
        bits = masks.bits[:, :0] if len(masks.moments) else masks.bits
        return Validation(bits, masks.moments, masks.validation_rows, cross, squares)

    def _refit(self, target: int, design: Any, at: Any) -> Any:
        """Refit a target at its lambda on all rows, and compute the duality gap of the weights as they are stored.

        Returns the working set.
        """
        from datamodels.lasso.solver.gap import optimality
        from datamodels.lasso.solver.refit import refit
        from datamodels.lasso.solver.working_set import with_room

        found, masks, scale = self.solution, self.matrices, self.matrices.whole_scale
        table = self.training.table[target] + self.validation.table[target]
        mean, var, cov = scale.target(table[:-2], float(table[-2]), float(table[-1]))
        found.bias[target], found.variance[target] = mean, var
        lam = float(found.lam[target])
        if lam == 0.0:
            return at

        weights = found.weight[target] * divide(masks.scale.inv, scale.inv)  # standardised by all rows
        options = self.fit.tol, _REFIT_SWEEPS, _ROUNDS
        at, self.refit_gap[target] = with_room(
            design, at, lambda at: refit(design, at, cov, var, lam, *options, weights)
        )
        if self.fit.weight_units == "standardised":
            found.weight[target] = weights
            weights = found.weight[target].astype(np.float64)
        else:
            found.weight[target] = weights * scale.inv
            stored = found.weight[target].astype(np.float64)
            found.bias[target] = mean - scale.mean @ stored
            weights = divide(stored, scale.inv)
        found.gap[target], found.kkt[target] = optimality(design, cov, var, lam, weights)
        return at

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
