"""What an experiment found: arrays, how predicted and measured changes agree, JSON, text."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import write_derived
from datamodels.train import Summary
from datamodels.train.store import BaseStore

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Subsets:
    """What was removed and what that did to the target's output: arrays [n]."""

    target: NDArray[np.int64]
    k: NDArray[np.int64]
    """Examples to remove, as asked; `removed` may hold fewer."""
    by: NDArray[np.str_]
    removed: tuple[NDArray[np.int64], ...]
    """Numbers of the training examples, or of groups with `mask: groups`."""
    predicted: NDArray[np.float64]
    """Change of the output by the datamodel: minus the sum of the removed weights."""
    measured: NDArray[np.float64]
    """Mean output of the models without the examples minus that of the models of the base set."""
    standard_error: NDArray[np.float64]
    """Of `measured`, from the spread of the runs of both."""

    def agreement(self, by: str | None = None, k: int | None = None) -> dict[str, float | None]:
        """How predicted and measured changes agree, of all subsets or some; a figure is None where undefined.

        correlation: Pearson's. ceiling: what it could be for perfect predictions, by the standard errors. slope: of the
        least-squares line of measured on predicted. sign_agreement: share of equal signs where the prediction is not 0.
        """
        chosen = (by is None or self.by == by) & (k is None or self.k == k) & np.ones(len(self.k), np.bool_)
        x, y, error = self.predicted[chosen], self.measured[chosen], self.standard_error[chosen]
        found: dict[str, float | None] = dict.fromkeys(("correlation", "ceiling", "slope", "sign_agreement"))
        if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
            found["correlation"] = float(np.corrcoef(x, y)[0, 1])
            found["ceiling"] = float(np.sqrt(max(0.0, 1 - np.mean(error**2) / np.var(y, ddof=1))))
            found["slope"] = float(np.polyfit(x, y, 1)[0])
        if x.any():
            found["sign_agreement"] = float(np.mean(np.sign(x) == np.sign(y), where=x != 0))
        return {"subsets": len(x), **found}

    def to_frame(self) -> "pandas.DataFrame":
        """The same as a table with a row a subset."""
        import pandas

        return pandas.DataFrame(self.records())

    def records(self) -> Iterator[dict[str, Any]]:
        """A dictionary for each subset."""
        for values in zip(*vars(self).values(), strict=True):
            yield {name: value.tolist() for name, value in zip(vars(self), values, strict=True)}


