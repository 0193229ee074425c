"""Compiled kernels: one target's path of lambdas, and the choice among them by the validation error.

From lambda to lambda w and its product with the counts are extrapolated linearly (the path is piecewise linear, so
that little but the coordinates that entered last has to move). Every lambda is solved to the tolerance of the path.
Where the choice, or the end of the path, depends on errors that are too close to tell apart, those lambdas alone are
solved further.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.compiled import compiled, jitable
from datamodels.lasso.solver.descent import settle
from datamodels.lasso.solver.validation import Validation, validation_squares
from datamodels.lasso.solver.working_set import (
    PAST,
    Design,
    Vector,
    WorkingSet,
    add_rows,
    begin,
    copy,
    product_at,
    step,
)

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
    design: Design,
    at: WorkingSet,
    cov: Vector,
    var: float,
    validation: Validation,
    lams: Vector,
    tol: float,
    patience: int,
    least: int,
    sweeps: int,
    best_w: Vector,
) -> tuple[int, int, float, float]:
    """Follow one target's path on the training rows and choose its lambda by the validation error.

    Lambdas that the choice depends on are solved to ever smaller gaps, with up to `sweeps` sweeps each time, until the
    choice is the one that exact solutions give. Writes the chosen weights [N] into best_w. Returns (index of the
    chosen lambda, lambdas tried, its sum of squared validation errors, largest relative gap).
    """
    count = lams.shape[0]
    errors = Errors(np.empty(count), np.empty(count), np.zeros(count, np.int64), np.full(1, -1.0))
    worst, unit, tried, done = 0.0, max(tol * validation.squares, 1e-300), 0, False
    while not done:  # a single call of `settle`: each would be compiled anew
        i, done = _next(errors, tried, count, patience, least)
        new = i == tried
        if new:
            ahead, ratio = _extrapolate(design, at, cov, lams, i)
            aim = _AIMS[0] * tol
        else:
            aim = _AIMS[0] * tol if done else _AIMS[errors.levels[i] + 1] * tol
            _recall(design, at, max(i, tried - PAST))
            ahead, ratio = 0.0, 0.0
        sharp = not new and not done
        enough, most, slot = (tol, sweeps, 2) if sharp else (_ENOUGH * tol, 1, 0 if new else 2)
        gap = settle(design, at, cov, var, lams[i], aim, enough, most, slot, ahead, ratio)
        if not sharp:
            worst = max(worst, gap)
        if done:
            break
        squares = validation_squares(validation, at)
        if sharp:
            change = abs(squares - errors.squares[i]) / (_AIMS[errors.levels[i]] * unit)
            errors.largest_change[0] = max(errors.largest_change[0], change)
            errors.levels[i] += 1
        errors.squares[i] = squares
        tried += new
        if i >= tried - PAST:
            _remember(at, i)
        _bound_doubts(errors, unit, tried)

    best_w[:] = 0.0
    for j in range(at.size[0]):
        best_w[at.members[j]] = at.w[j]
    return i, tried, errors.squares[i], worst


@jitable
def _next(errors: Errors, tried: int, count: int, patience: int, least: int) -> tuple[int, bool]:
    """The lambda to solve next, the first that is not tried or one to be solved further; or the choice, and True."""
    squares, doubts, levels = errors.squares, errors.doubts, errors.levels
    ended, old = tried == count, tried - patience
    if not ended and tried >= least and old >= 1:
        a, b = _rivals(squares, doubts, tried, old)
        if a >= 0 and b >= 0:
            return a if levels[a] <= levels[b] else b, False
        ended = a < 0
    if not ended:
        return tried, False
    best, rival = _best(squares, doubts, tried)
    if rival >= 0:
        return best if levels[best] <= levels[rival] else rival, False
    return best, levels[best] > 0


@compiled
def path(
    design: Design, at: WorkingSet, cov: Vector, var: float, lams: Vector, tol: float, weights: NDArray[Any]
) -> float:
    """Write the weights [k, N] at every lambda, each to a relative gap of at most tol; returns the largest gap."""
    worst = 0.0
    weights[:] = 0.0
    for i in range(lams.shape[0]):
        ahead, ratio = _extrapolate(design, at, cov, lams, i)
        gap = settle(design, at, cov, var, lams[i], _AIMS[0] * tol, _ENOUGH * tol, 1, 0, ahead, ratio)
        worst = max(worst, gap)
        _remember(at, i)
        for j in range(at.size[0]):
            weights[i, at.members[j]] = at.w[j]
    return worst


@jitable
def _extrapolate(design: Design, at: WorkingSet, cov: Vector, lams: Vector, i: int) -> tuple[float, float]:
    """Begin with a target, then at each lambda with the line through the two before; weights that would change sign
    stop at 0.

    Returns the next lambda, or 0, and the ratio of the step there to the step from the one before.
    """
    ahead = lams[i + 1] if i + 1 < lams.shape[0] else 0.0
    if i == 0:
        begin(design, at, cov)
        copy(cov, cov.shape[0], at.grad[1])
        return ahead, 0.0
    copy(at.grad[0], cov.shape[0], at.grad[1])
    now, before, size = (i - 1) % PAST, max(i - 2, 0) % PAST, at.size[0]
    ratio = (lams[i] - lams[i - 1]) / (lams[i - 1] - lams[i - 2]) if i > 1 else 0.0
    _complete(design, at, now)
    _complete(design, at, before)
    _extend(at.past_w[now], at.past_w[before], ratio, size, at.w)
    _extend(at.past_product[now], at.past_product[before], ratio, size, at.product)
    _extend(at.past_sums[now], at.past_sums[before], ratio, 2, at.sums)
    _extend(at.past_predicted[now], at.past_predicted[before], ratio, at.predicted.shape[0], at.predicted)
    count = 0
    for j in range(size):
        at.predicted_w[j] = at.w[j]
        at.picked[count] = j
        count += at.w[j] != 0.0 and at.w[j] * at.past_w[now, j] <= 0.0
    for k in range(count):
        at.change[k] = step(design, at, at.picked[k], -at.w[at.picked[k]])
    add_rows(at.counts, at.picked, count, at.change, size, at.product)
    return ahead, (ahead - lams[i]) / (lams[i] - lams[i - 1])


@jitable
def _extend(now: Vector, before: Vector, ratio: float, size: int, out: Vector) -> None:
    for j in range(size):
        out[j] = now[j] + ratio * (now[j] - before[j])


@jitable
def _complete(design: Design, at: WorkingSet, place: int) -> None:
    """Fill in, for a lambda remembered, the examples that have become members since: they had weight 0."""
    old, size = at.past_size[place], at.size[0]
    for j in range(old, size):
        at.past_product[place, j] = product_at(design, at, at.past_w[place], old, j)
    at.past_w[place, old:size] = 0.0
    at.past_size[place] = size


@jitable
def _remember(at: WorkingSet, i: int) -> None:
    place, size = i % PAST, at.size[0]
    copy(at.w, size, at.past_w[place])
    copy(at.product, size, at.past_product[place])
    copy(at.sums, 2, at.past_sums[place])
    copy(at.predicted, at.predicted.shape[0], at.past_predicted[place])
    at.past_size[place] = size


@jitable
def _recall(design: Design, at: WorkingSet, i: int) -> None:
    """Restore the weights of lambda i."""
    place, size = i % PAST, at.size[0]
    _complete(design, at, place)
    copy(at.past_w[place], size, at.w)
    copy(at.past_product[place], size, at.product)
    copy(at.past_sums[place], 2, at.sums)
    copy(at.past_predicted[place], at.predicted.shape[0], at.predicted)
    copy(at.w, size, at.predicted_w)


@jitable
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


@jitable
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


@jitable
def _bound_doubts(errors: Errors, unit: float, tried: int) -> None:
    """Bound how far every error may be from that of the exact solution."""
    seen = errors.largest_change[0]
    ratio = _DOUBT if seen < 0.0 else max(_SAFETY * seen, _LEAST_DOUBT)
    for k in range(tried):
        level = errors.levels[k]
        errors.doubts[k] = ratio * _AIMS[level] * unit if level < len(_AIMS) - 1 else 0.0
