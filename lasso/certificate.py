"""Compiled kernels: the duality gap of any weights, and their gradient from the exact counts alone, in float64."""

import numpy as np
from numpy.typing import NDArray

from lasso.compiled import compiled

Vector = NDArray[np.float64]


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
def exact_gradient(
    counts: NDArray[np.int32], rows: float, mean: Vector, inv: Vector, cov: Vector, w: Vector, grad: Vector
) -> None:
    """Write the gradient of any standardised weights from the counts K = X'X alone, in float64.

    With v = w / s in mask units: g_j = c_j - ((K v)_j / n - m_j * (m . v)) / s_j. inv = 1 / s, 0 for a constant column.
    """
    inner = 0.0
    for j in range(grad.shape[0]):
        grad[j] = 0.0
    for i in range(w.shape[0]):
        if w[i] != 0.0:
            v = w[i] * inv[i]
            inner += v * mean[i]
            row = counts[i]
            for j in range(grad.shape[0]):
                grad[j] += v * row[j]
    for j in range(grad.shape[0]):
        grad[j] = cov[j] - (grad[j] / rows - mean[j] * inner) * inv[j]


@compiled
def certify(cov: Vector, var: float, lam: float, w: Vector, grad: Vector) -> tuple[float, float]:
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
