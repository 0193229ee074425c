"""Compiled kernels: one target's path of lambdas, and the choice among them by the validation error.

From lambda to lambda w and R w are extrapolated linearly (the LASSO path is piecewise linear, so that little but the
coordinates that entered last has to move). Every lambda is solved to the tolerance of the path. Where the choice, or
the end of the path, depends on errors that are too close to tell apart, those lambdas alone are solved further.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.compiled import compiled
from datamodels.lasso.solver.buffers import PAST, Buffers, Matrix, add_rows, clear
from datamodels.lasso.solver.descent import minimise
from datamodels.lasso.solver.gap import Vector
from datamodels.lasso.solver.validation import Validation, validation_squares

_AIMS = (0.9, 3e-2, 1e-3, 1e-5)
"""Relative gaps, over the tolerance, that a lambda is solved to: at first, and while it may be the best."""
_ENOUGH = 0.98
"""Gap over the tolerance that is enough after the first sweep: R in float32 lets the true gap be a little larger."""
_DOUBT, _SAFETY, _LEAST_DOUBT = 50.0, 4.0, 8.0
"""How far a validation error may be from that of the exact solution, over gap times squares: _DOUBT until a lambda of
the target is solved further, then _SAFETY times the largest change which that made, but at least _LEAST_DOUBT. Most
changes are 2 to 5. An error solved to the last of the aims counts as exact."""


class Errors(NamedTuple):
    """What is known of the validation errors along a path."""

    squares: Vector
    """[k]: sums of squared errors"""
    doubts: Vector
    """[k]: how far each may be from that of the exact solution"""
    levels: NDArray[np.int64]
    """[k]: which of the aims each lambda is solved to"""
    largest_change: Vector
    """[1]: over gap times squares, by solving a lambda further; -1 before the first"""


@compiled
def choose(
    corr: Matrix,
    cov: Vector,
    var: float,
    validation: Validation,
    lams: Vector,
    tol: float,
    patience: int,
    least: int,
    sweeps: int,
    buffers: Buffers,
    best_w: Vector,
) -> tuple[int, int, float, float]:
    """Follow one target's path on the training rows and choose its lambda by the validation error.

    Lambdas that the choice depends on are solved to ever smaller gaps, with up to `sweeps` sweeps each time, until the
    choice is the one that exact solutions give. Writes the chosen weights into best_w. Returns (index of the chosen
    lambda, lambdas tried, its sum of squared validation errors, largest relative gap).
    """
    clear(buffers)
    k = lams.shape[0]
    errors = Errors(np.empty(k), np.empty(k), np.zeros(k, np.int64), np.full(1, -1.0))
    worst, unit, tried = 0.0, max(tol * validation.squares, 1e-300), 0
    for i in range(k):
        _extrapolate(corr, buffers, lams, i)
        worst = max(worst, minimise(corr, cov, var, buffers, lams[i], _AIMS[0] * tol, _ENOUGH * tol, 1))
        errors.squares[i] = validation_squares(validation, buffers)
        _remember(buffers, i)
        tried = i + 1
        old = tried - patience
        if tried < least or old < 1:
            continue
        _bound_doubts(errors, unit, tried)
        a, b = _rivals(errors.squares, errors.doubts, tried, old)
        while a >= 0 and b >= 0:
            _solve_further(corr, cov, var, validation, lams, tol, sweeps, buffers, errors, tried, a, b)
            a, b = _rivals(errors.squares, errors.doubts, tried, old)
        if a < 0:
            break

    _bound_doubts(errors, unit, tried)
    best, rival = _best(errors.squares, errors.doubts, tried)
    while rival >= 0 or errors.levels[best] == 0:
        other = rival if rival >= 0 else best
        _solve_further(corr, cov, var, validation, lams, tol, sweeps, buffers, errors, tried, best, other)
        best, rival = _best(errors.squares, errors.doubts, tried)

    _recall(buffers, max(best, tried - PAST))
    worst = max(worst, minimise(corr, cov, var, buffers, lams[best], _AIMS[0] * tol, _ENOUGH * tol, 1))
    best_w[:] = buffers.w
    return best, tried, errors.squares[best], worst


@compiled
def path(
    corr: Matrix, cov: Vector, var: float, lams: Vector, tol: float, buffers: Buffers, weights: NDArray[Any]
) -> float:
    """Write the weights [k, N] at every lambda, each to a relative gap of at most tol; returns the largest gap."""
    clear(buffers)
    worst = 0.0
    for i in range(lams.shape[0]):
        _extrapolate(corr, buffers, lams, i)
        worst = max(worst, minimise(corr, cov, var, buffers, lams[i], _AIMS[0] * tol, _ENOUGH * tol, 1))
        _remember(buffers, i)
        weights[i] = buffers.w
    return worst


@compiled
def _extrapolate(corr: Matrix, buffers: Buffers, lams: Vector, i: int) -> None:
    """Begin at lambda i with the line through the two before; weights that would change sign stop at 0."""
    if i == 0:
        return
    now, before = (i - 1) % PAST, max(i - 2, 0) % PAST
    ratio = (lams[i] - lams[i - 1]) / (lams[i - 1] - lams[i - 2]) if i > 1 else 0.0
    _extend(buffers.past_w[now], buffers.past_w[before], ratio, buffers.w)
    _extend(buffers.past_h[now], buffers.past_h[before], ratio, buffers.h)
    _extend(buffers.past_predicted[now], buffers.past_predicted[before], ratio, buffers.predicted)
    count = 0
    for j in range(buffers.w.shape[0]):
        buffers.predicted_w[j] = buffers.w[j]
        buffers.picked[count] = j
        count += buffers.w[j] != 0.0 and buffers.w[j] * buffers.past_w[now, j] <= 0.0
    for at in range(count):
        j = buffers.picked[at]
        buffers.change[j] = -buffers.w[j]
        buffers.w[j] = 0.0
    add_rows(corr, buffers.picked, count, buffers.change, buffers.h)


@compiled
def _extend(now: Vector, before: Vector, ratio: float, out: Vector) -> None:
    for j in range(now.shape[0]):
        out[j] = now[j] + ratio * (now[j] - before[j])


@compiled
def _remember(buffers: Buffers, i: int) -> None:
    place = i % PAST
    buffers.past_w[place], buffers.past_h[place] = buffers.w, buffers.h
    buffers.past_predicted[place] = buffers.predicted


@compiled
def _recall(buffers: Buffers, i: int) -> None:
    """Restore the weights of lambda i."""
    place = i % PAST
    buffers.w[:], buffers.h[:] = buffers.past_w[place], buffers.past_h[place]
    buffers.predicted[:], buffers.predicted_w[:] = buffers.past_predicted[place], buffers.w


@compiled
def _rivals(squares: Vector, doubts: Vector, tried: int, old: int) -> tuple[int, int]:
    """The strongest contenders for the least error among the first `old` lambdas tried and among the newer ones.

    (-1, 0) if the older one surely wins, (0, -1) if the newer one does. A tie goes to the older one.
    """
    a, b, sure_a, sure_b = 0, old, np.inf, np.inf
    for k in range(tried):
        if k < old:
            sure_a = min(sure_a, squares[k] + doubts[k])
            a = k if squares[k] - doubts[k] < squares[a] - doubts[a] else a
        else:
            sure_b = min(sure_b, squares[k] + doubts[k])
            b = k if squares[k] - doubts[k] < squares[b] - doubts[b] else b
    if sure_a <= squares[b] - doubts[b]:
        return -1, 0
    if sure_b < squares[a] - doubts[a]:
        return 0, -1
    return a, b


@compiled
def _best(squares: Vector, doubts: Vector, tried: int) -> tuple[int, int]:
    """The lambda with the least error, as far as is known, and its strongest rival, or -1 where it surely wins."""
    best, rival, least = 0, -1, np.inf
    for k in range(tried):
        best = k if squares[k] + doubts[k] < squares[best] + doubts[best] else best
    sure = squares[best] + doubts[best]
    for k in range(tried):
        low = squares[k] - doubts[k]
        if k != best and low < least and (low < sure or (k < best and low == sure)):
            rival, least = k, low
    return best, rival


@compiled
def _bound_doubts(errors: Errors, unit: float, tried: int) -> None:
    """Bound how far every error may be from that of the exact solution."""
    seen = errors.largest_change[0]
    ratio = _DOUBT if seen < 0.0 else max(_SAFETY * seen, _LEAST_DOUBT)
    for k in range(tried):
        level = errors.levels[k]
        errors.doubts[k] = ratio * _AIMS[level] * unit if level < len(_AIMS) - 1 else 0.0


@compiled
def _solve_further(
    corr: Matrix,
    cov: Vector,
    var: float,
    validation: Validation,
    lams: Vector,
    tol: float,
    sweeps: int,
    buffers: Buffers,
    errors: Errors,
    tried: int,
    a: int,
    b: int,
) -> None:
    """Solve the lambda of a and b that is solved less far (or both) to its next aim."""
    levels, unit = errors.levels, max(tol * validation.squares, 1e-300)
    level = min(levels[a], levels[b])
    for k in (a, b):
        if levels[k] != level:
            continue
        _recall(buffers, max(k, tried - PAST))
        minimise(corr, cov, var, buffers, lams[k], _AIMS[level + 1] * tol, tol, sweeps)
        squares = validation_squares(validation, buffers)
        if k >= tried - PAST:
            _remember(buffers, k)
        change = abs(squares - errors.squares[k]) / (_AIMS[level] * unit)
        errors.largest_change[0] = max(errors.largest_change[0], change)
        errors.squares[k] = squares
        levels[k] = level + 1
    _bound_doubts(errors, unit, tried)
