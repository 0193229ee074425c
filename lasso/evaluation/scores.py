"""The evaluation rows of a store, and how well predictions agree with them.

LDS: mean over targets of the Spearman correlation, over masks, between predicted and actual margins (Park et al.,
"TRAK", ICML 2023). Runs of one mask are averaged first. A correlation that is undefined (one side is constant) counts
as 0. MSE and R^2 are per row, runs not averaged.

Ceiling: the LDS of perfect predictions. If two runs of one mask correlate by rho, the mean of R runs has reliability
R rho / (1 + (R - 1) rho) (Spearman 1910, Brown 1910), and the square root of a variable's reliability is the largest
correlation that anything else can have with it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.design import product_with
from datamodels.lasso.evaluation.correlation import pearson, spearman
from datamodels.lasso.evaluation.intervals import Bootstrap, Interval
from datamodels.lasso.evaluation.result import Evaluation
from datamodels.lasso.rows import (
    Progress,
    blocks,
    check_rows,
    evaluation_rows,
    read_features,
    read_margins,
    refuse_unshared_masks,
    silent,
    target_array,
)
from datamodels.train import Eval, UserError
from datamodels.train.store import BaseStore as Store

Tile = tuple[slice | NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
"""Which targets, and their weight [N_train, t] and bias [t] in mask units."""

LEAST_MASKS = 3
"""Evaluation masks that a rank correlation needs."""


class Scorer:
    """Evaluation rows in groups that share a mask, wherever they are kept."""

    tile_values = 2**23
    """Entries of the largest matrix while targets are scored: 64 MiB as float64."""

    def __init__(
        self, n_features: int, mask_of_row: NDArray[np.int64], runs_per_mask: int, options: Eval, seed: int
    ) -> None:
        """mask_of_row: rows with the same number share a mask. Raises UserError for fewer than three masks."""
        self.n_features, self.models, self.runs_per_mask = n_features, len(mask_of_row), runs_per_mask
        self.options, self.seed = options, seed
        _, self.first, self.group, self.runs = np.unique(
            mask_of_row, return_index=True, return_inverse=True, return_counts=True
        )
        if len(self.runs) < LEAST_MASKS:
            raise UserError(
                f"the evaluation rows have {len(self.runs)} masks, expected at least {LEAST_MASKS}: raise eval_models"
            )

    def outcomes(self, targets: slice | NDArray[np.int64]) -> NDArray[np.float64]:
        """Margins, or another output, of all rows: [rows, t]."""
        raise NotImplementedError

    def features(self, places: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
        """What datamodels are linear in, of some of the rows in ascending order, block by block: [n, n_features]."""
        raise NotImplementedError

    def sample(self) -> str:
        """What tells these rows from others."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Targets to score at a time."""
        return max(1, self.tile_values // max(self.n_features, self.models))

    def evaluate(self, tiles: Iterable[Tile], intervals: bool = True) -> Evaluation:
        """Score the weights of consecutive targets, some at a time; without `intervals`, and quicker, on request."""
        options, bootstrap = self.options, None
        if intervals and options.replicates:
            bootstrap = Bootstrap(len(self.runs), options.replicates, options.level, self.seed)
        parts = [self._score(*tile, bootstrap) for tile in tiles]
        totals = [part.pop("resampled") for part in parts] if bootstrap else []  # sums over targets
        values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        lds, correlation = np.nan_to_num(values["spearman"]), np.nan_to_num(values["pearson"])
        resampled = interval = None
        if bootstrap:
            resampled = np.sum(totals, axis=0) / len(lds)
            interval = Interval.of(float(lds.mean()), resampled, bootstrap.level, bootstrap.replicates)
        ceiling = values.get("ceiling")
        sample = f"{self.sample()} {self.seed} {options}"
        return Evaluation(
            lds=float(lds.mean()),
            lds_interval=interval,
            undefined=int(np.isnan(values["spearman"]).sum()),
            pearson=float(correlation.mean()),
            mse=float(values["mse"].mean()),
            r2=float(values["r2"].mean()),
            targets=len(lds),
            models=self.models,
            masks=len(self.runs),
            ceiling=None if ceiling is None else float(ceiling.mean()),
            target_lds=lds,
            target_lds_low=values.get("low"),
            target_lds_high=values.get("high"),
            target_pearson=correlation,
            target_mse=values["mse"],
            target_r2=values["r2"],
            target_ceiling=ceiling,
            lds_resampled=resampled,
            sample=hashlib.sha256(sample.encode()).hexdigest(),
        )

    def _score(
        self,
        targets: slice | NDArray[np.int64],
        weight: NDArray[np.float64],
        bias: NDArray[np.float64],
        bootstrap: Bootstrap | None,
    ) -> dict[str, NDArray[np.float64]]:
        """Values [t] of some targets by name, nan where a correlation is undefined."""
        margins = self.outcomes(targets)
        predicted = self._predict(weight) + bias

        errors = (margins - predicted[self.group]) ** 2
        spread = ((margins - margins.mean(axis=0)) ** 2).sum(axis=0)
        r2 = 1 - np.divide(errors.sum(axis=0), spread, out=np.ones_like(spread), where=spread > 0)

        by_group = np.argsort(self.group, kind="stable")
        sums = np.add.reduceat(margins[by_group], np.cumsum(self.runs) - self.runs, axis=0)
        means = sums / self.runs[:, None]
        rho = spearman(predicted, means)
        found = {"spearman": rho, "pearson": pearson(predicted, means), "mse": errors.mean(axis=0), "r2": r2}
        if (ceiling := self._ceiling(margins)) is not None:
            found["ceiling"] = ceiling
        if bootstrap:
            found["low"], found["high"], found["resampled"] = bootstrap.targets(np.nan_to_num(rho), predicted, means)
        return found

    def _predict(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """mask @ weight for one row of every group: [masks, t]."""
        order = np.argsort(self.first)  # rows are read in ascending order
        product = product_with(weight)
        parts = [product(block.astype(np.float64)) for block in self.features(self.first[order])]
        predicted = np.empty((len(order), weight.shape[1]))
        predicted[order] = np.concatenate(parts)
        return predicted

    def _ceiling(self, margins: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Per target [t], from the masks that have all their runs; None where fewer than three have several."""
        runs = self.runs_per_mask
        complete = np.flatnonzero(self.runs == runs)
        if runs < 2 or len(complete) < 3:
            return None
        members = np.stack([np.flatnonzero(self.group == group) for group in complete])
        between = [
            np.nan_to_num(spearman(margins[members[:, a]], margins[members[:, b]]))
            for a, b in combinations(range(runs), 2)
        ]
        rho = np.clip(np.mean(between, axis=0), 0.0, 1.0)
        return np.sqrt(runs * rho / (1 + (runs - 1) * rho))


class EvaluationRows(Scorer):
    """The completed evaluation rows of a store, checked.

    Raises UserError for fewer than three masks, or rows of one group with different masks; WorkError for damaged rows.
    """

    def __init__(self, store: Store, split: str, progress: Progress = silent) -> None:
        self.store, self.split, setting = store, split, store.setting
        store.check_files()
        self.rows = evaluation_rows(store)
        masks = np.array([store.mask_index(int(row)) for row in self.rows])
        super().__init__(store.n_features, masks, setting.runs_per_mask, setting.eval, setting.seed)
        check_rows(store, ("train_masks", target_array(store, split)), self.rows, progress)
        refuse_unshared_masks(store, self.rows)

    def outcomes(self, targets: slice | NDArray[np.int64]) -> NDArray[np.float64]:
        read = (read_margins(self.store, self.split, block, targets, True) for block in blocks(self.store, self.rows))
        return np.concatenate([*read])

    def features(self, places: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
        return (read_features(self.store, block, True) for block in blocks(self.store, self.rows[places]))

    def sample(self) -> str:
        return f"{self.store.row_stamp(self.rows)} {self.split}"
