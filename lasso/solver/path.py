"""Compiled kernels: one target's path of lambdas, and the choice among them by the held-out error.

From lambda to lambda w and R w are extrapolated linearly (the LASSO path is piecewise linear, so that next to nothing
but the coordinates that entered last is off). The path is walked loosely, and only lambdas that the choice hangs on are
solved further.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.compiled import compiled
from datamodels.lasso.solver.buffers import PAST, Matrix, Workspace, add_rows, start
from datamodels.lasso.solver.descent import minimise
from datamodels.lasso.solver.gap import Vector
from datamodels.lasso.solver.validation import Heldout, heldout_squares

AIMS = (0.9, 3e-2, 1e-3, 1e-5)
"""Relative gaps, over the tolerance, that a lambda is solved to: on the way, and as a contender for the best."""
_ENOUGH = 0.98
"""Gap over the tolerance that is enough after the first sweep: R in float32 lets it be larger by a little."""
DOUBT, SAFETY, LEAST_DOUBT = 50.0, 4.0, 8.0
"""What a relative gap leaves open of the held-out squared error, over gap times squares: before any lambda of a target
was solved further; later so many times the largest change that this made, but no less than the last. Most changes are
2 to 5. The last of the aims is decisive."""


class Search(NamedTuple):
    """What is known of the held-out errors [k] along a path."""

    errors: Vector
    doubts: Vector
    """how far each may be from that of the exact solution"""
    levels: NDArray[np.int64]
    """how far each was solved: index into the aims"""
    seen: Vector
    """[1]: largest change that solving further made, over gap times squares; -1 before the first"""


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
    add_rows(corr, work.picked, count, work.excess, work.h)


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
def path(
    corr: Matrix, cov: Vector, var: float, lams: Vector, tol: float, work: Workspace, weights: NDArray[Any]
) -> float:
    """Write the weights [k, N] at every lambda, each to a relative gap of at most tol; returns the largest gap."""
    start(work)
    worst = 0.0
    for i in range(lams.shape[0]):
        _foresee(corr, work, lams, i)
        worst = max(worst, minimise(corr, cov, var, work, lams[i], AIMS[0] * tol, _ENOUGH * tol, 1))
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
    ratio = DOUBT if search.seen[0] < 0.0 else max(SAFETY * search.seen[0], LEAST_DOUBT)
    for k in range(tried):
        level = search.levels[k]
        search.doubts[k] = ratio * AIMS[level] * unit if level < len(AIMS) - 1 else 0.0


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
    start(work)
    search = Search(
        np.empty(lams.shape[0]), np.empty(lams.shape[0]), np.zeros(lams.shape[0], np.int64), np.full(1, -1.0)
    )
    worst, unit, tried = 0.0, max(tol * heldout.squares, 1e-300), 0
    for i in range(lams.shape[0]):
        _foresee(corr, work, lams, i)
        worst = max(worst, minimise(corr, cov, var, work, lams[i], AIMS[0] * tol, _ENOUGH * tol, 1))
        search.errors[i] = heldout_squares(heldout, work)
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
    _return(work, max(best, tried - PAST))
    worst = max(worst, minimise(corr, cov, var, work, lams[best], AIMS[0] * tol, _ENOUGH * tol, 1))
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
        _return(work, max(k, tried - PAST))
        minimise(corr, cov, var, work, lams[k], AIMS[level + 1] * tol, tol, sharp)
        error = heldout_squares(heldout, work)
        if k >= tried - PAST:
            _keep(work, k)
        search.seen[0] = max(search.seen[0], abs(error - search.errors[k]) / (AIMS[level] * unit))
        search.errors[k] = error
        levels[k] = level + 1
    _doubt(search, unit, tried)
