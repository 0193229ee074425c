"""Compiled kernels: the masks of the rows being fitted, and the working set of examples that descent runs on.

With few rows the masks are bits, and the counts K = X'X of the examples in a target's working set are made from them
as it grows. Else all examples are in it, and all targets share one matrix of counts. Counts are kept as K_ij - base, as
16 bits where that fits, without a diagonal. Nothing is rounded: with m the means of the masks, s their deviations, n
the number of rows and u_i = w_i / (n s_i), the gradient of the loss at standardised weights w is exactly

    g_j = c_j - (sum_i K_ij u_i - m_j sum_i n m_i u_i) / s_j.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.compiled import jitable, ones
from datamodels.lasso.gram import Matrices

Vector = NDArray[np.float64]
Index = NDArray[np.int64]
Counts = NDArray[np.integer]
Bits = NDArray[np.uint64]

PAST = 16
"""Lambdas whose weights are remembered."""


class Full(Exception):
    """A working set has no room for more examples."""


class Design(NamedTuple):
    """Masks of the rows that a step fits: `counts` of all examples, or `bits`."""

    counts: Counts
    """[N, N]: K - base, the diagonal 0; or [0, 0], and then there are bits"""
    bits: Bits
    """[N, words]: the rows that hold each example, 64 to a word; or [N, 0]"""
    rows: float
    base: float
    mean: Vector
    """[N]"""
    inv: Vector
    """[N]: 1 / standard deviation, 0 for a mask without variance"""


def design_of(masks: Matrices, whole: bool) -> Design:
    """The training rows, or all rows (`whole`)."""
    counts, bits, base = masks.part(whole)
    scale = masks.whole_scale if whole else masks.scale
    return Design(counts, bits, scale.rows, float(base), scale.mean, scale.inv)


class WorkingSet(NamedTuple):
    """Examples of one target and its weights on them, in memory that a thread uses for target after target.

    [capacity] where no shape is given; the first `size[0]` places are in use.
    """

    counts: Counts
    """[capacity, capacity]: as in Design, of the members"""
    members: Index
    """which examples these are"""
    inside: NDArray[np.bool_]
    """[N]: whether an example is a member"""
    size: Index
    """[1]"""
    mean: Vector
    inv: Vector
    cov: Vector
    """c = Z'y/n"""
    diagonal: Vector
    """(K_jj - base) / (n s_j^2): what the diagonal of the counts would add"""
    w: Vector
    """standardised weights"""
    product: Vector
    """counts times u"""
    sums: Vector
    """[2]: sum of u, sum of n m u"""
    change: Vector
    """of u, or any other temporary values"""
    picked: Index
    """[capacity + 1]: places of members"""
    active: NDArray[np.float64]
    """[9, capacity]: temporary values of a step on the active set"""
    past_w: NDArray[np.float64]
    """[PAST, capacity]: w at the last lambdas, lambda i in place i % PAST"""
    past_product: NDArray[np.float64]
    """[PAST, capacity]"""
    past_sums: NDArray[np.float64]
    """[PAST, 2]"""
    past_size: Index
    """[PAST]: members at that time"""
    grad: NDArray[np.float64]
    """[3, N]: gradient of the other examples at this lambda of the path, at the one before, and at any other"""
    row_sums: Vector
    """[64 words]: masks times u"""
    predicted: Vector
    """[64 words] validation masks times predicted_w / deviation, or [N] validation moments times predicted_w"""
    predicted_w: Vector
    """the weights that `predicted` belongs to"""
    past_predicted: NDArray[np.float64]
    """[PAST, ...]"""


def working_set(design: Design, predicted: int, capacity: int = 512) -> WorkingSet:
    """An empty working set with room for so many examples, or for all if there are counts.

    predicted: length of `predicted`.
    """
    n_train, everything = len(design.mean), len(design.counts) > 0
    capacity = n_train if everything else min(capacity, n_train)
    counts = design.counts if everything else np.empty((capacity, capacity), design.counts.dtype)
    vectors = np.zeros((8, capacity))
    past = np.zeros((2, PAST, capacity))
    return WorkingSet(
        counts, np.arange(capacity), np.full(n_train, everything), np.zeros(1, np.int64), *vectors[:6], np.zeros(2),
        vectors[6], np.zeros(capacity + 1, np.int64), np.zeros((9, capacity)), *past, np.zeros((PAST, 2)),
        np.zeros(PAST, np.int64), np.zeros((3, n_train)), np.zeros(64 * design.bits.shape[1]), np.zeros(predicted),
        vectors[7], np.zeros((PAST, predicted)),
    )  # type: ignore[call-arg]  # fmt: skip


def with_room(design: Design, at: WorkingSet, work: Callable[[WorkingSet], Any]) -> tuple[WorkingSet, Any]:
    """Call work(working set), again with more room where it is full; returns the working set and the result."""
    while True:
        try:
            return at, work(at)
        except Full:
            at = working_set(design, len(at.predicted), 2 * len(at.members))


@jitable
def begin(design: Design, at: WorkingSet, cov: Vector) -> None:
    """Begin with a target whose weights are 0: with no members, or with all examples if there are counts."""
    n_train = design.mean.shape[0]
    at.size[0] = 0
    at.sums[:] = 0.0
    at.past_sums[:], at.predicted[:], at.past_predicted[:] = 0.0, 0.0, 0.0
    if design.bits.shape[1] > 0:
        at.inside[:] = False
        return
    for j in range(n_train):
        _join(design, at, cov, j)
    at.past_size[:] = n_train
    at.past_w[:] = 0.0
    at.past_product[:] = 0.0


