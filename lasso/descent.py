"""Compiled kernels: coordinate descent for one LASSO target on the correlations of the masks.

With R = Z'Z/n - I (correlations without their diagonal, float32) and c = Z'y/n, the kernels keep the standardised
weights w and h = R w in float64. The gradient of the loss is then g = c - h - w, coordinate j's minimiser is
soft(c_j - h_j, lam), and moving it by d costs one addition of d * R[j] to h: no row is ever seen.

Along the path w and h are extrapolated linearly in lambda (the LASSO path is piecewise linear, so that next to nothing
but the coordinates that entered last is off), and only coordinates whose step matters to the duality gap are moved.
Rounding R to float32 is what float64 refreshes from the exact counts, in `refit`, correct.

Coordinate descent with covariance updates: Friedman, Hastie & Tibshirani, "Regularization paths for generalized linear
models via coordinate descent" (J. Stat. Softw. 2010).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lasso.certificate import Vector, certify, exact_gradient, relative_gap
from lasso.compiled import compiled

Matrix = NDArray[np.float32]

_HARD_LIMIT = 100_000
"""Sweeps at one lambda after which a target counts as not converged."""
_FEW = 256
"""Examples up to which every lambda is solved to a gap far below the tolerance: it costs next to nothing."""
_OVER, _UNDER, _MOST, _FALL = 0.7, 2.0, 0.02, 0.8
"""Steps that matter: share of the gradient error that the gap can bear, above lambda (which scales the dual point
down) and below it; at most this share of lambda; fall of the share from sweep to sweep."""


class Heldout(NamedTuple):
    """One target on the held-out rows, standardised by the training rows."""

    moments: NDArray[np.float32]
    """Z'Z [N, N]"""
    cross: Vector
    """Z'(y - mean) [N]"""
    squares: float
    """||y - mean||^2"""


class Workspace(NamedTuple):
    """Memory [N] that one thread uses for target after target."""

    w: Vector
    before: Vector
    """w at the lambda before"""
    h: Vector
    h_before: Vector
    held: Vector
    """held-out moments times w"""
    held_before: Vector
    foreseen: Vector
    """the weights that `held` belongs to"""
    excess: Vector
    picked: NDArray[np.int64]
    """[N + 1]: coordinates picked"""

    @classmethod
    def empty(cls, n_train: int) -> "Workspace":
        vectors = {name: np.zeros(n_train) for name in cls._fields if name != "picked"}
        return cls(picked=np.zeros(n_train + 1, np.int64), **vectors)


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
def _add_rows(matrix: NDArray[np.float32], index: NDArray[np.int64], count: int, steps: Vector, out: Vector) -> None:
    """out += sum over the first `count` indices j of steps[j] * matrix[j]; four rows share each pass over out."""
    done = count - count % 4
    for at in range(0, done, 4):
        i, j, k, m = index[at], index[at + 1], index[at + 2], index[at + 3]
        a, b, c, d = steps[i], steps[j], steps[k], steps[m]
        row_a, row_b, row_c, row_d = matrix[i], matrix[j], matrix[k], matrix[m]
        for q in range(out.shape[0]):
            out[q] += (a * row_a[q] + b * row_b[q]) + (c * row_c[q] + d * row_d[q])
    for at in range(done, count):
        i = index[at]
        a = steps[i]
        row_a = matrix[i]
        for q in range(out.shape[0]):
            out[q] += a * row_a[q]


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
        _add_rows(corr, index[first : first + size], size, steps, h)


