"""The relative duality gap of LASSO weights, for what bench checks by itself: nothing of `lasso` is used."""

import numpy as np


def relative_gaps(
    lams: np.ndarray, steepest: np.ndarray, var: np.ndarray, along: np.ndarray, squares: np.ndarray, norm: np.ndarray
) -> np.ndarray:
    """Gaps over P(0) = var(y)/2, in float64; with r = y - Zw, and one value a solution:

    steepest max|Z'r|/n, along y.r/n, squares ||r||^2/n, norm ||w||_1.
    """
    scale = np.minimum(lams / steepest, along / squares)
    primal, dual = squares / 2 + lams * norm, scale * along - scale**2 * squares / 2
    return (primal - dual) / (var / 2)
