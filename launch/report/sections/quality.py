"""The section about the quality of the datamodels on evaluation rows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import read_features
from datamodels.launch.progress import counted
from datamodels.launch.report import plots
from datamodels.launch.report.images import thumbnail
from datamodels.launch.report.report_data import ReportData, spread

_EXTREMES = 8
"""Targets of the largest and of the smallest LDS that are shown."""
_PLOTTED_ROWS = 200
"""Evaluation rows whose predictions are plotted."""


def quality(data: ReportData) -> dict[str, Any]:
    """LDS of the targets and against the number of models, predictions against margins, best and worst targets."""
    found, curve = data.evaluation, data.lds_curve
    if found is None:
        return {}
    predicted, actual = _predictions(data)
    x, y = ((values - values.mean(axis=0)).ravel() for values in (predicted, actual))
    scale = np.sqrt((x @ x) * (y @ y))

    def shown(place: int) -> Any:
        target, lds = int(data.fitted.targets[place]), found.target_lds[place]
        if data.dataset is None:
            return target, lds
        ceiling = [] if found.target_ceiling is None else [f"max {found.target_ceiling[place]:.2f}"]
        return thumbnail(data, data.side, target, [f"LDS {lds:.2f}", *ceiling])

    order = np.argsort(-found.target_lds, kind="stable").tolist()
    count = min(_EXTREMES, len(order) // 2)
    mean = f"mean {found.lds:.3f}", found.lds
    return {
        "quartiles": np.quantile(found.target_lds, (0.25, 0.5, 0.75)),
        "lds_plot": plots.histogram("lds", found.target_lds, "LDS", "targets", mark=mean),
        "curve_plot": None if isinstance(curve, str) else plots.lds_curve("lds-curve", curve),
        "n_predictions": f"{x.size:,}: {counted(actual.shape[1], 'target')} in {counted(len(actual), 'model')}",
        "prediction_plot": plots.density("predictions", predicted.ravel(), actual.ravel(), data.outcome),
        "deviation_plot": plots.density("deviations", x, y, "deviation"),
        "correlation": float(x @ y / scale) if scale else 0.0,
        "best": [shown(place) for place in order[:count]],
        "worst": [shown(place) for place in order[: -count - 1 : -1]],
    }


def _predictions(data: ReportData) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predicted and actual margins [rows, targets] of evaluation rows and targets that are evenly spaced."""
    store, plotted = data.store, data.plotted
    done = store.models + np.flatnonzero(store.completed()[store.models :])
    rows = done[spread(len(done), _PLOTTED_ROWS)]
    targets = data.fitted.targets[plotted]
    columns = data.survey.columns[:, : len(plotted)].copy()
    if data.survey.own is not None:  # left out of the columns
        columns[targets, np.arange(len(plotted))] = data.survey.own[plotted]
    margins = store.array(f"{data.side}_{data.output}")
    masks = np.concatenate([read_features(store, row, checked=True) for row in rows[:, None]])
    predicted = masks.astype(np.float32) @ columns
    actual = np.stack([margins[row, targets] for row in rows]).astype(np.float64)
    return predicted + data.fitted.bias[plotted], actual
