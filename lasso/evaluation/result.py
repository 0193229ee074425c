"""What an evaluation finds: LDS, errors and ceiling, their means and their values per target."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.evaluation.intervals import Interval
from datamodels.train import Summary, UserError

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Evaluation(Summary):
    """How well predictions agree with the evaluation rows, over T targets: docs/evaluation.md."""

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
    """The setting, as `protocol` gives it, and `weights`, `weight_units` and `fit_models`, the number of rows that the
    weights were fitted to (None: not known)."""
    notices: tuple[str, ...] = ()
    """What a reader of the figures should know about the weights, a sentence each."""

    def to_json(self, per_target: bool = False) -> dict[str, Any]:
        """The summary and the protocol; `ceiling` and `lds_interval` only where there is one.

        per_target: with lists per target, `per_target: {lds, lds_low, lds_high, pearson, mse, r2, ceiling}`.
        """
        names = [each.name for each in dataclasses.fields(self)]
        untold = "lds_resampled", "sample", "protocol", "notices"
        known = {name: getattr(self, name) for name in names if name not in untold and getattr(self, name) is not None}
        lists = {name: known.pop(name).tolist() for name in sorted(known) if name.startswith("target_")}
        if self.lds_interval:
            known["lds_interval"] = dataclasses.asdict(self.lds_interval)
        if per_target:
            known["per_target"] = {name.removeprefix("target_"): values for name, values in lists.items()}
        return known | self.protocol

    def to_frame(self) -> "pandas.DataFrame":
        """A table with a row a target and the columns `lds`, `lds_low`, `lds_high`, `pearson`, `mse`, `r2`, `ceiling`.

        Bounds and ceiling only where there are any.
        """
        import pandas

        names = [each.name for each in dataclasses.fields(self) if each.name.startswith("target_")]
        columns = {name.removeprefix("target_"): getattr(self, name) for name in names}
        known = {name: values for name, values in columns.items() if values is not None}
        return pandas.DataFrame(known).rename_axis("target")

    def lds_difference(self, other: "Evaluation") -> Interval:
        """Interval of the difference of two LDS on the same rows, `self.lds - other.lds`.

        Both are resampled together, so that what the masks do to both cancels. Raises UserError where rows, split or
        resamples differ, or there are no resamples.
        """
        if self.lds_interval is None or self.lds_resampled is None or other.lds_resampled is None:
            raise UserError("an evaluation has no resamples, expected eval.replicates above 0")
        if self.sample != other.sample:
            raise UserError("the evaluations are of other rows, another split or other resamples, expected the same")
        resampled = self.lds_resampled - other.lds_resampled
        return Interval.of(self.lds - other.lds, resampled, self.lds_interval.level, self.lds_interval.replicates)

    def _summary(self) -> dict[str, str]:
        found = {"LDS": f"{self.lds:.4f}"}
        if interval := self.lds_interval:
            found["LDS"] += f", {interval.level:.0%} interval {interval.low:.4f} to {interval.high:.4f}"
        if self.ceiling is not None:
            found["ceiling"] = f"{self.ceiling:.4f}"
        found |= {"Pearson": f"{self.pearson:.4f}", "R2": f"{self.r2:.4f}", "MSE": f"{self.mse:.4g}"}
        found["of"] = f"{self.targets:,} targets, {self.models:,} models on {self.masks:,} masks"
        return found
