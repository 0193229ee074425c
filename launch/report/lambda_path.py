"""Validation error along the lambda path of some targets, computed by scikit-learn to check what the fit chose."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import FitRows, read_features, read_margins
from datamodels.launch.report.fitted import Fitted
from datamodels.launch.report.report_data import spread
from datamodels.train.store import BaseStore

_TARGETS = 6
_EXAMPLES, _ENTRIES = 1000, 2**23
"""Training examples, and mask entries, up to which the paths take seconds."""


@dataclass(frozen=True)
class LambdaPaths:
    """Of p targets, along k lambdas; errors are shares of the margin's variance on the validation rows."""

    targets: NDArray[np.int64]
    """[p]"""
    ratios: NDArray[np.float64]
    """[k] lambda / largest lambda"""
    errors: NDArray[np.float64]
    """[p, k]"""
    chosen: NDArray[np.int64]
    """[p] which lambda the fit chose"""
    recorded: NDArray[np.float64]
    """[p] the error that the fit recorded there"""


def lambda_paths(store: BaseStore, split: str, fitted: Fitted) -> LambdaPaths | None:
    """None if it takes long, or if today's rows are not those of the fit. Raises WorkError for damaged rows."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lasso_path

    rows = FitRows.of(store.setting, np.flatnonzero(store.completed()[: store.models]))
    validation, used = rows.validation, fitted.report["rows"]
    some = np.flatnonzero(fitted.vectors["chosen"] >= 0)
    small = store.n_features <= _EXAMPLES and store.n_features * len(validation) <= _ENTRIES
    same = (int((~validation).sum()), int(validation.sum())) == (used["training"], used["validation"])
    if not (small and same and len(some)):
        return None

    places = some[spread(len(some), _TARGETS)]
    chosen = fitted.vectors["chosen"][places]
    masks = read_features(store, rows.rows)
    deviation = masks[~validation].std(axis=0)
    design = (masks - masks[~validation].mean(axis=0)) / np.where(deviation > 0, deviation, np.inf)
    margins = read_margins(store, split, rows.rows, fitted.targets[places])
    margins -= margins[~validation].mean(axis=0)
    variance = margins[validation].var(axis=0)
    scale = np.where(variance > 0, variance, 1)
    ratios = np.geomspace(1, fitted.report["path"]["eps"], fitted.report["path"]["k"])
    errors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for margin, lam, at in zip(margins.T, fitted.vectors["lam"][places], chosen, strict=True):
            alphas = lam / ratios[at] * ratios
            weights = lasso_path(design[~validation], margin[~validation], alphas=alphas, precompute=True)[1]
            errors.append(np.mean((margin[validation, None] - design[validation] @ weights) ** 2, axis=0))
    recorded = fitted.vectors["validation_mse"][places] / scale
    return LambdaPaths(fitted.targets[places], ratios, np.stack(errors) / scale[:, None], chosen, recorded)
