"""The section about the models themselves: how well they do, and what they were trained on."""

from typing import Any

import numpy as np

from datamodels.lasso import read_features
from datamodels.launch.report import plots
from datamodels.launch.report.report_data import ROWS, ReportData, column_step, sample_outputs, spread
from datamodels.train.store import Store

_COUNTED = 2**27
"""Mask entries that are read to count how often each example was trained on, if a fit has not counted all."""
_TAIL = 1e-3
"""Share of the values beyond either end of their plot."""


def models(data: ReportData) -> dict[str, Any]:
    """Plots of accuracy, of what is predicted, and of how often masks hold each training example."""
    store, accuracy = data.store, data.accuracy
    done = np.flatnonzero(store.completed())
    if not len(done):
        return {"rows": 0}

    n_test, accuracy_plot = 0, None
    if len(accuracy):
        n_test = store.arrays["test_margins"].shape[1]
        n_test = n_test if isinstance(store, Store) else -(-n_test // column_step(n_test))
        edges = plots.whole_edges(np.round(accuracy * n_test).astype(np.int64)) / n_test
        mark = f"mean {accuracy.mean():.2%}", float(accuracy.mean())
        accuracy_plot = plots.histogram("accuracy", accuracy, "test accuracy", "models", edges=edges, mark=mark)

    rows = done[spread(len(done), ROWS)]
    train, test = (store.arrays.get(f"{side}_{data.output}") for side in ("train", "test"))
    groups = {} if test is None else {"test": sample_outputs(store, test.name, rows).ravel()}
    by_example = train is not None and train.shape[1:] == (store.n_train,)
    if train is not None and by_example:
        values, masks = sample_outputs(store, train.name, rows), store.array("train_masks")
        inside = np.stack([masks[row, :: column_step(store.n_train)] for row in rows])
        groups = {"trained on": values[inside], "left out": values[~inside], **groups}
    elif train is not None:
        groups = {"train": sample_outputs(store, train.name, rows).ravel(), **groups}
    groups = {name: values for name, values in groups.items() if len(values)}
    low, high = np.quantile(np.concatenate(list(groups.values())), (_TAIL, 1 - _TAIL))
    edges = np.linspace(low, max(high, low + 1e-3), 49)

    return {
        "rows": len(rows),
        "n_test": n_test,
        "accuracy_plot": accuracy_plot,
        "by_example": by_example,
        "n_values": sum(map(len, groups.values())),
        "beyond": 2 * _TAIL,
        "output_plot": plots.outlines("outputs", groups, edges, data.outcome, "values"),
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
    xlabel = f"masks that hold the {data.feature}"
    plot = plots.histogram("columns", counts, xlabel, f"{data.feature}s", edges=edges, expected=expected)
    return {
        "counts": counts,
        "masks": len(rows),
        "share": share,
        "mean": len(rows) * share,
        "deviation": deviation,
        "plot": plot,
    }
