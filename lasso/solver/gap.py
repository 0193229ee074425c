"""The duality gap of any weights, and their gradient from the exact counts alone, in float64."""

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.compiled import compiled
from datamodels.lasso.design import Scale
from datamodels.lasso.gram import Counts

Vector = NDArray[np.float64]

_AT_ONCE = 128
"""Rows of the counts that are added at a time; fixed, so that results do not depend on where the counts are kept."""


@compiled
def relative_gap(var: float, lam: float, steepest: float, weight_cov: float, weight_grad: float, norm: float) -> float:
    """Duality gap over P(0) = var / 2, from five scalars of the weights w.

    steepest = max|g|, weight_cov = w . c, weight_grad = w . g, norm = ||w||_1. With r = y - Zw:
    ||r||^2/n = var - w.c - w.g and y.r/n = var - w.c. The dual is max y.t/n - ||t||^2/(2n) over
    |Z't|/n <= lam; the point taken is t = scale * r with the best feasible scale (|scale| <= lam / max|g|).
    """
    squares = max(var - weight_cov - weight_grad, 0.0)
    along = var - weight_cov
    scale = min(lam / max(steepest, 1e-300), along / max(squares, 1e-300))
    scale = max(scale, -lam / max(steepest, 1e-300))
    primal = 0.5 * squares + lam * norm
    dual = scale * along - 0.5 * scale * scale * squares
    return max(primal - dual, 0.0) / (0.5 * var)


@compiled
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
    return relative_gap(var, lam, steepest, weight_cov, weight_grad, norm), residual / lam


def exact_gradient(counts: Counts, scale: Scale, cov: Vector, w: Vector, grad: Vector) -> None:
    """Write the gradient of any standardised weights from the counts K = X'X of all rows alone, in float64.

    With v = w / s in mask units: g_j = c_j - ((K v)_j / n - m_j * (m . v)) / s_j.
    """
    support = np.flatnonzero(w)
    v = w[support] * scale.inv[support]
    grad[:] = 0.0
    for at in range(0, len(support), _AT_ONCE):
        part = slice(at, at + _AT_ONCE)
        _add_counts(*counts.lookup(support[part]), v[part], grad)
    grad /= scale.rows
    grad -= scale.mean * (scale.mean[support] @ v)
    grad *= -scale.inv
    grad += cov


@compiled
def _add_counts(counts: NDArray[np.int32], places: NDArray[np.int64], values: Vector, out: Vector) -> None:
    """out += sum over k of values[k] * counts[places[k]]; four rows share each pass over out."""
    done = len(places) - len(places) % 4
    for at in range(0, done, 4):
        a, b, c, d = values[at], values[at + 1], values[at + 2], values[at + 3]
        row_a, row_b = counts[places[at]], counts[places[at + 1]]
        row_c, row_d = counts[places[at + 2]], counts[places[at + 3]]
        for j in range(out.shape[0]):
            out[j] += (a * row_a[j] + b * row_b[j]) + (c * row_c[j] + d * row_d[j])
    for at in range(done, len(places)):
        a, row_a = values[at], counts[places[at]]
        for j in range(out.shape[0]):
            out[j] += a * row_a[j]
