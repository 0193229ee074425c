"""Compiled kernels: coordinate descent for one LASSO target on the correlations of the masks.

With R = Z'Z/n - I (correlations without their diagonal, float32) and c = Z'y/n, the kernels keep the standardised
weights w and h = R w in float64. The gradient of the loss is then g = c - h - w, coordinate j's minimiser is
soft(c_j - h_j, lam), and moving it by d costs one addition of d * R[j] to h: no row of masks is ever read.

Only coordinates whose step matters to the duality gap are moved. The error of R in float32 is corrected in the refit,
by gradients from the exact counts.

Coordinate descent with covariance updates: Friedman, Hastie & Tibshirani, "Regularization paths for generalized linear
models via coordinate descent" (J. Stat. Softw. 2010).
"""

from datamodels.lasso.compiled import compiled
from datamodels.lasso.solver.active_set import step_on_active_set
from datamodels.lasso.solver.buffers import Buffers, Matrix, add_rows
from datamodels.lasso.solver.gap import Vector, relative_gap

_HARD_LIMIT = 2_000
"""Sweeps at one lambda after which a target counts as not converged."""
_PATIENCE, _PRODUCTS = 12, 30
"""Sweeps between steps on the active set, and products with R that such a step may take."""
_LONGER = 60
"""Sweeps after which one more step on the active set is taken each time: each may leave a smaller set, and with more
examples than rows it takes many until the masks in the set are linearly independent."""
_OVER, _UNDER = 1.0, 2.0
"""Skip coordinates whose step is below this fraction of the gradient error that the gap tolerates: where the gradient
is above lambda (which scales the dual point down), and where it is below."""
_MOST, _FALL = 0.02, 0.8
"""Largest such step, over lambda, and the factor by which both bounds fall from sweep to sweep."""


@compiled
def minimise(
    corr: Matrix,
    cov: Vector,
    var: float,
    buffers: Buffers,
    lam: float,
    aim: float,
    enough: float,
    most: int,
) -> float:
    """Descend at one lambda until the relative gap is at most `aim`, or at most `enough` after `most` sweeps.

    Returns the gap.
    """
    share = 1.0
    for sweeps in range(_HARD_LIMIT):
        gap, norm = _gap(cov, var, buffers, lam)
        if gap <= aim or (gap <= enough and sweeps >= most):
            return gap
        tolerated, largest = 0.5 * share * aim * var / max(norm, 1e-300), _MOST * share * lam
        count = _pick(cov, buffers, lam, min(_OVER * tolerated, largest), min(_UNDER * tolerated, largest))
        if count == 0 and share < 1e-15:  # rounding keeps the gap above the aim
            return gap
        _sweep(corr, cov, buffers, lam, count)
        share *= _FALL if count else 0.1
        if sweeps % _PATIENCE == _PATIENCE - 1:
            for _ in range(1 + sweeps // _LONGER):
                if not step_on_active_set(corr, cov, buffers, lam, _PRODUCTS):
                    break
    return gap


@compiled
def _gap(cov: Vector, var: float, buffers: Buffers, lam: float) -> tuple[float, float]:
    """Relative gap and 1-norm of the weights."""
    w, h = buffers.w, buffers.h
    steepest, weight_cov, weight_grad, norm = 0.0, 0.0, 0.0, 0.0
    for j in range(w.shape[0]):
        grad = cov[j] - h[j] - w[j]
        steepest = max(steepest, abs(grad))
        weight_cov += w[j] * cov[j]
        weight_grad += w[j] * grad
        norm += abs(w[j])
    return relative_gap(var, lam, steepest, weight_cov, weight_grad, norm), norm


@compiled
def _soft(value: float, lam: float) -> float:
    return max(value - lam, 0.0) + min(value + lam, 0.0)


@compiled
def _pick(cov: Vector, buffers: Buffers, lam: float, over: float, under: float) -> int:
    """List the coordinates whose step exceeds `over` (gradient above lam) or `under`; returns how many."""
    w, h, excess = buffers.w, buffers.h, buffers.change
    for j in range(w.shape[0]):
        pull = cov[j] - h[j]
        excess[j] = abs(_soft(pull, lam) - w[j]) - (over if abs(pull - w[j]) > lam else under)
    count = 0
    for j in range(w.shape[0]):  # without a branch
        buffers.picked[count] = j
        count += excess[j] > 0.0
    return count


@compiled
def _sweep(corr: Matrix, cov: Vector, buffers: Buffers, lam: float, count: int) -> None:
    """Coordinate descent over the coordinates picked, four to each pass over h."""
    w, h, index, steps = buffers.w, buffers.h, buffers.picked, buffers.change
    for first in range(0, count, 4):
        size = min(4, count - first)
        for p in range(size):
            j = index[first + p]
            pull = cov[j] - h[j]
            for q in range(p):
                i = index[first + q]
                pull -= steps[i] * corr[i, j]
            steps[j] = _soft(pull, lam) - w[j]
        for p in range(size):
            j = index[first + p]
            w[j] += steps[j]
        add_rows(corr, index[first : first + size], size, steps, h)


@compiled
def refine(
    corr: Matrix, cov: Vector, var: float, lam: float, tol: float, most: int, buffers: Buffers, grad: Vector
) -> None:
    """Minimise at lam from the weights in `buffers` and their exact gradient, far below tol if `most` sweeps allow."""
    for j in range(grad.shape[0]):
        buffers.h[j] = cov[j] - buffers.w[j] - grad[j]
    minimise(corr, cov, var, buffers, lam, 0.5e-6 * tol, 0.5 * tol, most)
