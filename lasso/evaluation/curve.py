"""LDS curve: quality against the number of models, from fits to nested subsets of the estimation rows."""

import contextlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.evaluation.scores import EvaluationRows
from datamodels.lasso.files import make_folder, path_of
from datamodels.lasso.fit import usable
from datamodels.lasso.gram import nested_subsets
from datamodels.lasso.rows import Progress, enough_memory, silent, split_name, target_count
from datamodels.lasso.solver import solve
from datamodels.train import UserError
from datamodels.train.store import BaseStore as Store

_TARGETS = 256
"""Targets, evenly spaced, that a curve is computed for unless `targets` names others."""
FITTED = 7
"""The law is fitted to so many of the largest points: with few models the LASSO drops more than noise explains."""
_SHARES = (0.9, 0.95, 0.99)
"""Shares of the law's limit for which the number of models is computed."""


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
    """LDS at growing numbers of models, and the law that the points follow: None where they show no limit yet."""

    points: list[Point]
    targets: int
    """Targets that every point is the mean of, evenly spaced over the split."""
    ceiling: float | None
    law: Law | None

    def to_json(self) -> dict[str, Any]:
        """The same as plain values: the keys of `eval --curve --json`."""
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
    *,
    split: str = "test",
    output: str | None = None,
    points: int = 10,
    targets: NDArray[np.int64] | None = None,
    progress: Progress = silent,
) -> Curve:
    """LDS against the number of models: fits to the first 1/32 of the completed estimation rows, up to all of them.

        found = dm.curve(store)
        print([(point.models, point.lds) for point in found.points], found.answer())

    output: as for `fit`. points: how many sizes, geometric. targets: columns to fit; by default 256 evenly spaced ones.
    Every row is read once; temporary files in the folder of the datamodels take 8 N_train^2 bytes, unless examples
    outnumber the rows. Raises as `fit` and `evaluate` do.
    """
    split = split_name(store.arrays, split, output)
    width = target_count(store, split)
    if targets is None:
        targets = np.unique(np.linspace(0, width - 1, min(_TARGETS, width)).astype(np.int64))
    if not len(targets) or targets.min() < 0 or targets.max() >= width:
        raise UserError(f"the curve's targets are not all within 0:{width} ({split} split), or there are none")
    rows = usable(store)
    make_folder(path_of(store, split).parent)
    evaluation_rows = EvaluationRows(store, split, progress)
    subsets = nested_subsets(store, split, rows, targets, points)
    found: list[Point] = []
    with enough_memory(store.n_features), contextlib.closing(subsets):
        for subset in subsets:
            models, matrices = subset.rows, subset.matrices
            solution = solve(matrices, *subset.crosses, store.setting.fit)
            weight, bias = solution.weight.T.astype(np.float64), solution.bias.astype(np.float64)
            if store.setting.fit.weight_units == "standardised":
                weight, bias = matrices.whole_scale.unscaled(weight, bias)
            del subset, matrices, solution  # the next subset's matrix takes their memory
            result = evaluation_rows.evaluate([(targets, weight, bias)], intervals=False)
            found.append(Point(models, result.lds, result.mse, result.r2))
            progress("curve", len(found), points)
    return Curve(found, len(targets), result.ceiling, Law.of(found))
