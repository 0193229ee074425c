"""Evaluate datamodels, or any attribution scores, on arrays in memory."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.lasso.arrays import checked_arrays, options_of
from datamodels.lasso.datamodels import Datamodels
from datamodels.lasso.evaluation.evaluate import as_datamodels, tiles
from datamodels.lasso.evaluation.result import Evaluation
from datamodels.lasso.evaluation.scores import Scorer
from datamodels.lasso.rows import Progress, silent
from datamodels.train import Eval

_ROWS = 4096
"""Rows that are multiplied at a time."""


def evaluate_arrays(
    scores: Datamodels | ArrayLike,
    masks: ArrayLike,
    outcomes: ArrayLike,
    *,
    weight_units: str | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Evaluation:
    """The linear datamodeling score (LDS) of datamodels or other scores on models that they were not fitted to.

        fitted = dm.fit_arrays(masks[:900], margins[:900])
        print(dm.evaluate_arrays(fitted, masks[900:], margins[900:]).lds)

    scores, weight_units: as for `evaluate`. masks: bool [M, N]; outcomes: real numbers [M, T]. Rows with equal masks
    are runs of one mask: they are averaged, and give the ceiling. options: `replicates` and `level`, as `eval.*`.
    Raises UserError for unfit arrays or scores, or fewer than three masks.
    """
    chosen = options_of(Eval, options)
    x, y = checked_arrays(masks, outcomes)
    given = as_datamodels(Path("scores"), scores, (x.shape[1], y.shape[1]), weight_units)
    rows = _ArrayRows(x, y, chosen)
    return rows.evaluate(tiles(given, rows.width, progress))


class _ArrayRows(Scorer):
    """Rows in memory."""

    def __init__(self, masks: NDArray[np.bool_], outcomes: NDArray[Any], options: Eval) -> None:
        self.masks, self.all_outcomes = masks, outcomes
        _, index, runs = np.unique(np.packbits(masks, axis=1), axis=0, return_inverse=True, return_counts=True)
        super().__init__(masks.shape[1], index.reshape(-1), int(runs.max()), options, seed=0)

    def outcomes(self, targets: slice | NDArray[np.int64]) -> NDArray[np.float64]:
        return self.all_outcomes[:, targets].astype(np.float64)

    def features(self, places: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
        return (self.masks[places[start : start + _ROWS]] for start in range(0, len(places), _ROWS))

    def sample(self) -> str:
        digest = hashlib.sha256(np.packbits(self.masks).data)
        digest.update(np.ascontiguousarray(self.all_outcomes, np.float64).data)
        return digest.hexdigest()
