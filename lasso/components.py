"""Principal components of weights: an embedding of targets, and the training examples that span it.

Ilyas et al. 2022 use a target's weights as its embedding. As in Shah et al. 2023 (ModelDiff), each target's weights are
scaled to unit length before the analysis, so that targets with large weights do not make the components alone, and
centred over the targets.

The weights are read in bands of rows, a few times: products of their Gram matrix with a random block, all of which are
kept (block Krylov iteration: Musco and Musco, NeurIPS 2015). Nothing else of their size is made.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.rows import Progress
from datamodels.train import Summary, UserError

_BAND_VALUES = 2**22
"""Weights in memory at a time: 16 MiB."""
_EXTRA = 10
"""Columns of the random block beyond the components asked for."""
_PASSES = 4
"""Products with the Gram matrix."""
_NOISE = 1e-5
"""Smaller components, relative to all weights, are rounding errors of float32."""

Rows = Callable[[slice], NDArray[np.float32]]
"""Weights [n, T] of the training examples in a slice."""


@dataclass(frozen=True, eq=False, repr=False)
class Components(Summary):
    """The first k principal components of the weights of T targets, largest first.

    A component's sign is free: here its largest entry of `examples` is positive.
    """

    examples: NDArray[np.float64]
    """[N_train, k]: the directions, of unit length: how much each training example belongs to a component."""
    targets: NDArray[np.float64]
    """[T, k]: where each target lies along them, from the mean of all targets; its row is the target's embedding."""
    shares: NDArray[np.float64]
    """[k]: share of the variance over targets, from 0 to 1."""

    def _summary(self) -> dict[str, str]:
        shares = ", ".join(f"{share:.1%}" for share in self.shares[:10])
        return {
            "of": f"{len(self.examples):,} training examples and {len(self.targets):,} targets",
            "shares of variance": shares + (", ..." if len(self.shares) > 10 else "") or "none: no variance",
        }


@dataclass(frozen=True)
class Weights:
    """Weights [N_train, T] that are read in bands, `rows(place) * scale`."""

    rows: Rows
    scale: NDArray[np.float64]
    """[T]"""

    def scaled(self, block: NDArray[np.float64]) -> NDArray[np.float32]:
        """What rows @ block is to be taken with: `block` [T, n] times the scale."""
        return (self.scale[:, None] * block).astype(np.float32)


def bands(shape: tuple[int, int]) -> Iterator[slice]:
    """Slices of the training examples of weights [N_train, T], which are held in memory one after the other."""
    step = max(1, _BAND_VALUES // shape[1])
    for first in range(0, shape[0], step):
        yield slice(first, min(first + step, shape[0]))


def unit_weights(
    rows: Rows, shape: tuple[int, int], own: NDArray[np.int64] | None, progress: Progress, name: object
) -> Weights:
    """Weights scaled so that each target's have length 1; those of a target without weights stay 0.

    own: [T] numbers of the training examples that the targets are, whose weights for themselves are left out; None
    where they are others. Raises UserError, which calls the weights `name`, for some that are not finite.
    """

    def others(place: slice) -> NDArray[np.float32]:
        if own is None:
            return rows(place)
        band, inside = rows(place).copy(), np.flatnonzero((own >= place.start) & (own < place.stop))
        band[own[inside] - place.start, inside] = 0
        return band

    squares = np.zeros(shape[1])
    for place in bands(shape):
        band = others(place)
        squares += np.einsum("ij,ij->j", band, band)
        progress("lengths of weights", place.stop, shape[0])
    if not np.isfinite(squares).all():
        raise UserError(f"{name} holds weights that are not finite: run `datamodels fit`")
    return Weights(others, np.where(squares > 0, 1 / np.sqrt(np.where(squares > 0, squares, 1)), 0))


def principal_components(
    rows: Rows, shape: tuple[int, int], k: int, own: NDArray[np.int64] | None, progress: Progress, name: object
) -> Components:
    """The first k components of weights [N_train, T], scaled as `unit_weights` does. Raises UserError."""
    weights = unit_weights(rows, shape, own, progress, name)
    return components_of([weights], shape, k, float(np.count_nonzero(weights.scale)), progress)


def components_of(
    terms: Sequence[Weights], shape: tuple[int, int], k: int, squares: float, progress: Progress
) -> Components:
    """The first k components of a sum of weights, centred over targets; fewer where fewer have any variance.

    squares: sum of the squares of that sum.
    """
    if k < 1:
        raise UserError(f"k is {k}, expected at least 1")
    n_train, targets = shape
    block = np.random.default_rng(0).standard_normal((targets, min(targets, n_train, k + _EXTRA)))
    blocks = []
    for passes in range(_PASSES):
        block -= block.mean(axis=0)  # as good as weights that are centred
        factors = [term.scaled(block) for term in terms]
        products = [np.zeros_like(block) for _ in terms]
        for place in bands(shape):
            read = [term.rows(place) for term in terms]
            along = np.sum([band @ factor for band, factor in zip(read, factors, strict=True)], axis=0)
            for product, band in zip(products, read, strict=True):
                product += band.T @ along
            progress("components", passes * n_train + place.stop, (_PASSES + 1) * n_train)
        block = np.sum([term.scale[:, None] * each for term, each in zip(terms, products, strict=True)], axis=0)
        block = np.linalg.qr(block - block.mean(axis=0))[0]
        blocks.append(block)
    basis = np.linalg.qr(np.hstack(blocks))[0]

    basis -= basis.mean(axis=0)
    factors = [term.scaled(np.column_stack([basis, np.full(targets, 1 / targets)])) for term in terms]
    spanned = np.empty((n_train, basis.shape[1] + 1))
    for place in bands(shape):
        spanned[place] = np.sum([term.rows(place) @ each for term, each in zip(terms, factors, strict=True)], axis=0)
        progress("components", _PASSES * n_train + place.stop, (_PASSES + 1) * n_train)
    mean = spanned[:, -1]
    total = squares - targets * float(mean @ mean)
    examples, sizes, turned = np.linalg.svd(spanned[:, :-1], full_matrices=False)
    kept = np.count_nonzero(sizes[:k] > _NOISE * np.sqrt(targets))
    examples, sizes = examples[:, :kept], sizes[:kept]
    signs = np.sign(examples[np.abs(examples).argmax(axis=0), np.arange(kept)])
    return Components(examples * signs, basis @ turned[:kept].T * (sizes * signs), sizes**2 / total)
