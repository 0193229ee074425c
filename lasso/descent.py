"""Compiled kernels: coordinate descent for one LASSO target on the correlations of the masks.

With R = Z'Z/n - I (correlations without their diagonal, float32) and c = Z'y/n, the kernels keep the standardised
weights w and h = R w in float64. The gradient of the loss is then g = c - h - w, coordinate j's minimiser is
soft(c_j - h_j, lam), and moving it by d costs one addition of d * R[j] to h: no row is ever seen.

Along the path w and h are extrapolated linearly in lambda (the LASSO path is piecewise linear, so that next to nothing
but the coordinates that entered last is off), and only coordinates whose step matters to the duality gap are moved.
What rounding R to float32 does is mended in the refit, by gradients from the exact counts.

The held-out error follows from the held-out rows' masks times the weights, kept as bits: like h, their product is
brought up to date where weights move. Where there are many more held-out rows than examples, their second moments are
the shorter way.

Coordinate descent with covariance updates: Friedman, Hastie & Tibshirani, "Regularization paths for generalized linear
models via coordinate descent" (J. Stat. Softw. 2010).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lasso.certificate import Vector, relative_gap
from lasso.compiled import compiled

Matrix = NDArray[np.float32]

_HARD_LIMIT = 100_000
"""Sweeps at one lambda after which a target counts as not converged."""
_OVER, _UNDER, _MOST, _FALL = 0.7, 2.0, 0.02, 0.8
"""Steps that matter: share of the gradient error that the gap can bear, above lambda (which scales the dual point
down) and below it; at most this share of lambda; fall of the share from sweep to sweep."""
_AIMS = (0.9, 3e-2, 1e-3, 1e-5)
"""Relative gaps, over the tolerance, that a lambda is solved to: on the way, and as a contender for the best."""
_ENOUGH = 0.98
"""Gap over the tolerance that is enough after the first sweep: R in float32 lets it be larger by a little."""
_PAST = 16
"""Lambdas whose weights are remembered."""
_DOUBT, _SAFETY, _LEAST_DOUBT = 50.0, 4.0, 8.0
"""What a relative gap leaves open of the held-out squared error, over gap times squares: before any lambda of a target
was solved further; later so many times the largest change that this made, but no less than the last. Most changes are
2 to 5. The last of the aims is decisive."""


class Heldout(NamedTuple):
    """One target on the held-out rows, standardised by the training rows."""

    bits: NDArray[np.uint64]
    """[N, words]: the rows that hold each example, 64 to a word; or [N, 0], and then there are moments"""
    moments: NDArray[np.float32]
    """Z'Z [N, N], or [0, 0]"""
    rows: int
    mean: Vector
    """[N]: of the masks over the training rows"""
    inv: Vector
    """[N]: 1 / deviation of the masks over the training rows"""
    cross: Vector
    """Z'(y - mean) [N]"""
    squares: float
    """||y - mean||^2"""


class Search(NamedTuple):
    """What is known of the held-out errors [k] along a path."""

    errors: Vector
    doubts: Vector
    """how far each may be from that of the exact solution"""
    levels: NDArray[np.int64]
    """how far each was solved: index into the aims"""
    seen: Vector
    """[1]: largest change that solving further made, over gap times squares; -1 before the first"""


class Workspace(NamedTuple):
    """Memory that one thread uses for target after target, [N] if nothing else is said."""

    w: Vector
    h: Vector
    foreseen: Vector
    """the weights that `held` belongs to"""
    excess: Vector
    picked: NDArray[np.int64]
    """[N + 1]: coordinates picked"""
    held: Vector
    """[N] held-out moments times w, or [64 words] held-out masks times w / deviation"""
    ws: NDArray[np.float64]
    """[R, N]: the last R lambdas' w, lambda i in place i % R"""
    hs: NDArray[np.float64]
    """[R, N]"""
    helds: NDArray[np.float64]
    """[R, ...]"""

    @classmethod
    def empty(cls, n_train: int, held: int = 0) -> "Workspace":
        """held: length of `held`, N where nothing else is said."""
        w, h, foreseen, excess = np.zeros((4, n_train))
        (ws, hs), helds = np.zeros((2, _PAST, n_train)), np.zeros((_PAST, held or n_train))
        picked = np.zeros(n_train + 1, np.int64)
        return cls(w, h, foreseen, excess, picked, np.zeros(held or n_train), ws, hs, helds)


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
def _foresee(corr: Matrix, work: Workspace, lams: Vector, i: int) -> None:
    """Begin at lambda i from what the two before give by extrapolation; weights that would change sign stop at 0."""
    if i == 0:
        return
    now, before = (i - 1) % work.ws.shape[0], max(i - 2, 0) % work.ws.shape[0]
    ratio = (lams[i] - lams[i - 1]) / (lams[i - 1] - lams[i - 2]) if i > 1 else 0.0
    _extrapolate(work.ws[now], work.ws[before], ratio, work.w)
    _extrapolate(work.hs[now], work.hs[before], ratio, work.h)
    _extrapolate(work.helds[now], work.helds[before], ratio, work.held)
    count = 0
    for j in range(work.w.shape[0]):
        work.foreseen[j] = work.w[j]
        work.picked[count] = j
        count += work.w[j] != 0.0 and work.w[j] * work.ws[now, j] <= 0.0
    for at in range(count):
        j = work.picked[at]
        work.excess[j] = -work.w[j]
        work.w[j] = 0.0
    _add_rows(corr, work.picked, count, work.excess, work.h)


