"""Compiled kernels: the duality gap of any weights, and their gradient from nothing but the masks, in float64."""

from typing import NamedTuple

import numpy as np

from datamodels.lasso.compiled import compiled, jitable
from datamodels.lasso.solver.bit_sums import sum_over_rows
from datamodels.lasso.solver.working_set import Design, Vector, WorkingSet, add_columns, add_rows, gradient


class Scalars(NamedTuple):
    """What the gap follows from: of the weights w and the gradient g."""

    steepest: float
    """max|g|"""
    weight_cov: float
    """w . c"""
    weight_grad: float
    """w . g"""
    norm: float
    """||w||_1"""
    active: int
    """nonzero weights"""


@jitable
def relative_gap(var: float, lam: float, of: Scalars) -> float:
    """Duality gap over P(0) = var / 2.

    With r = y - Zw: ||r||^2/n = var - w.c - w.g and y.r/n = var - w.c. The dual is max y.t/n - ||t||^2/(2n) over
    |Z't|/n <= lam; the point taken is t = scale * r with the best feasible scale (|scale| <= lam / max|g|).
    """
    squares = max(var - of.weight_cov - of.weight_grad, 0.0)
    along = var - of.weight_cov
    scale = min(lam / max(of.steepest, 1e-300), along / max(squares, 1e-300))
    scale = max(scale, -lam / max(of.steepest, 1e-300))
    primal = 0.5 * squares + lam * of.norm
    dual = scale * along - 0.5 * scale * scale * squares
    return max(primal - dual, 0.0) / (0.5 * var)


@jitable
def scalars(design: Design, at: WorkingSet) -> Scalars:
    """The scalars of the working set."""
    steepest, weight_cov, weight_grad, norm, active = 0.0, 0.0, 0.0, 0.0, 0
    for j in range(at.size[0]):
        grad = gradient(design, at, j)
        steepest = max(steepest, abs(grad))
        weight_cov += at.w[j] * at.cov[j]
        weight_grad += at.w[j] * grad
        norm += abs(at.w[j])
        active += at.w[j] != 0.0
    return Scalars(steepest, weight_cov, weight_grad, norm, active)


@jitable
def others_gradient(design: Design, at: WorkingSet, cov: Vector, exact: bool, out: Vector) -> float:
    """Write the gradient of all examples outside the working set; returns the largest |g| of them.

    exact: add in float64; float32 is enough for the path, as its error is at most about 1e-6 of lambda.
    """
    count = 0
    for j in range(at.size[0]):
        at.picked[count] = at.members[j]
        at.change[count] = at.w[j] * at.inv[j] / design.rows
        count += at.w[j] != 0.0
    at.row_sums[:] = 0.0
    add_columns(design.bits, at.picked, count, at.change, at.row_sums)
    if exact:
        sum_over_rows(design.bits, at.inside, at.row_sums, out)
    else:
        sum_over_rows(design.bits, at.inside, at.row_sums.astype(np.float32), out)
    steepest = 0.0
    for j in range(out.shape[0]):
        if not at.inside[j]:
            out[j] = cov[j] - design.inv[j] * (out[j] - design.mean[j] * at.sums[1])
            steepest = max(steepest, abs(out[j]))
    return steepest


@jitable
def exact_gradient(design: Design, cov: Vector, w: Vector, grad: Vector) -> None:
    """Write the gradient [N] of any standardised weights [N] from the masks alone."""
    n_train = w.shape[0]
    index, values, count = np.empty(n_train + 1, np.int64), np.empty(n_train + 1), 0
    sum_0, sum_1 = 0.0, 0.0
    for j in range(n_train):
        u = w[j] * design.inv[j] / design.rows
        index[count], values[count] = j, u
        count += w[j] != 0.0
        sum_0 += u
        sum_1 += u * design.rows * design.mean[j]
    grad[:] = 0.0
    if design.bits.shape[1] > 0:
        row_sums = np.zeros(64 * design.bits.shape[1])
        add_columns(design.bits, index, count, values, row_sums)
        sum_over_rows(design.bits, np.zeros(n_train, np.bool_), row_sums, grad)
    else:
        add_rows(design.counts, index, count, values, n_train, grad)
        for j in range(n_train):
            own = (design.rows * design.mean[j] - design.base) * (w[j] * design.inv[j] / design.rows)
            grad[j] += design.base * sum_0 + own
    for j in range(n_train):
        grad[j] = cov[j] - design.inv[j] * (grad[j] - design.mean[j] * sum_1)


@compiled
def optimality(design: Design, cov: Vector, var: float, lam: float, w: Vector) -> tuple[float, float]:
    """Relative duality gap of any standardised weights [N], and their largest violation of the conditions over lam."""
    grad = np.empty(w.shape[0])
    exact_gradient(design, cov, w, grad)
    return check_optimality(cov, var, lam, w, grad)


@jitable
def check_optimality(cov: Vector, var: float, lam: float, w: Vector, grad: Vector) -> tuple[float, float]:
    """Relative duality gap, and the largest violation of the optimality (KKT) conditions over lam."""
    steepest, weight_cov, weight_grad, norm, residual = 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(w.shape[0]):
        steepest = max(steepest, abs(grad[j]))
        weight_cov += w[j] * cov[j]
        weight_grad += w[j] * grad[j]
        norm += abs(w[j])
        off = abs(grad[j]) - lam if w[j] == 0.0 else abs(grad[j] - (lam if w[j] > 0.0 else -lam))
        residual = max(residual, off)
    return relative_gap(var, lam, Scalars(steepest, weight_cov, weight_grad, norm, 0)), residual / lam
