"""Compiled kernels: a step towards the minimum over the nonzero weights, their signs kept.

Coordinate descent soon finds which weights are 0, but is slow at the others where their masks are strongly correlated:
rows that hold few examples or none make all masks alike, so that one eigenvalue of the correlations is hundreds of
times the others. With the signs s of the nonzero weights A, the active set, the objective is quadratic, its minimum
that of C_AA w_A = c_A - lam s_A with C the correlations, and conjugate gradients deal with a few large eigenvalues in
a few steps. With fewer rows than examples, and nearly as many nonzero weights as rows, they are far quicker, too.

Steps between active sets as in Lee, Battle, Raina & Ng, "Efficient sparse coding algorithms" (NIPS 2006).
"""

from datamodels.lasso.compiled import jitable
from datamodels.lasso.solver.working_set import Design, WorkingSet, add_rows, gradient, step

_FALL = 1e-6
"""Fall of the squared gradient over the active set that is enough."""
_FLAT = 1e-12
"""Curvature, of 1 on average, below which rounding decides."""


@jitable
def step_on_active_set(design: Design, at: WorkingSet, lam: float, most: int) -> bool:
    """Move towards the minimum with the signs of the nonzero weights, with at most so many products with the counts.

    Weights that would change their sign stop at 0, all of them where that makes the objective smaller, else all
    weights stop where the first one does. Returns whether any did, which leaves a smaller active set.
    """
    w, size = at.w, at.size[0]
    steps, steps_product, old_w, old_product = at.active[7], at.active[8], at.active[0], at.active[1]
    before = _objective(design, at, lam)
    step_0, step_1 = _solve(design, at, lam, most)
    sum_0, sum_1 = at.sums[0], at.sums[1]
    at.sums[0] += step_0
    at.sums[1] += step_1
    count, least = 0, 1.0
    for j in range(size):
        old_w[j], old_product[j] = w[j], at.product[j]
        w[j] += steps[j]
        at.product[j] += steps_product[j]
        if w[j] * old_w[j] < 0.0:
            least = min(least, old_w[j] / (old_w[j] - w[j]))
            at.picked[count] = j
            count += 1
    for k in range(count):
        at.change[k] = step(design, at, at.picked[k], -w[at.picked[k]])
    add_rows(at.counts, at.picked, count, at.change, size, at.product)
    if _objective(design, at, lam) <= before:
        return count > 0
    if count == 0:  # rounding allows no better
        least = 0.0
    at.sums[0], at.sums[1] = sum_0 + least * step_0, sum_1 + least * step_1
    for j in range(size):
        w[j] = old_w[j] + least * steps[j]
        at.product[j] = old_product[j] + least * steps_product[j]
        if abs(w[j]) < 1e-15 * abs(old_w[j]):
            w[j] = 0.0
    return count > 0


@jitable
def _solve(design: Design, at: WorkingSet, lam: float, most: int) -> tuple[float, float]:
    """Write the step to the minimum into active[7], its product with the counts into active[8]; returns its sums."""
    index, change, size = at.picked, at.change, at.size[0]
    steps, residual, direction = at.active[0], at.active[1], at.active[2]  # of the nonzero weights, as the next three
    inv, mean, diagonal = at.active[3], at.active[4], at.active[5]
    product, all_steps, steps_product = at.active[6], at.active[7], at.active[8]
    count, squares, total_0, total_1 = 0, 0.0, 0.0, 0.0
    for j in range(size):
        all_steps[j], steps_product[j] = 0.0, 0.0
        index[count] = j
        count += at.w[j] != 0.0
    for k in range(count):
        j = index[k]
        inv[k], mean[k], diagonal[k] = at.inv[j], at.mean[j] * design.rows, at.diagonal[j]
        steps[k], residual[k] = 0.0, gradient(design, at, j) - (lam if at.w[j] > 0.0 else -lam)
        direction[k] = residual[k]
        squares += residual[k] * residual[k]
    enough = _FALL * squares
    for _ in range(most):
        sum_0, sum_1 = 0.0, 0.0
        for k in range(count):
            change[k] = direction[k] * inv[k] / design.rows
            sum_0 += change[k]
            sum_1 += change[k] * mean[k]
        product[:size] = 0.0
        add_rows(at.counts, index, count, change, size, product)
        for k in range(count):
            change[k] = product[index[k]]
        curvature, length, inside = 0.0, 0.0, design.base * sum_0
        for k in range(count):
            change[k] = inv[k] * (change[k] + inside - mean[k] * sum_1 / design.rows) + diagonal[k] * direction[k]
            curvature += direction[k] * change[k]
            length += direction[k] * direction[k]
        if curvature <= _FLAT * length:
            break
        scale, before = squares / curvature, squares
        squares = 0.0
        total_0 += scale * sum_0
        total_1 += scale * sum_1
        for k in range(count):
            steps[k] += scale * direction[k]
            residual[k] -= scale * change[k]
            squares += residual[k] * residual[k]
        for j in range(size):
            steps_product[j] += scale * product[j]
        if squares <= enough:
            break
        for k in range(count):
            direction[k] = residual[k] + squares / before * direction[k]
    for k in range(count):
        all_steps[index[k]] = steps[k]
    return total_0, total_1


@jitable
def _objective(design: Design, at: WorkingSet, lam: float) -> float:
    """P(w) - P(0)."""
    found = 0.0
    for j in range(at.size[0]):
        found -= 0.5 * at.w[j] * (gradient(design, at, j) + at.cov[j])
        found += lam * abs(at.w[j])
    return found
