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
    of = {by: [one for one in found["subsets"] if one["by"] == by] for by in found["by"]}
    keys = ("predicted", "measured", "standard_error")
    changes = {by: np.array([[one[key] for one in ones] for key in keys]) for by, ones in of.items()}
    base = {one["target"]: one["base"] for one in found["targets"]}
    sizes: dict[int, list[dict[str, Any]]] = {}
    for one in of.get("datamodel", []):
        sizes.setdefault(one["target"], []).append(one)
    cases = []
    for at in spread(len(sizes), _SHOWN) if data.illustrated else ():
        target, ones = [*sizes.items()][at]
        image = thumbnail(data, data.side, target, [f"{data.outcome} {base[target]:.3g}".replace("-", "−")])
        examples = [thumbnail(data, data.feature_split, example) for example in ones[-1]["removed"][:_SHOWN]]
        cases.append((image, examples, ones, base[target]))
    return {
        "found": found,
        "stale": found["stamp"] != data.fitted.report.get("stamp"),
        "change_plot": plots.changes("changes", changes, data.outcome),
        "curve_plot": plots.flips("flips", found["brittleness"]) if found["brittleness"] else None,
        "right": sum(one["base"] > 0 for one in found["targets"]),
        "cases": cases,
    }
