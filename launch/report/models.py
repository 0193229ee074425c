"""The section about the models themselves: how well they do, and what they were trained on."""

from typing import Any

import numpy as np

from datamodels.lasso import read_features
from datamodels.launch.report import plots
from datamodels.launch.report.report_data import ROWS, ReportData, column_step, sample_margins, spread
from datamodels.train.store import Store

_COUNTED = 2**27
"""Mask entries that are read to count how often each example was trained on, if a fit has not counted all."""
_TAIL = 1e-3
"""Share of the margins beyond either end of their plot."""


def models(data: ReportData) -> dict[str, Any]:
    """Plots of accuracy, of margins, and of how often masks hold each training example."""
    store, accuracy = data.store, data.accuracy
    done = np.flatnonzero(store.completed())
    if not len(done):
        return {"rows": 0}

    n_test = store.n_test if isinstance(store, Store) else -(-store.n_test // column_step(store.n_test))
    edges = plots.whole_edges(np.round(accuracy * n_test).astype(np.int64)) / n_test
    mark = f"mean {accuracy.mean():.2%}", float(accuracy.mean())
    accuracy_plot = plots.histogram("accuracy", accuracy, "test accuracy", "models", edges=edges, mark=mark)

    rows = done[spread(len(done), ROWS)]
    groups = {"test": sample_margins(store, "test", rows).ravel()}
    has_train_margins = "train_margins" in store.arrays
    if has_train_margins:
        margins, masks = sample_margins(store, "train", rows), store.array("train_masks")
        inside = np.stack([masks[row, :: column_step(store.n_train)] for row in rows])
        groups = {"trained on": margins[inside], "left out": margins[~inside], **groups}
    groups = {name: values for name, values in groups.items() if len(values)}
    low, high = np.quantile(np.concatenate(list(groups.values())), (_TAIL, 1 - _TAIL))
    edges = np.linspace(low, max(high, low + 1e-3), 49)

    return {
        "rows": len(rows),
        "n_test": n_test,
        "accuracy_plot": accuracy_plot,
        "has_train_margins": has_train_margins,
        "n_margins": sum(map(len, groups.values())),
        "beyond": 2 * _TAIL,
        "margin_plot": plots.outlines("margins", groups, edges, "margin", "margins"),
        "sums": _column_sums(data),
    }


def _column_sums(data: ReportData) -> dict[str, Any]:
    """How many masks hold each training example, against what independent masks give.

    Masks are those of the fit's rows, which the fit has counted, or else of some rows.
    """
    from scipy.special import ndtr

    store, fitted = data.store, data.fitted
    rows = np.flatnonzero(store.completed()[: store.models])
    mean = fitted.parts[0].datamodels.arrays.get("mean")
    if mean is not None and fitted.report.get("rows", {}).get("used") == len(rows):
        counts = np.round(mean * len(rows)).astype(np.int64)
    else:
        rows = rows[spread(len(rows), max(1, _COUNTED // store.n_train))]
        counts = np.zeros(store.n_features, np.int64)
        for row in rows:
            counts += read_features(store, np.array([row]), checked=True)[0]

    share, rule = store.setting.alpha, store.setting.mask
    if share is None:  # masks of a file
        share, rule = float(counts.mean() / len(rows)), "own"
    if rule in ("exact", "groups"):
        share = round(share * store.n_features) / store.n_features
    # rows share a mask if `grow` has made estimation rows of evaluation rows
    runs = np.unique([store.mask_index(int(row)) for row in rows], return_counts=True)[1]
    deviation = 0.0 if rule == "own" else float(np.sqrt((runs**2).sum() * share * (1 - share)))

    edges, expected = plots.whole_edges(counts), None
    if deviation:
        expected = len(counts) * np.diff(ndtr((edges - len(rows) * share) / deviation))
    features = data.features
    xlabel, what = f"masks that hold the {features}", f"{features}s"
    plot = plots.histogram("columns", counts, xlabel, what, edges=edges, expected=expected)
    return {
        "counts": counts,
        "masks": len(rows),
        "share": share,
        "mean": len(rows) * share,
        "deviation": deviation,
        "plot": plot,
    }
