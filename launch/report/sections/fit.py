"""The section about the LASSO: which lambdas were chosen, how exact the solutions are, how sparse."""

from typing import Any

import numpy as np

from datamodels.launch.report import plots
from datamodels.launch.report.lambda_path import lambda_paths
from datamodels.launch.report.report_data import ReportData

_SMALLEST_GAP = 1e-12
"""Smaller gaps are drawn at this value: float64 does not distinguish them from 0."""
_LEAST_SHARE = -0.5
"""Smaller shares of explained variance are drawn at this value."""
_BARS = 100
"""Bars of the plot of lambdas, at most."""


def fit(data: ReportData) -> dict[str, Any]:
    """Figures and plots of a fit as it was recorded; of weights without a record only their sparsity."""
    fitted, report, vectors, nonzero = data.fitted, data.fitted.report, data.fitted.vectors, data.survey.nonzero
    edges = plots.whole_edges(nonzero)
    sparsity = {
        "recorded": bool(vectors and report),
        "median_nonzero": np.median(nonzero),
        "sparsity_plot": plots.histogram("nonzero", nonzero, "weights other than 0", "targets", edges=edges),
    }
    if not sparsity["recorded"]:
        return sparsity

    # every target's lambdas are the same shares of its own largest one
    k, chosen = report["path"]["k"], vectors["chosen"]
    varies, step = chosen >= 0, np.log(report["path"]["eps"]) / max(1, k - 1)
    width = -(-k // _BARS)
    edges = np.exp((np.arange(0, k + width, width) - 0.5) * step)[::-1]
    lambda_plot = plots.histogram(
        "lambdas",
        np.exp(chosen[varies] * step),
        "chosen lambda / largest lambda",
        "targets",
        edges=edges,
        log=True,
        flag_ends=True,
    )

    gap, tolerance = vectors["gap"], report["options"]["tol"]
    shown, mark = np.maximum(gap, _SMALLEST_GAP), (f"tolerance {tolerance:g}", tolerance)
    gap_plot = plots.histogram("gaps", shown, "relative duality gap", "targets", log=True, mark=mark)

    variance = vectors["variance"]
    share = 1 - vectors["validation_mse"][variance > 0] / variance[variance > 0]
    median = float(np.median(share)) if len(share) else 0.0
    shown, mark = np.maximum(share, _LEAST_SHARE), (f"median {median:.3f}", median)
    explained_plot = plots.histogram("explained", shown, "share of variance explained", "targets", mark=mark)

    paths = lambda_paths(data.store, data.split, fitted)
    return {
        **sparsity,
        "report": report,
        "mean_tried": vectors["tried"][varies].mean() if varies.any() else 0.0,
        "at_largest": int((chosen == 0).sum()),
        "at_smallest": int((chosen == k - 1).sum()),
        "constant_targets": int((~varies).sum()),
        "gap": gap,
        "median_gap": np.median(gap),
        "kkt": vectors["kkt"],
        "median_kkt": np.median(vectors["kkt"]),
        "seconds": sum(sum((part.datamodels.report or {})["seconds"].values()) for part in fitted.parts),
        "path_targets": 0 if paths is None else len(paths.targets),
        "path_plot": None if paths is None else plots.lambda_paths("paths", paths, data.side),
        "lambda_plot": lambda_plot,
        "gap_plot": gap_plot,
        "explained_plot": explained_plot,
        "n_explained": len(share),
    }
