"""Quality against the number of models: fits on nested subsets of the estimation rows, in at most one pass."""

import contextlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.evaluation.evaluate import Evaluation, summarise
from datamodels.lasso.evaluation.scores import Holdout
from datamodels.lasso.fit import usable
from datamodels.lasso.gram import Matrices, Prefix, prefixes
from datamodels.lasso.rows import Progress, enough_memory, silent, target_count
from datamodels.lasso.solver import Solution, device_for, solve, sums_device
from datamodels.train import UserError
from datamodels.train.store import ReadableStore as Store

if TYPE_CHECKING:
    import torch

_TARGETS = 256
"""Targets that stand for all of them where none are named."""
FITTED = 7
"""Points, from the largest, that the law is fitted to: at few models the LASSO leaves out more than noise explains."""
_SHARES = (0.9, 0.95, 0.99)
"""Shares of the law's limit for which the number of models is told."""


@dataclass(frozen=True)
class Point:
    models: int
    """Estimation rows that the fit used."""
    lds: float
    mse: float
    r2: float


@dataclass(frozen=True)
class Law:
    """LDS(M) = 1 / sqrt(a + b / M^p): a correlation that noise of variance ~ M^-p weakens, fitted by least squares."""

    limit: float
    """LDS that ever more models approach, 1 / sqrt(a)."""
    power: float
    """p"""
    weakening: float
    """b"""
    error: float
    """Root mean square deviation of the points from the law."""
    enough: dict[str, int]
    """Models that reach 90, 95 and 99 % of the limit."""

    @classmethod
    def of(cls, points: list[Point]) -> "Law | None":
        """The law of the largest points, at least four with a positive LDS, or None where no limit is in sight."""
        points = [point for point in points if point.lds > 0][-FITTED:]
        models = np.array([point.models for point in points], np.float64)
        lds = np.array([point.lds for point in points])
        if len(lds) < 4:
            return None
        best: tuple[float, float, float, float] | None = None
        for power in np.linspace(0.4, 2.0, 33):
            design = np.stack([np.ones_like(models), (models / models[-1]) ** -power], axis=1)
            weight = lds**3  # so that errors are those of the LDS: d(1/lds^2) = -2/lds^3 d(lds)
            a, b = np.linalg.lstsq(design * weight[:, None], weight / lds**2, rcond=None)[0]
            if 1 <= a <= lds[-1] ** -2 and b > 0:
                error = float(np.sqrt(np.mean((lds - 1 / np.sqrt(design @ [a, b])) ** 2)))
                best = min(best or (np.inf, 0, 0, 0), (error, float(power), float(a), float(b)))
        if best is None:
            return None
        error, power, a, b = best
        enough = {
            f"{share:.0%}": int(np.ceil(models[-1] * (b / (a * (share**-2 - 1))) ** (1 / power))) for share in _SHARES
        }
        return cls(1 / np.sqrt(a), power, float(b * models[-1] ** power), error, enough)

    def at(self, models: NDArray[np.float64]) -> NDArray[np.float64]:
        """LDS at numbers of models."""
        return 1 / np.sqrt(self.limit**-2 + self.weakening * models**-self.power)


@dataclass(frozen=True)
class Curve:
    points: list[Point]
    targets: int
    """Targets that every point is the mean of, evenly spaced over the split."""
    ceiling: float | None
    law: Law | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def answer(self) -> str:
        """How many models are enough, in a sentence."""
        last = self.points[-1]
        if self.law is None:
            return f"LDS {last.lds:.4f} at {last.models} models: the points show no limit yet, more models are needed"
        counts = ", ".join(f"{count:,} for {share}" for share, count in self.law.enough.items())
        return (
            f"LDS {last.lds:.4f} at {last.models:,} models is {last.lds / self.law.limit:.0%} of the limit "
            f"{self.law.limit:.4f} that the fitted curve approaches; of that limit, models needed: {counts} (the curve "
            f"misses the points by {self.law.error:.4f})"
        )


def curve(
    store: Store,
    split: str = "test",
    points: int = 10,
    targets: NDArray[np.int64] | None = None,
    progress: Progress = silent,
) -> Curve:
    """LDS, MSE and R^2 of fits on nested subsets: the first 1/32 of the completed estimation rows, up to all of them.

    The sizes are geometric. Where the statistics of a store are kept in several parts, the sizes are those of parts,
    and no row is read that was read before. targets: columns to fit; the default is 256 evenly spaced ones. Raises as
    `fit` and `evaluate` do.
    """
    width = target_count(store, split)
    evenly = np.unique(np.linspace(0, width - 1, min(_TARGETS, width)).astype(np.int64))
    columns = evenly if targets is None else targets
    if not len(columns) or columns.min() < 0 or columns.max() >= width:
        raise UserError(f"the curve's targets are not all within 0:{width} ({split} split), or there are none")
    rows = usable(store)
    holdout = Holdout(store, split, progress)
    device = device_for(store.setting.fit, store.n_train, len(columns))
    results: list[tuple[int, Evaluation]] = []
    subsets = prefixes(store, split, rows, columns, points, sums_device(device))
    with enough_memory(store.n_train), contextlib.closing(subsets):
        for prefix in subsets:
            weight, bias = _fit(store, prefix, device)
            results.append((prefix.rows, summarise(holdout, holdout.score(columns, weight, bias))))
            progress("curve", len(results), points)
    found = [Point(size, result.lds, result.mse, result.r2) for size, result in results]
    return Curve(found, len(columns), results[-1][1].ceiling, Law.of(found))


def _fit(
    store: Store, prefix: Prefix, device: "torch.device | None"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """weight [N_train, T] and bias [T] in mask units; the matrices are gone once they are made."""
    matrices = Matrices(prefix.counts, prefix.bits)
    return _mask_units(matrices, solve(matrices, *prefix.crosses, store.setting.fit, device=device), store)


def _mask_units(
    matrices: Matrices, solution: Solution, store: Store
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """weight [N_train, T] and bias [T] of a solution, whatever units it has."""
    weight, bias = solution.weight.T.astype(np.float64), solution.bias.astype(np.float64)
    if store.setting.fit.weight_units == "standardised":
        return matrices.whole_scale.unscaled(weight, bias)
    return weight, bias