@jitable
def _join(design: Design, at: WorkingSet, cov: Vector, example: int) -> None:
    place = at.size[0]
    at.size[0] = place + 1
    at.members[place] = example
    at.inside[example] = True
    mean, inv = design.mean[example], design.inv[example]
    at.mean[place], at.inv[place], at.cov[place] = mean, inv, cov[example]
    at.diagonal[place] = inv * inv * (mean - design.base / design.rows)
    at.w[place], at.product[place], at.predicted_w[place] = 0.0, 0.0, 0.0


@jitable
def add_members(design: Design, at: WorkingSet, cov: Vector, examples: Index, count: int) -> None:
    """Add the first `count` of these examples, none of which is a member, at weight 0. Raises Full."""
    old = at.size[0]
    if old + count > at.members.shape[0]:
        raise Full
    for k in range(count):
        _join(design, at, cov, examples[k])
    _count_pairs(design.bits, at.members, old, old + count, at.counts)
    for place in range(old, old + count):
        at.product[place] = product_at(design, at, at.w, old, place)


@jitable
def _count_pairs(bits: Bits, members: Index, old: int, size: int, counts: Counts) -> None:
    """Count the rows that hold both of two members, the second one new."""
    words = bits.shape[1]
    for i in range(old, size):
        a = bits[members[i]]
        for j in range(0, i - i % 4, 4):
            b, c, d, e = bits[members[j]], bits[members[j + 1]], bits[members[j + 2]], bits[members[j + 3]]
            p, q, r, s = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
            for w in range(words):
                p += ones(a[w] & b[w])
                q += ones(a[w] & c[w])
                r += ones(a[w] & d[w])
                s += ones(a[w] & e[w])
            counts[i, j], counts[i, j + 1], counts[i, j + 2], counts[i, j + 3] = p, q, r, s
        for j in range(i - i % 4, i):
            b, p = bits[members[j]], np.uint64(0)
            for w in range(words):
                p += ones(a[w] & b[w])
            counts[i, j] = p
        counts[i, i] = 0
    for first in range(0, size, 64):
        for i in range(max(old, first + 1), size):
            for j in range(first, min(first + 64, i)):
                counts[j, i] = counts[i, j]


@jitable
def copy(values: Vector, size: int, out: Vector) -> None:
    """out[:size] = values[:size], which as such takes long to compile: it tests shapes and formats a message."""
    for j in range(size):
        out[j] = values[j]


@jitable
def product_at(design: Design, at: WorkingSet, w: Vector, size: int, place: int) -> float:
    """counts times u at one place, for the weights of the first `size` members."""
    row, found = at.counts[place], 0.0
    for i in range(size):
        found += row[i] * (w[i] * at.inv[i])
    return found / design.rows


@jitable
def gradient(design: Design, at: WorkingSet, place: int) -> float:
    """The gradient of the loss at one member."""
    inside = at.product[place] + design.base * at.sums[0] - at.mean[place] * at.sums[1]
    return at.cov[place] - at.inv[place] * inside - at.diagonal[place] * at.w[place]


@jitable
def step(design: Design, at: WorkingSet, place: int, by: float) -> float:
    """Move a weight; returns the change of u, which `add_rows` is to add to the product."""
    change: float = by * at.inv[place] / design.rows
    at.w[place] += by
    at.sums[0] += change
    at.sums[1] += change * design.rows * at.mean[place]
    return change


@jitable
def add_rows(matrix: NDArray[Any], index: Index, count: int, values: Vector, size: int, out: Vector) -> None:
    """out[:size] += sum over k < count of values[k] * matrix[index[k]]; four rows share each pass over out."""
    done = count - count % 4
    for at in range(0, done, 4):
        a, b, c, d = values[at], values[at + 1], values[at + 2], values[at + 3]
        row_a, row_b = matrix[index[at]], matrix[index[at + 1]]
        row_c, row_d = matrix[index[at + 2]], matrix[index[at + 3]]
        for q in range(size):
            out[q] += (a * row_a[q] + b * row_b[q]) + (c * row_c[q] + d * row_d[q])
    for at in range(done, count):
        a, row_a = values[at], matrix[index[at]]
        for q in range(size):
            out[q] += a * row_a[q]


@jitable
def add_columns(bits: Bits, index: Index, count: int, values: Vector, out: Vector) -> None:
    """out [64 words] += sum over k < count of values[k] * bits[index[k]]."""
    one, zero = np.uint32(1), np.uint32(0)
    halves = bits.view(np.uint32)
    for at in range(0, count - count % 4, 4):
        a, b, c, d = values[at], values[at + 1], values[at + 2], values[at + 3]
        row_a, row_b = halves[index[at]], halves[index[at + 1]]
        row_c, row_d = halves[index[at + 2]], halves[index[at + 3]]
        for half in range(halves.shape[1]):
            p, q, r, s = row_a[half], row_b[half], row_c[half], row_d[half]
            for place in range(32):
                here = one << np.uint32(place)
                first = (a if p & here != zero else 0.0) + (b if q & here != zero else 0.0)
                out[32 * half + place] += first + ((c if r & here != zero else 0.0) + (d if s & here != zero else 0.0))
    for at in range(count - count % 4, count):
        a, row_a = values[at], halves[index[at]]
        for half in range(halves.shape[1]):
            p = row_a[half]
            for place in range(32):
                out[32 * half + place] += a if p & (one << np.uint32(place)) != zero else 0.0