@compiled
def _extrapolate(now: Vector, before: Vector, ratio: float, ahead: Vector) -> None:
    for j in range(now.shape[0]):
        ahead[j] = now[j] + ratio * (now[j] - before[j])


@compiled
def _keep(work: Workspace, i: int) -> None:
    place = i % work.ws.shape[0]
    work.ws[place], work.hs[place], work.helds[place] = work.w, work.h, work.held


@compiled
def _return(work: Workspace, i: int) -> None:
    """Take up the weights of lambda i again."""
    place = i % work.ws.shape[0]
    work.w[:], work.h[:], work.held[:] = work.ws[place], work.hs[place], work.helds[place]
    work.foreseen[:] = work.w


@compiled
def _add_columns(bits: NDArray[np.uint64], index: NDArray[np.int64], count: int, steps: Vector, out: Vector) -> None:
    """out [64 words] += sum over the first `count` indices j of steps[j] * bits[j]."""
    one, zero = np.uint64(1), np.uint64(0)
    for at in range(0, count - count % 2, 2):
        i, j = index[at], index[at + 1]
        a, b = steps[i], steps[j]
        for word in range(bits.shape[1]):
            first, second = bits[i, word], bits[j, word]
            for place in range(64):
                here = one << np.uint64(place)
                x = a if first & here != zero else 0.0
                y = b if second & here != zero else 0.0
                out[64 * word + place] += x + y
    if count % 2:
        i = index[count - 1]
        for word in range(bits.shape[1]):
            first = bits[i, word]
            for place in range(64):
                out[64 * word + place] += steps[i] if first & (one << np.uint64(place)) != zero else 0.0


@compiled
def _heldout_squares(heldout: Heldout, work: Workspace) -> float:
    """Sum of the squared errors on the held-out rows; brings `held` up to date with the weights."""
    w = work.w
    by_bits = heldout.bits.shape[1] > 0
    count, linear, quadratic, shift = 0, 0.0, 0.0, 0.0
    for j in range(w.shape[0]):
        work.excess[j] = w[j] - work.foreseen[j]
        work.foreseen[j] = w[j]
        work.picked[count] = j
        count += work.excess[j] != 0.0
        linear += w[j] * heldout.cross[j]
    if by_bits:
        for j in range(w.shape[0]):
            work.excess[j] *= heldout.inv[j]
            shift += w[j] * heldout.inv[j] * heldout.mean[j]
        _add_columns(heldout.bits, work.picked, count, work.excess, work.held)
        total = 0.0
        for row in range(work.held.shape[0]):  # those that only fill up words are 0
            total += work.held[row]
            quadratic += work.held[row] * work.held[row]
        quadratic += shift * (heldout.rows * shift - 2.0 * total)
    else:
        _add_rows(heldout.moments, work.picked, count, work.excess, work.held)
        for j in range(w.shape[0]):
            quadratic += w[j] * work.held[j]
    return heldout.squares - 2.0 * linear + quadratic


@compiled
def _start(work: Workspace) -> None:
    work.w[:], work.h[:], work.held[:], work.foreseen[:] = 0.0, 0.0, 0.0, 0.0


@compiled
def path(
    corr: Matrix, cov: Vector, var: float, lams: Vector, tol: float, work: Workspace, weights: NDArray[Any]
) -> float:
    """Write the weights [k, N] at every lambda, each to a relative gap of at most tol; returns the largest gap."""
    _start(work)
    worst = 0.0
    for i in range(lams.shape[0]):
        _foresee(corr, work, lams, i)
        worst = max(worst, _minimise(corr, cov, var, work, lams[i], _AIMS[0] * tol, _ENOUGH * tol, 1))
        _keep(work, i)
        weights[i] = work.w
    return worst


@compiled
def _rivals(errors: Vector, doubts: Vector, tried: int, old: int) -> tuple[int, int]:
    """The strongest contenders for the least error among the first `old` lambdas tried and among the newer ones.

    (-1, 0) if the older one surely wins, (0, -1) if the newer one does. A tie goes to the older one.
    """
    a, b, sure_a, sure_b = 0, old, np.inf, np.inf
    for k in range(tried):
        if k < old:
            sure_a = min(sure_a, errors[k] + doubts[k])
            a = k if errors[k] - doubts[k] < errors[a] - doubts[a] else a
        else:
            sure_b = min(sure_b, errors[k] + doubts[k])
            b = k if errors[k] - doubts[k] < errors[b] - doubts[b] else b
    if sure_a <= errors[b] - doubts[b]:
        return -1, 0
    if sure_b < errors[a] - doubts[a]:
        return 0, -1
    return a, b


