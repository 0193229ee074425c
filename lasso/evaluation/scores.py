"""The evaluation rows of a store, and how well predictions fit them, target by target."""

from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.design import product_with
from datamodels.lasso.evaluation.correlation import pearson, spearman
from datamodels.lasso.evaluation.intervals import Bootstrap
from datamodels.lasso.rows import (
    Progress,
    blocks,
    check_rows,
    evaluation_rows,
    margin_array,
    read_margins,
    read_masks,
    refuse_unshared_masks,
    silent,
)
from datamodels.train import UserError
from datamodels.train.store import ReadableStore as Store

Columns = slice | NDArray[np.int64]
LEAST_MASKS = 3
"""Evaluation masks that a rank correlation needs."""


@dataclass(frozen=True)
class Scores:
    """Per target [t], a correlation being nan where it is undefined."""

    spearman: NDArray[np.float64]
    pearson: NDArray[np.float64]
    mse: NDArray[np.float64]
    r2: NDArray[np.float64]
    ceiling: NDArray[np.float64] | None = None
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    """bounds of the Spearman correlation's interval"""
    resampled: NDArray[np.float64] | None = None
    """[resamples]: its sum over the targets"""

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        """Those of all targets, from consecutive ones."""
        joined: dict[str, Any] = {}
        for name in (field.name for field in fields(cls)):
            values = [getattr(part, name) for part in parts]
            if values[0] is not None:
                joined[name] = np.sum(values, axis=0) if name == "resampled" else np.concatenate(values)
        return cls(**joined)


class Holdout:
    """The completed evaluation rows of a store, in groups that share a mask."""

    def __init__(self, store: Store, split: str, progress: Progress = silent) -> None:
        self.store, self.split = store, split
        store.check_files()
        self.rows = evaluation_rows(store)
        index = [store.mask_index(int(row)) for row in self.rows]
        _, self.first, self.group = np.unique(index, return_index=True, return_inverse=True)
        self.runs = np.bincount(self.group)
        self.by_group = np.argsort(self.group, kind="stable")
        if len(self.runs) < LEAST_MASKS:
            raise UserError(
                f"the evaluation rows have {len(self.runs)} masks, expected at least {LEAST_MASKS}: raise eval_models"
            )
        check_rows(store, ("train_masks", margin_array(store, split)), self.rows, progress)
        refuse_unshared_masks(store, self.rows)

    def score(
        self,
        columns: Columns,
        weight: NDArray[np.float64],
        bias: NDArray[np.float64],
        bootstrap: Bootstrap | None = None,
    ) -> Scores:
        """Score weight [N_train, t] and bias [t] on the targets at `columns`; with intervals, given resamples."""
        margins = self._margins(columns)
        predicted = self._predict(weight) + bias
        squares = (margins - predicted[self.group]) ** 2
        spread = ((margins - margins.mean(axis=0)) ** 2).sum(axis=0)
        r2 = 1 - np.divide(squares.sum(axis=0), spread, out=np.ones_like(spread), where=spread > 0)
        means = self._means(margins)
        rho = spearman(predicted, means)
        intervals = bootstrap.targets(np.nan_to_num(rho), predicted, means) if bootstrap else ()
        return Scores(rho, pearson(predicted, means), squares.mean(axis=0), r2, self._ceiling(margins), *intervals)

    def _means(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Margins [rows, t] averaged over the runs of each mask: [masks, t]."""
        sums = np.add.reduceat(margins[self.by_group], np.cumsum(self.runs) - self.runs, axis=0)
        return sums / self.runs[:, None]

    def _margins(self, columns: Columns) -> NDArray[np.float64]:
        """[rows, t]"""
        parts = [read_margins(self.store, self.split, block, columns, True) for block in blocks(self.store, self.rows)]
        return np.concatenate(parts)

    def _predict(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """mask @ weight for one row of every group: [masks, t]."""
        order = np.argsort(self.first)
        product = product_with(weight)
        parts = [
            product(read_masks(self.store, block, True).astype(np.float64))
            for block in blocks(self.store, self.rows[self.first[order]])
        ]
        predicted = np.empty((len(order), weight.shape[1]))
        predicted[order] = np.concatenate(parts)
        return predicted

    def _ceiling(self, margins: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Per target [t], from the masks that have all their runs; None where fewer than three have several."""
        runs = self.store.setting.runs_per_mask
        whole = np.flatnonzero(self.runs == runs)
        if runs < 2 or len(whole) < 3:
            return None
        members = np.stack([np.flatnonzero(self.group == group) for group in whole])
        between = [
            np.nan_to_num(spearman(margins[members[:, a]], margins[members[:, b]]))
            for a, b in combinations(range(runs), 2)
        ]
        rho = np.clip(np.mean(between, axis=0), 0.0, 1.0)
        return np.sqrt(runs * rho / (1 + (runs - 1) * rho))