@dataclass(frozen=True, eq=False, repr=False)
class Counterfactuals(Summary):
    """What removing training examples does to some targets [t], predicted and measured."""

    targets: NDArray[np.int64]
    """[t]: columns of the output."""
    base: NDArray[np.float64]
    """[t]: mean output of the models of each target's base set."""
    base_error: NDArray[np.float64]
    """[t]: its standard error, part of that of every change measured from it."""
    subsets: Subsets
    brittle: dict[str, NDArray[np.int64]]
    """[t], by way of choosing: the fewest examples whose removal is predicted to turn the margin negative; 0 where it
    is negative before, -1 where none do. Empty for other outputs than margins."""
    verified: Subsets | None
    """Removals of so many, measured; None where that was not asked for."""
    protocol: dict[str, Any]
    """What the figures are of."""
    notices: tuple[str, ...]

    def curve(self, by: str, measured: bool = False) -> dict[str, list[Any]]:
        """Share of the targets with a margin above 0 that flip without k examples or fewer, by ascending `k`.

        Predicted by `brittle`, or measured at the sizes that were asked.
        """
        subsets, right = self.subsets, self.base > 0
        margins = dict(zip(self.targets[right].tolist(), self.base[right].tolist(), strict=True))
        before, needed, share = dict(margins), self.brittle[by][right], []
        ks = np.unique(subsets.k if measured else needed[needed > 0]).tolist() if margins else []
        for k in ks:
            for at in np.flatnonzero((subsets.by == by) & (subsets.k == k)):  # else what the size before it did
                if (target := int(subsets.target[at])) in before:
                    margins[target] = before[target] + subsets.measured[at]
            flips = [margin < 0 for margin in margins.values()] if measured else (needed > 0) & (needed <= k)
            share.append(float(np.mean(flips)))
        return {"k": ks, "share": share}

    def to_json(self) -> dict[str, Any]:
        """The same as plain values: the keys of `counterfactual --json`."""
        subsets = self.subsets
        ways, sizes = dict.fromkeys(subsets.by.tolist()), np.unique(subsets.k).tolist()
        brittle = {by: [None if k < 0 else k for k in ks.tolist()] for by, ks in self.brittle.items()}
        before = dict(zip(self.targets.tolist(), self.base.tolist(), strict=True))
        checked = None if self.verified is None else [*self.verified.records()]
        return {
            "subsets": [*subsets.records()],
            **{key: value for key, value in subsets.agreement().items() if key != "subsets"},
            "by": {
                by: {**subsets.agreement(by), "k": {str(k): subsets.agreement(by, k) for k in sizes}} for by in ways
            },
            "k": {str(k): subsets.agreement(k=k) for k in sizes},
            "targets": [
                {
                    "target": target,
                    "base": base,
                    "standard_error": error,
                    "brittle": {by: brittle[by][at] for by in brittle},
                }
                for at, ((target, base), error) in enumerate(zip(before.items(), self.base_error.tolist(), strict=True))
            ],
            "brittleness": {
                by: {"predicted": self.curve(by), "measured": self.curve(by, measured=True)} for by in brittle
            },
            "verified": checked and [{**one, "flips": before[one["target"]] + one["measured"] < 0} for one in checked],
            **self.protocol,
            "notices": [*self.notices],
        }

    def _summary(self) -> dict[str, str]:
        found = {"targets": f"{len(self.targets)}, {self.protocol['base']} base", "subsets": f"{len(self.subsets.k)}"}
        for by in dict.fromkeys(self.subsets.by.tolist()):
            figures = self.subsets.agreement(by)
            named = [f"{key} {figures[key]:.3f}" for key in ("correlation", "slope") if figures[key] is not None]
            found[f"by {by}"] = ", ".join(named) or "too few subsets for a correlation"
        return found


def told(found: dict[str, Any]) -> str:
    """A result, as `to_json` gives it, for people."""

    def line(name: str, of: dict[str, Any]) -> str:
        figures = ("-" if of[key] is None else f"{of[key]:.3f}" for key in ("correlation", "ceiling", "slope"))
        same = "-" if of["sign_agreement"] is None else f"{of['sign_agreement']:.0%}"
        return columns(name, *figures, same, str(of["subsets"]))

    def columns(first: str, *others: str) -> str:
        return " ".join([f"{first:18}", *(f"{text:>11}" for text in others)])

    lines = [columns("removed", "correlation", "ceiling", "slope", "same sign", "subsets")]
    lines.append(line("all", {**found, "subsets": len(found["subsets"])}))
    for by, each in found["by"].items():
        lines.append(line(by, each))
        lines += [line(f"  {k}", of) for k, of in each["k"].items() if of["subsets"]]
    right = sum(target["base"] > 0 for target in found["targets"])
    for by in found["brittleness"]:
        ks = [k for target in found["targets"] if (k := target["brittle"][by])]
        half = f"; examples to remove, median: {np.median(ks):g}" if ks else ""
        lines.append(f"{by}: predicted to flip: {len(ks)} of {right} targets{half}")
    if found["verified"]:
        true = sum(one["flips"] for one in found["verified"])
        lines.append(f"of {len(found['verified'])} such predictions that were checked, {true} came true")
    return "\n".join(lines)


def _path(store: BaseStore, split: str) -> Path:
    return store.derived / f"counterfactual_{store.setting.file_tag}" / f"{split}.json"


def write_result(store: BaseStore, split: str, found: Counterfactuals) -> None:
    """Keep a result for the report. Raises UserError, WorkError."""
    write_derived(_path(store, split), json.dumps(found.to_json()).encode())


def read_result(store: BaseStore, split: str) -> dict[str, Any] | None:
    """The last result, as `to_json` gives it; None where there is none."""
    try:
        found: dict[str, Any] = json.loads(_path(store, split).read_bytes())
    except (OSError, ValueError):
        return None
    return found
