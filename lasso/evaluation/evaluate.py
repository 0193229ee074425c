"""Held-out quality of datamodels, or of any attribution scores, on the evaluation rows: docs/evaluation.md.

LDS: mean over targets of the Spearman correlation, over masks, between predicted and actual margins (Park et al.,
"TRAK", ICML 2023). Runs of one mask are averaged first. A correlation that is undefined (one side is constant) counts
as 0. MSE and R^2 are per row, runs not averaged.

Ceiling: what perfect predictions could reach. If two runs of one mask correlate by rho, the mean of R runs has
reliability R rho / (1 + (R - 1) rho) (Spearman 1910, Brown 1910), and the square root of a variable's reliability is
the largest correlation that anything else can have with it.
"""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.lasso.datamodels import Datamodels, places
from datamodels.lasso.evaluation.intervals import Bootstrap, Interval
from datamodels.lasso.evaluation.protocol import protocol
from datamodels.lasso.evaluation.scores import Holdout, Scores
from datamodels.lasso.evaluation.weights import weights_of
from datamodels.lasso.fit import is_fresh
from datamodels.lasso.rows import Progress, enough_memory, silent
from datamodels.train import UserError
from datamodels.train.store import ReadableStore as Store


@dataclass(frozen=True)
class Evaluation:
    lds: float
    """Mean over targets of the Spearman correlation between predicted and actual margins."""
    lds_interval: Interval | None
    """Bootstrap interval of `lds` over the evaluation masks; None where `eval.replicates` is 0."""
    undefined: int
    """Targets without a defined correlation, counted as 0 in the means."""
    pearson: float
    """Mean over targets of the Pearson correlation, runs of one mask averaged."""
    mse: float
    """Mean squared error over evaluation rows and targets, in squared margins."""
    r2: float
    """Mean over targets of 1 - squared error / squared deviation from the evaluation rows' mean (0 without any)."""
    targets: int
    models: int
    """Evaluation rows used."""
    masks: int
    """Distinct masks among them."""
    ceiling: float | None
    """Mean over targets of the LDS of perfect predictions; None unless several runs share a mask."""
    target_lds: NDArray[np.float64]
    """[T]: 0 where undefined"""
    target_lds_low: NDArray[np.float64] | None
    target_lds_high: NDArray[np.float64] | None
    """Bounds [T] of each target's bootstrap interval, 0 where its correlation is undefined."""
    target_pearson: NDArray[np.float64]
    target_mse: NDArray[np.float64]
    target_r2: NDArray[np.float64]
    target_ceiling: NDArray[np.float64] | None
    lds_resampled: NDArray[np.float64] | None = None
    """[resamples]: `lds` in each resample of the masks, the same ones wherever `sample` is the same."""
    sample: str = ""
    """Digest of the rows, the split and how they are resampled."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """What the figures are of: see `datamodels.lasso.evaluation.protocol`, and `weights`, `weight_units` and `fit_models`, the rows that the
    weights were fitted to (None: not known)."""
    notices: tuple[str, ...] = ()
    """What somebody who reads the figures should know about the weights, a sentence each."""

    def to_json(self, per_target: bool = False) -> dict[str, Any]:
        """The summary and the protocol; `ceiling` and `lds_interval` only where there is one.

        per_target: with lists per target, `per_target: {lds, lds_low, lds_high, pearson, mse, r2, ceiling}`.
        """
        names = [each.name for each in dataclasses.fields(self)]
        told = [name for name in names if name not in ("lds_resampled", "sample", "protocol", "notices")]
        known = {name: getattr(self, name) for name in told if getattr(self, name) is not None}
        summary = {key: value for key, value in known.items() if not key.startswith("target_")}
        if self.lds_interval:
            summary["lds_interval"] = dataclasses.asdict(self.lds_interval)
        if per_target:
            arrays = known.keys() - summary.keys()
            summary["per_target"] = {key.removeprefix("target_"): known[key].tolist() for key in sorted(arrays)}
        return summary | self.protocol

    def lds_difference(self, other: "Evaluation") -> Interval:
        """Interval of the difference of two LDS on the same rows, `self.lds - other.lds`.

        Both are resampled together, so that what the masks do to both cancels. Raises UserError where the rows, the
        split, or the resamples are not the same, or there are none.
        """
        if self.lds_interval is None or self.lds_resampled is None or other.lds_resampled is None:
            raise UserError("an evaluation has no resamples, expected eval.replicates above 0")
        if self.sample != other.sample:
            raise UserError("the evaluations are of other rows, another split or other resamples, expected the same")
        resampled = self.lds_resampled - other.lds_resampled
        return Interval.of(self.lds - other.lds, resampled, self.lds_interval.level, self.lds_interval.replicates)


def evaluate(
    store: Store,
    split: str = "test",
    weights: str | Path | None = None,
    progress: Progress = silent,
    weight_units: str | None = None,
    scores: ArrayLike | None = None,
) -> Evaluation:
    """Score the split's fitted datamodels, or other weights, on the completed evaluation rows.

    weights: a .pt in the format of the contract, or a .npy [N_train, T] of any method's attribution scores.
    scores: such an array itself, a tensor on the CPU too; larger where an example raises a target's margin more. Scores
    have bias 0, so that MSE and R^2 mean little. weight_units: `mask`, or `standardised` for weights of masks
    standardised by mean and deviation over the estimation rows, as fast_l1 saves them; default what the file says, else
    `mask`. Raises UserError for unfit weights or fewer than three evaluation masks, WorkError
    for damaged rows.
    """
    given = weights_of(store, split, weights, scores, weight_units)
    with enough_memory(store.n_train):
        holdout = Holdout(store, split, progress)
        bootstrap = _bootstrap(store, holdout)
        tiles = [holdout.score(*tile, bootstrap) for tile in given.tiles(store, len(holdout.rows), progress)]
        found = summarise(holdout, Scores.join(tiles), bootstrap)
    return dataclasses.replace(
        found,
        sample=_sample(store, split, holdout.rows),
        protocol={**protocol(store, split), **given.origin()},
        notices=_notices(store, split, given.datamodels),
    )


def _bootstrap(store: Store, holdout: Holdout) -> Bootstrap | None:
    options = store.setting.eval
    if not options.replicates:
        return None
    return Bootstrap(len(holdout.runs), options.replicates, options.level, store.setting.seed)


def _sample(store: Store, split: str, rows: NDArray[np.int64]) -> str:
    how = f"{store.row_stamp(rows)} {split} {store.setting.seed} {store.setting.eval}"
    return hashlib.sha256(how.encode()).hexdigest()


def _notices(store: Store, split: str, datamodels: Datamodels | None) -> tuple[str, ...]:
    """What speaks against the figures of weights: rows or options that have changed, rows that were fitted on."""
    if datamodels is None:
        return ()
    found, path = [], datamodels.path
    if path in places(store, split) and not is_fresh(store, path):
        found.append(f"{path} was fitted on other rows or with other options than today's: run `datamodels fit`")
    last = (datamodels.report or {}).get("rows", {}).get("last", -1)
    if last >= store.models:
        found.append(f"{path} was fitted on rows up to {last}, evaluation rows from {store.models} on among them")
    return tuple(found)


def summarise(holdout: Holdout, scores: Scores, bootstrap: Bootstrap | None = None) -> Evaluation:
    """What the scores of all targets come to; bootstrap: the resamples with which they were made."""
    lds, pearson = np.nan_to_num(scores.spearman), np.nan_to_num(scores.pearson)
    resampled = interval = None
    if bootstrap and scores.resampled is not None:
        resampled = scores.resampled / len(lds)
        interval = Interval.of(float(lds.mean()), resampled, bootstrap.level, bootstrap.replicates)
    return Evaluation(
        lds=float(lds.mean()),
        lds_interval=interval,
        undefined=int(np.isnan(scores.spearman).sum()),
        pearson=float(pearson.mean()),
        mse=float(scores.mse.mean()),
        r2=float(scores.r2.mean()),
        targets=len(lds),
        models=len(holdout.rows),
        masks=len(holdout.runs),
        ceiling=None if scores.ceiling is None else float(scores.ceiling.mean()),
        target_lds=lds,
        target_lds_low=scores.low,
        target_lds_high=scores.high,
        target_pearson=pearson,
        target_mse=scores.mse,
        target_r2=scores.r2,
        target_ceiling=scores.ceiling,
        lds_resampled=resampled,
    )
