"""Compiled kernels: a step towards the minimum over the nonzero weights, their signs kept.

Coordinate descent soon finds which weights are 0, but is slow at the others where their masks are strongly correlated:
rows that hold few examples or none make all masks alike, so that one eigenvalue of the correlations is hundreds of
times the others. With the signs s of the nonzero weights A, the active set, the objective is quadratic, its minimum
that of (R_AA + I) w_A = c_A - lam s_A, and conjugate gradients deal with a few large eigenvalues in a few steps.

Steps between active sets as in Lee, Battle, Raina & Ng, "Efficient sparse coding algorithms" (NIPS 2006).
"""

from datamodels.lasso.compiled import compiled
from datamodels.lasso.solver.buffers import Buffers, Matrix, add_rows
from datamodels.lasso.solver.gap import Vector

_FALL = 1e-6
"""Fall of the squared gradient over the active set that is enough."""
_FLAT = 1e-7
"""Curvature, of 1 on average, below which the rounding of R to float32 decides."""


@compiled
def step_on_active_set(corr: Matrix, cov: Vector, buffers: Buffers, lam: float, most: int) -> bool:
    """Move towards the minimum with the signs of the nonzero weights, with at most so many products with R.

    Weights that would change their sign stop at 0, all of them where that makes the objective smaller, else all
    weights stop where the first one does. Returns whether any did, which leaves a smaller active set.
    """
    w, h = buffers.w, buffers.h
    step, step_h, old_w, old_h = buffers.active[0], buffers.active[1], buffers.active[2], buffers.active[3]
    _solve(corr, cov, buffers, lam, most)
    before = _objective(cov, buffers, lam)
    old_w[:], old_h[:] = w, h
    count, least = 0, 1.0
    for j in range(w.shape[0]):
        w[j] += step[j]
        h[j] += step_h[j]
        if w[j] * old_w[j] < 0.0:
            least = min(least, old_w[j] / (old_w[j] - w[j]))
            buffers.picked[count] = j
            buffers.change[j] = -w[j]
            w[j] = 0.0
            count += 1
    add_rows(corr, buffers.picked, count, buffers.change, h)
    if _objective(cov, buffers, lam) <= before:
        return count > 0
    if count == 0:  # rounding allows no better
        least = 0.0
    for j in range(w.shape[0]):
        w[j] = old_w[j] + least * step[j]
        h[j] = old_h[j] + least * step_h[j]
        if abs(w[j]) < 1e-15 * abs(old_w[j]):
            w[j] = 0.0
    return count > 0


@compiled
def _solve(corr: Matrix, cov: Vector, buffers: Buffers, lam: float, most: int) -> None:
    """Write the step to the minimum into active[0], and R times the step into active[1]."""
    w, h, index, direction = buffers.w, buffers.h, buffers.picked, buffers.change
    step, step_h, residual, product = buffers.active[0], buffers.active[1], buffers.active[2], buffers.active[3]
    step[:], step_h[:] = 0.0, 0.0
    count, squares = 0, 0.0
    for j in range(w.shape[0]):
        index[count] = j
        count += w[j] != 0.0
    for at in range(count):
        j = index[at]
        residual[j] = cov[j] - h[j] - w[j] - (lam if w[j] > 0.0 else -lam)
        direction[j] = residual[j]
        squares += residual[j] * residual[j]
    enough = _FALL * squares
    for _ in range(most):
        product[:] = 0.0
        add_rows(corr, index, count, direction, product)
        curvature, length = 0.0, 0.0
        for at in range(count):
            j = index[at]
            curvature += direction[j] * (product[j] + direction[j])
            length += direction[j] * direction[j]
        if curvature <= _FLAT * length:
            return
        scale, before = squares / curvature, squares
        squares = 0.0
        for at in range(count):
            j = index[at]
            step[j] += scale * direction[j]
            residual[j] -= scale * (product[j] + direction[j])
            squares += residual[j] * residual[j]
        for j in range(w.shape[0]):
            step_h[j] += scale * product[j]
        if squares <= enough:
            return
        for at in range(count):
            j = index[at]
            direction[j] = residual[j] + squares / before * direction[j]


@compiled
def _objective(cov: Vector, buffers: Buffers, lam: float) -> float:
    """P(w) - P(0)."""
    w, h = buffers.w, buffers.h
    found = 0.0
    for j in range(w.shape[0]):
        found += w[j] * (0.5 * (h[j] + w[j]) - cov[j]) + lam * abs(w[j])
    return found
