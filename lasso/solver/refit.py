"""Compiled kernels: one target's weights at its lambda, far more exactly than along the path."""

import numpy as np

from datamodels.lasso.compiled import compiled, jitable
from datamodels.lasso.solver.descent import settle
from datamodels.lasso.solver.gap import check_optimality, exact_gradient
from datamodels.lasso.solver.working_set import Design, Vector, WorkingSet, add_members, begin


@compiled
def refit(
    design: Design,
    at: WorkingSet,
    cov: Vector,
    var: float,
    lam: float,
    tol: float,
    sweeps: int,
    rounds: int,
    weights: Vector,
) -> float:
    """Minimise from the weights [N] given, in place, far below the gap tol if so many sweeps allow.

    Every round begins with products from nothing but the masks. Returns the gap.
    """
    n_train, grad = weights.shape[0], np.empty(weights.shape[0])
    w, best = weights.copy(), np.inf
    for _ in range(rounds):
        exact_gradient(design, cov, w, grad)
        gap, _ = check_optimality(cov, var, lam, w, grad)
        halved = gap <= 0.5 * best
        if gap < best:
            best = gap
            for j in range(n_train):
                weights[j] = w[j]
        if best <= 1e-6 * tol or (best <= tol and not halved):  # done, or rounding allows no better
            break
        _place(design, at, cov, lam, w, grad)
        settle(design, at, cov, var, lam, 0.5e-6 * tol, 0.5 * tol, sweeps, 2, 0.0, 0.0)
        for j in range(n_train):
            w[j] = 0.0
        for j in range(at.size[0]):
            w[at.members[j]] = at.w[j]
    return best


@jitable
def _place(design: Design, at: WorkingSet, cov: Vector, lam: float, w: Vector, grad: Vector) -> None:
    """Put the working set at these weights [N], of which this is the gradient."""
    begin(design, at, cov)
    if design.bits.shape[1] > 0:
        joining, count = np.empty(w.shape[0] + 1, np.int64), 0
        for j in range(w.shape[0]):
            joining[count] = j
            count += w[j] != 0.0 or abs(grad[j]) > 0.98 * lam
        add_members(design, at, cov, joining, count)
    for j in range(at.size[0]):
        example = at.members[j]
        at.w[j] = w[example]
        u = w[example] * at.inv[j] / design.rows
        at.sums[0] += u
        at.sums[1] += u * design.rows * at.mean[j]
    for j in range(at.size[0]):
        example = at.members[j]
        if at.inv[j] > 0.0:
            inside = (cov[example] - grad[example] - at.diagonal[j] * at.w[j]) / at.inv[j]
            at.product[j] = inside - design.base * at.sums[0] + at.mean[j] * at.sums[1]
