"""Whether scikit-learn, in float64 and solved far beyond any tolerance of ours, gives the same lambda and weights."""

import time
from typing import Any, NamedTuple

import numpy as np

from datamodels.lasso.gram.counts import MemoryCounts
from datamodels.lasso.gram.matrices import MaskBits, Matrices, has_few_rows
from datamodels.lasso.gram.popcount import pack
from datamodels.lasso.gram.sums import Cross, Gram
from datamodels.lasso.solver import solve
from datamodels.train.config import Fit
from datamodels.train.rng import validation_rows

_TOLERANCE = 1e-13
"""Duality gap over ||y||^2 that scikit-learn solves to."""

Array = np.ndarray


class Sums(NamedTuple):
    """What scikit-learn's kernel needs of some rows: Z'Z, means and deviations of the masks."""

    gram: Array
    mean: Array
    deviation: Array

    @classmethod
    def of(cls, masks: Array) -> "Sums":
        mean = masks.mean(axis=0)
        deviation = np.sqrt(mean * (1 - mean))
        z = (masks - mean) / deviation
        return cls(z.T @ z, mean, deviation)

    def minimise(self, masks: Array, y: Array, lams: Array) -> Any:
        """Weights and bias in mask units at lambda after lambda, each begun at the one before."""
        from sklearn.linear_model import _cd_fast

        n, centred, rng = len(y), y - y.mean(), np.random.RandomState(0)
        products = (centred @ masks - centred.sum() * self.mean) / self.deviation
        w = np.zeros(len(self.mean))
        for lam in lams:
            w = _cd_fast.enet_coordinate_descent_gram(
                w, lam * n, 0.0, self.gram, products, centred, 100_000, _TOLERANCE, rng, False, False
            )[0]
            weight = w / self.deviation
            yield weight, y.mean() - self.mean @ weight


def _chosen(sums: Sums, masks: Array, margins: Array, validation: Array, fit: Fit) -> tuple[int, float]:
    """The lambda of a target, as docs/format.md defines it: its index and value."""
    y = margins[~validation]
    centred = y - y.mean()
    top = np.abs((centred @ masks[~validation]) / sums.deviation).max() / len(y)
    lams, errors = top * np.geomspace(1, fit.eps, fit.k), list[float]()
    for weight, bias in sums.minimise(masks[~validation], y, lams):
        errors.append(float(np.mean((margins[validation] - masks[validation] @ weight - bias) ** 2)))
        best = int(np.argmin(errors))
        if len(errors) >= fit.min_lambdas and len(errors) - 1 - best >= fit.patience:
            break
    return best, float(lams[best])


def _sums(masks: Array, margins: Array) -> tuple[Gram, Cross]:
    gram, cross = Gram(masks.shape[1]), Cross(masks.shape[1], margins.shape[1])
    packed = np.packbits(masks, axis=1)
    gram.add(packed)
    cross.add(packed, margins)
    return gram.finish(), cross


def run(bools: Array, margins: Array) -> None:
    """Compare masks [M, N] with margins [M, T], fitted with all options as they are by default."""
    fit, validation = Fit(), validation_rows(0, np.arange(len(bools)), 0.1)
    masks, margins = bools.astype(np.float64), margins.astype(np.float64)
    (gram, cross), (validation_gram, validation_cross) = (
        _sums(bools[group], margins[group]) for group in (~validation, validation)
    )
    bits, others = (pack(bools[group].view(np.uint8)) for group in (~validation, validation))
    few = has_few_rows(*bools.shape)
    source = MaskBits(bits, others, (gram.rows, validation_gram.rows)) if few else MemoryCounts(gram, validation_gram)
    matrices = Matrices(source, others)
    ours = solve(matrices, cross, validation_cross, fit)
    training, whole = Sums.of(masks[~validation]), Sums.of(masks)
    same, apart, began = 0, [], time.process_time()
    for target, y in enumerate(margins.T):
        index, lam = _chosen(training, masks, y, validation, fit)
        same += index == ours.chosen[target]
        (found,) = whole.minimise(masks, y, np.array([lam]))
        apart.append((np.abs(ours.weight[target] - found[0]).max(), abs(ours.bias[target] - found[1])))
    weight, bias = np.max(apart, axis=0)
    seconds = (time.process_time() - began) / len(apart)
    print(f"lambda the same in {same} of {len(apart)} targets; largest weight {np.abs(ours.weight).max():.3f}")
    print(f"weights apart by at most {weight:.2e}, biases by {bias:.2e}; scikit-learn {seconds:.1f} CPU s a target")
