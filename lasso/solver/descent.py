"""Compiled kernels: coordinate descent for one LASSO target on the counts of its working set.

The kernels keep the standardised weights w and the product of the counts with them in float64. With g the gradient of
the loss, coordinate j's minimiser is soft(g_j + w_j, lam), and moving it costs one addition of a row of counts to the
product: no row of masks is ever read. Only coordinates whose step matters to the duality gap are moved.

Coordinate descent with covariance updates: Friedman, Hastie & Tibshirani, "Regularization paths for generalized linear
models via coordinate descent" (J. Stat. Softw. 2010). Working sets: Massias, Gramfort & Salmon, "Celer: a fast solver
for the Lasso with dual extrapolation" (ICML 2018).
"""

import numpy as np

from datamodels.lasso.compiled import jitable
from datamodels.lasso.solver.active_set import step_on_active_set
from datamodels.lasso.solver.gap import Scalars, others_gradient, relative_gap, scalars
from datamodels.lasso.solver.working_set import Design, Vector, WorkingSet, add_members, add_rows, gradient, step

_HARD_LIMIT = 2_000
"""Sweeps at one lambda after which a target counts as not converged."""
_MOVES, _PATIENCE, _PRODUCTS = 2.5, 12, 8
"""Moves for every nonzero weight, or else sweeps, after which a step on the active set is taken, and products with the
counts that it may take."""
_LONGER = 60
"""Sweeps after which one more step on the active set is taken each time: each may leave a smaller set, and with more
examples than rows it takes many until the masks in the set are linearly independent."""
_OVER, _UNDER = 1.0, 2.0
"""Skip coordinates whose step is below this fraction of the gradient error that the gap tolerates: where the gradient
is above lambda (which scales the dual point down), and where it is below."""
_MOST, _FALL = 0.02, 0.8
"""Largest such step, over lambda, and the factor by which both bounds fall from sweep to sweep."""

_NEAR = 0.98
"""Share of the next lambda that a gradient is expected to reach where its example joins the working set."""


@jitable
def settle(
    design: Design,
    at: WorkingSet,
    cov: Vector,
    var: float,
    lam: float,
    aim: float,
    enough: float,
    most: int,
    slot: int,
    ahead: float,
    ratio: float,
) -> float:
    """Minimise at one lambda over all examples, as `minimise` does over those of the working set.

    Examples outside it are tested by their gradient, which is written into slot `slot` of `grad`, and added where the
    gap needs them, or (if `ahead` is the next lambda of the path, else 0) where the line through their gradients here
    and at the lambda before reaches it; ratio: of the steps from lambda to lambda. Returns the gap.
    """
    while True:
        gap = minimise(design, at, var, lam, aim, enough, most)
        if design.bits.shape[1] == 0:
            return gap
        out, before = at.grad[slot], at.grad[1]
        steepest = others_gradient(design, at, cov, most > 1, out)
        inner = scalars(design, at)
        if steepest > inner.steepest:
            gap = relative_gap(var, lam, Scalars(steepest, inner.weight_cov, inner.weight_grad, inner.norm, 0))
        met = steepest <= inner.steepest or gap <= (enough if most == 1 else aim)
        joining, count = np.empty(out.shape[0], np.int64), 0
        for j in range(out.shape[0]):
            needed = abs(out[j]) > lam or (ahead > 0.0 and abs(out[j] + ratio * (out[j] - before[j])) >= _NEAR * ahead)
            if needed and not at.inside[j]:
                joining[count] = j
                count += 1
        add_members(design, at, cov, joining, count)
        if met or count == 0:  # without new members, rounding may keep the gap above the aim for ever
            return gap


@jitable
def minimise(design: Design, at: WorkingSet, var: float, lam: float, aim: float, enough: float, most: int) -> float:
    """Descend at one lambda until the relative gap is at most `aim`, or at most `enough` after `most` sweeps.

    Returns the gap.
    """
    share, moves = 1.0, 0
    for sweeps in range(_HARD_LIMIT):
        now = scalars(design, at)
        gap = relative_gap(var, lam, now)
        if gap <= aim or (gap <= enough and sweeps >= most):
            return gap
        tolerated, largest = 0.5 * share * aim * var / max(now.norm, 1e-300), _MOST * share * lam
        count = _pick(design, at, lam, min(_OVER * tolerated, largest), min(_UNDER * tolerated, largest))
        if count == 0 and share < 1e-15:  # rounding keeps the gap above the aim
            return gap
        _sweep(design, at, lam, count)
        share *= _FALL if count else 0.1
        moves += count
        if moves > _MOVES * now.active or sweeps % _PATIENCE == _PATIENCE - 1:
            moves = 0
            for _ in range(1 + sweeps // _LONGER):
                if not step_on_active_set(design, at, lam, _PRODUCTS):
                    break
    return gap


@jitable
def _soft(value: float, lam: float) -> float:
    return max(value - lam, 0.0) + min(value + lam, 0.0)


@jitable
def _pick(design: Design, at: WorkingSet, lam: float, over: float, under: float) -> int:
    """List the coordinates whose step exceeds `over` (gradient above lam) or `under`; returns how many."""
    w, excess = at.w, at.change
    for j in range(at.size[0]):
        grad = gradient(design, at, j)
        excess[j] = abs(_soft(grad + w[j], lam) - w[j]) - (over if abs(grad) > lam else under)
    count = 0
    for j in range(at.size[0]):  # without a branch
        at.picked[count] = j
        count += excess[j] > 0.0
    return count


@jitable
def _sweep(design: Design, at: WorkingSet, lam: float, count: int) -> None:
    """Coordinate descent over the coordinates picked, four to each pass over the product."""
    index = at.picked
    for first in range(0, count, 4):
        size = min(4, count - first)
        for p in range(size):
            j = index[first + p]
            grad = gradient(design, at, j)
            for q in range(p):
                grad -= at.inv[j] * at.change[q] * at.counts[index[first + q], j]
            at.change[p] = step(design, at, j, _soft(grad + at.w[j], lam) - at.w[j])
        add_rows(at.counts, index[first : first + size], size, at.change, at.size[0], at.product)