@compiled
def _minimise(
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
    return gap


@compiled
def _extrapolate(now: Vector, before: Vector, ratio: float) -> None:
    """now += ratio * (now - before), and before takes the old value of now."""
    for j in range(now.shape[0]):
        old = now[j]
        now[j] = old + ratio * (old - before[j])
        before[j] = old


@compiled
def _foresee(corr: Matrix, work: Workspace, ratio: float) -> None:
    """Extrapolate to the next lambda; weights that would change sign stop at 0. ratio: coming step over the last."""
    _extrapolate(work.w, work.before, ratio)
    _extrapolate(work.h, work.h_before, ratio)
    count = 0
    for j in range(work.w.shape[0]):
        work.foreseen[j] = work.w[j]
        work.picked[count] = j
        count += work.w[j] != 0.0 and work.w[j] * work.before[j] <= 0.0
    for at in range(count):
        j = work.picked[at]
        work.excess[j] = -work.w[j]
        work.w[j] = 0.0
    _add_rows(corr, work.picked, count, work.excess, work.h)


@compiled
def _heldout_squares(heldout: Heldout, work: Workspace) -> float:
    """Sum of the squared errors on the held-out rows; brings `held` up to date with the weights."""
    w = work.w
    count = 0
    for j in range(w.shape[0]):
        work.excess[j] = w[j] - work.foreseen[j]
        work.foreseen[j] = w[j]
        work.picked[count] = j
        count += work.excess[j] != 0.0
    _add_rows(heldout.moments, work.picked, count, work.excess, work.held)
    linear, quadratic = 0.0, 0.0
    for j in range(w.shape[0]):
        linear += w[j] * heldout.cross[j]
        quadratic += w[j] * work.held[j]
    return heldout.squares - 2.0 * linear + quadratic


@compiled
def _start(work: Workspace) -> None:
    for j in range(work.w.shape[0]):
        work.w[j] = work.before[j] = work.h[j] = work.h_before[j] = 0.0
        work.held[j] = work.held_before[j] = work.foreseen[j] = 0.0


@compiled
def path(
    corr: Matrix, cov: Vector, var: float, lams: Vector, tol: float, work: Workspace, weights: NDArray[Any]
) -> float:
    """Write the weights [k, N] at every lambda, each to a relative gap of at most tol; returns the largest gap."""
    _start(work)
    worst = 0.0
    for i in range(lams.shape[0]):
        if i > 1:
            _foresee(corr, work, (lams[i] - lams[i - 1]) / (lams[i - 1] - lams[i - 2]))
        worst = max(worst, _minimise(corr, cov, var, work, lams[i], 0.9 * tol, tol, 1))
        weights[i] = work.w
    return worst


@compiled
def choose(
    corr: Matrix,
    cov: Vector,
    var: float,
    heldout: Heldout,
    lams: Vector,
    tol: float,
    patience: int,
    least: int,
    sharp: int,
    work: Workspace,
    best_w: Vector,
) -> tuple[int, int, float, float]:
    """Follow one target's path on the training rows and choose its lambda by the held-out error.

    Where the held-out error falls slowly, or two lambdas come close in it, up to `sharp` sweeps go into a gap far below
    tol, so that the choice is that of exact solutions. Writes the chosen weights into best_w. Returns (index of the
    chosen lambda, lambdas tried, held-out squares, largest relative gap).
    """
    _start(work)
    best, best_squares, worst, tried = 0, np.inf, 0.0, 0
    for i in range(lams.shape[0]):
        lam = lams[i]
        if i > 1:
            ratio = (lam - lams[i - 1]) / (lams[i - 1] - lams[i - 2])
            _foresee(corr, work, ratio)
            _extrapolate(work.held, work.held_before, ratio)
        aim, most, gap, squares = 0.9 * tol, 1, 0.0, 0.0
        for _ in range(2):
            gap = _minimise(corr, cov, var, work, lam, aim, tol, most)
            squares = _heldout_squares(heldout, work)
            doubt = tol * heldout.squares  # several times the error that the gap leaves
            close = best_squares - 10.0 * doubt <= squares <= best_squares + doubt
            if not close and cov.shape[0] > _FEW:
                break
            aim, most = 1e-5 * tol, sharp
        worst = max(worst, gap)
        tried += 1
        if squares < best_squares:
            best, best_squares = i, squares
            for j in range(best_w.shape[0]):
                best_w[j] = work.w[j]
        elif tried >= least and i - best >= patience:
            break
    return best, tried, best_squares, worst


@compiled
def refit(
    corr: Matrix,
    counts: NDArray[np.int32],
    rows: float,
    mean: Vector,
    inv: Vector,
    cov: Vector,
    var: float,
    lam: float,
    tol: float,
    most: int,
    work: Workspace,
    w: Vector,
) -> float:
    """Minimise at lam from the standardised weights w, in place, far below tol if `most` sweeps allow.

    Every round starts from the gradient that the exact counts give. Returns the relative gap.
    """
    gap = np.inf
    for _ in range(6):
        for j in range(w.shape[0]):
            work.w[j] = w[j]
        exact_gradient(counts, rows, mean, inv, cov, w, work.held)
        now, _ = certify(cov, var, lam, w, work.held)
        if now <= 1e-6 * tol or now > 0.5 * gap:  # done, or rounding allows no better
            return now
        gap = now
        for j in range(w.shape[0]):
            work.h[j] = cov[j] - w[j] - work.held[j]
        _minimise(corr, cov, var, work, lam, 0.5e-6 * tol, 0.5 * tol, most)
        for j in range(w.shape[0]):
            w[j] = work.w[j]
    return gap