@compiled
def _best(errors: Vector, doubts: Vector, tried: int) -> tuple[int, int]:
    """The lambda with the least error, as far as is known, and its strongest rival, or -1 where it surely wins."""
    best, rival, least = 0, -1, np.inf
    for k in range(tried):
        best = k if errors[k] + doubts[k] < errors[best] + doubts[best] else best
    sure = errors[best] + doubts[best]
    for k in range(tried):
        low = errors[k] - doubts[k]
        if k != best and low < least and (low < sure or (k < best and low == sure)):
            rival, least = k, low
    return best, rival


@compiled
def _doubt(search: Search, unit: float, tried: int) -> None:
    """Say how far every error may be from that of the exact solution."""
    ratio = _DOUBT if search.seen[0] < 0.0 else max(_SAFETY * search.seen[0], _LEAST_DOUBT)
    for k in range(tried):
        level = search.levels[k]
        search.doubts[k] = ratio * _AIMS[level] * unit if level < len(_AIMS) - 1 else 0.0


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

    Lambdas are solved to the tolerance, and those that the choice or the end of the path hangs on further and further,
    with up to `sharp` sweeps each time, until it is that of exact solutions. Writes the chosen weights into best_w.
    Returns (index of the chosen lambda, lambdas tried, held-out squares, largest relative gap).
    """
    _start(work)
    search = Search(
        np.empty(lams.shape[0]), np.empty(lams.shape[0]), np.zeros(lams.shape[0], np.int64), np.full(1, -1.0)
    )
    worst, unit, tried = 0.0, max(tol * heldout.squares, 1e-300), 0
    for i in range(lams.shape[0]):
        _foresee(corr, work, lams, i)
        worst = max(worst, _minimise(corr, cov, var, work, lams[i], _AIMS[0] * tol, _ENOUGH * tol, 1))
        search.errors[i] = _heldout_squares(heldout, work)
        _keep(work, i)
        tried = i + 1
        old = tried - patience
        if tried < least or old < 1:
            continue
        _doubt(search, unit, tried)
        a, b = _rivals(search.errors, search.doubts, tried, old)
        while a >= 0 and b >= 0:
            _sharpen(corr, cov, var, heldout, lams, tol, sharp, work, search, tried, a, b)
            a, b = _rivals(search.errors, search.doubts, tried, old)
        if a < 0:
            break
    _doubt(search, unit, tried)
    best, rival = _best(search.errors, search.doubts, tried)
    while rival >= 0 or search.levels[best] == 0:
        _sharpen(corr, cov, var, heldout, lams, tol, sharp, work, search, tried, best, rival if rival >= 0 else best)
        best, rival = _best(search.errors, search.doubts, tried)
    _return(work, max(best, tried - _PAST))
    worst = max(worst, _minimise(corr, cov, var, work, lams[best], _AIMS[0] * tol, _ENOUGH * tol, 1))
    best_w[:] = work.w
    return best, tried, search.errors[best], worst


@compiled
def _sharpen(
    corr: Matrix,
    cov: Vector,
    var: float,
    heldout: Heldout,
    lams: Vector,
    tol: float,
    sharp: int,
    work: Workspace,
    search: Search,
    tried: int,
    a: int,
    b: int,
) -> None:
    """Solve the looser of the lambdas a and b (or both) a level further."""
    levels, unit = search.levels, max(tol * heldout.squares, 1e-300)
    level = min(levels[a], levels[b])
    for k in (a, b):
        if levels[k] != level:
            continue
        _return(work, max(k, tried - _PAST))
        _minimise(corr, cov, var, work, lams[k], _AIMS[level + 1] * tol, tol, sharp)
        error = _heldout_squares(heldout, work)
        if k >= tried - _PAST:
            _keep(work, k)
        search.seen[0] = max(search.seen[0], abs(error - search.errors[k]) / (_AIMS[level] * unit))
        search.errors[k] = error
        levels[k] = level + 1
    _doubt(search, unit, tried)


@compiled
def refine(
    corr: Matrix, cov: Vector, var: float, lam: float, tol: float, most: int, work: Workspace, grad: Vector
) -> None:
    """Minimise at lam from the weights and the exact gradient in `work`, far below tol if `most` sweeps allow."""
    for j in range(grad.shape[0]):
        work.h[j] = cov[j] - work.w[j] - grad[j]
    _minimise(corr, cov, var, work, lam, 0.5e-6 * tol, 0.5 * tol, most)
