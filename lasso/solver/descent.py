"""Compiled kernels: coordinate descent for one LASSO target on the correlations of the masks.

With R = Z'Z/n - I (correlations without their diagonal, float32) and c = Z'y/n, the kernels keep the standardised
weights w and h = R w in float64. The gradient of the loss is then g = c - h - w, coordinate j's minimiser is
soft(c_j - h_j, lam), and moving it by d costs one addition of d * R[j] to h: no row is ever seen.

Only coordinates whose step matters to the duality gap are moved. What rounding R to float32 does is mended in the
refit, by gradients from the exact counts.

Coordinate descent with covariance updates: Friedman, Hastie & Tibshirani, "Regularization paths for generalized linear
models via coordinate descent" (J. Stat. Softw. 2010).
"""

from datamodels.lasso.compiled import compiled
from datamodels.lasso.solver.active_set import descend_face
from datamodels.lasso.solver.buffers import Matrix, Workspace, add_rows
from datamodels.lasso.solver.gap import Vector, relative_gap

_HARD_LIMIT = 2_000
"""Sweeps at one lambda after which a target counts as not converged."""
_PATIENCE, _PRODUCTS = 12, 30
"""Sweeps between two walks over faces of nonzero weights, and products with R that a step of a walk may take."""
_LONGER = 60
"""Sweeps after which walks are a step longer: each step leaves a smaller face, and where examples outnumber rows it
takes many until the masks on it are linearly independent."""
_OVER, _UNDER, _MOST, _FALL = 1.0, 2.0, 0.02, 0.8
"""Steps that matter: share of the gradient error that the gap can bear, above lambda (which scales the dual point
down) and below it; at most this share of lambda; fall of the share from sweep to sweep."""


@compiled
def _soft(value: float, lam: float) -> float:
    return max(value - lam, 0.0) + min(value + lam, 0.0)


@compiled
def _gap(cov: Vector, var: float, work: Workspace, lam: float) -> tuple[float, float]:
    """Relative gap and 1-norm of the weights."""
    w, h = work.w, work.h
    steepest, weight_cov, weight_grad, norm = 0.0, 0.0, 0.0, 0.0
    for j in range(w.shape[0]):
        grad = cov[j] - h[j] - w[j]
        steepest = max(steepest, abs(grad))
        weight_cov += w[j] * cov[j]
        weight_grad += w[j] * grad
        norm += abs(w[j])
    return relative_gap(var, lam, steepest, weight_cov, weight_grad, norm), norm


@compiled
def _pick(cov: Vector, work: Workspace, lam: float, over: float, under: float) -> int:
    """List the coordinates whose step exceeds `over` (gradient above lam) or `under`; returns how many."""
    w, h, excess = work.w, work.h, work.excess
    for j in range(w.shape[0]):
        pull = cov[j] - h[j]
        excess[j] = abs(_soft(pull, lam) - w[j]) - (over if abs(pull - w[j]) > lam else under)
    count = 0
    for j in range(w.shape[0]):  # without a branch
        work.picked[count] = j
        count += excess[j] > 0.0
    return count


@compiled
def _sweep(corr: Matrix, cov: Vector, work: Workspace, lam: float, count: int) -> None:
    """Coordinate descent over the coordinates picked, four to each pass over h."""
    w, h, index, steps = work.w, work.h, work.picked, work.excess
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
def minimise(
    corr: Matrix,
    cov: Vector,
    var: float,
    work: Workspace,
    lam: float,
    aim: float,
    enough: float,
    most: int,
) -> float:
    """Descend at one lambda until the relative gap is at most `aim`, or at most `enough` after `most` sweeps."""
    share = 1.0
    for sweeps in range(_HARD_LIMIT):
        gap, norm = _gap(cov, var, work, lam)
        if gap <= aim or (gap <= enough and sweeps >= most):
            return gap
        bearable, most_bearable = 0.5 * share * aim * var / max(norm, 1e-300), _MOST * share * lam
        count = _pick(cov, work, lam, min(_OVER * bearable, most_bearable), min(_UNDER * bearable, most_bearable))
        if count == 0 and share < 1e-15:  # rounding keeps the gap above the aim
            return gap
        _sweep(corr, cov, work, lam, count)
        share *= _FALL if count else 0.1
        if sweeps % _PATIENCE == _PATIENCE - 1:
            for _ in range(1 + sweeps // _LONGER):
                if not descend_face(corr, cov, work, lam, _PRODUCTS):
                    break
    return gap


@compiled
def refine(
    corr: Matrix, cov: Vector, var: float, lam: float, tol: float, most: int, work: Workspace, grad: Vector
) -> None:
    """Minimise at lam from the weights and the exact gradient in `work`, far below tol if `most` sweeps allow."""
    for j in range(grad.shape[0]):
        work.h[j] = cov[j] - work.w[j] - grad[j]
    minimise(corr, cov, var, work, lam, 0.5e-6 * tol, 0.5 * tol, most)
