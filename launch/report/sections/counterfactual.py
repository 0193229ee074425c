"""The section about counterfactuals: what removing examples was predicted to do, and what it did."""

from typing import Any

import numpy as np

from datamodels.launch.counterfactual import read_result
from datamodels.launch.report import plots
from datamodels.launch.report.images import thumbnail
from datamodels.launch.report.report_data import ReportData, spread

_SHOWN = 6
"""Targets that are shown with what was removed, and examples for each."""


def counterfactual(data: ReportData) -> dict[str, Any] | None:
    """The last result of `datamodels counterfactual`; None where there is none."""
    found = read_result(data.store, data.split)
    if found is None or not found["subsets"]:
        return None
    changes = {
        by: np.array(
            [
                [one[key] for key in ("predicted", "measured", "standard_error")]
                for one in found["subsets"]
                if one["by"] == by
            ]
        ).T
        for by in found["by"]
    }
    cases = []
    removed = {one["target"]: one for one in found["subsets"] if one["by"] == "datamodel"}  # the largest size of each
    if data.illustrated:
        for at in spread(len(removed), _SHOWN):
            target, largest = [*removed.items()][at]
            base = next(one["base"] for one in found["targets"] if one["target"] == target)
            image = thumbnail(data, data.side, target, [f"{data.outcome} {base:.3g}".replace("-", "−")])
            examples = [thumbnail(data, data.feature_split, example) for example in largest["removed"][:_SHOWN]]
            sizes = [one for one in found["subsets"] if (one["target"], one["by"]) == (target, "datamodel")]
            cases.append((image, examples, sizes, base))
    return {
        "found": found,
        "stale": found["stamp"] != data.fitted.report.get("stamp"),
        "change_plot": plots.changes("changes", changes, data.outcome),
        "curve_plot": plots.flips("flips", found["brittleness"]) if found["brittleness"] else None,
        "right": sum(one["base"] > 0 for one in found["targets"]),
        "cases": cases,
    }
