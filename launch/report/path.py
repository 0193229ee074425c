"""Validation error along the lambda path of some targets, computed anew by scikit-learn to check the fit's choice."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import FitRows, read_margins, read_masks
from datamodels.launch.report import html, plots
from datamodels.launch.report.report_data import Subject, spread
from datamodels.launch.report.weights import Fitted
from datamodels.launch.text import counted
from datamodels.train.store import ReadableStore

_TARGETS = 6
_EXAMPLES, _ENTRIES = 1000, 2**23
"""Training examples, and mask entries, up to which the paths take seconds."""


@dataclass(frozen=True)
class Paths:
    """Of p targets, along k lambdas; errors are shares of the margin's variance on the validation rows."""

    targets: NDArray[np.int64]
    """[p]"""
    errors: NDArray[np.float64]
    """[p, k]"""
    chosen: NDArray[np.int64]
    """[p] which lambda the fit chose"""
    recorded: NDArray[np.float64]
    """[p] the error that the fit recorded there"""


def path_plot(subject: Subject, vectors: dict[str, NDArray]) -> list[str]:
    """The plot, where the paths take seconds."""
    fitted = subject.fitted
    found = paths_of(subject.store, subject.split, fitted, vectors)
    if found is None:
        return []
    path, validation = fitted.report["path"], fitted.report["rows"]["validation"]
    ratios = np.geomspace(1, path["eps"], path["k"])
    caption = (
        "Of evenly spaced targets, as a share of the margin's variance. The lines are scikit-learn's, computed for "
        "this page; the dots are lambda and error as the fit recorded them, and should lie on their lines where these "
        f"are lowest, before {path['patience']} lambdas without a smaller error."
    )
    names = [f"{subject.split} {target}" for target in found.targets]
    n = f"n = {counted(len(names), 'target')}, {counted(validation, 'row')}"
    svg = plots.paths("paths", ratios, found.errors, names, (ratios[found.chosen], found.recorded))
    return [html.plot("Validation error along the path", n, svg, caption)]


def paths_of(store: ReadableStore, split: str, fitted: Fitted, vectors: dict[str, NDArray]) -> Paths | None:
    """None where it would take long, or the rows are others than those fitted. Raises WorkError for damaged rows."""
    rows = FitRows.of(store.setting, np.flatnonzero(store.completed()[: store.models]))
    some = np.flatnonzero(vectors["chosen"] >= 0)
    small = store.n_train <= _EXAMPLES and store.n_train * len(rows.rows) <= _ENTRIES
    if not (small and len(some) and _are_those_of(rows, fitted)):
        return None
    places = some[spread(len(some), _TARGETS)]
    masks = _standardised(read_masks(store, rows.rows), rows.validation)
    margins = read_margins(store, split, rows.rows, fitted.targets[places])
    margins -= margins[~rows.validation].mean(axis=0)
    variance = margins[rows.validation].var(axis=0)
    scale = np.where(variance > 0, variance, 1)
    ratios = np.geomspace(1, fitted.report["path"]["eps"], fitted.report["path"]["k"])
    chosen = vectors["chosen"][places]
    lams = (vectors["lam"][places] / ratios[chosen])[:, None] * ratios
    errors = np.stack([_errors(masks, *pair, rows.validation) for pair in zip(margins.T, lams, strict=True)])
    return Paths(fitted.targets[places], errors / scale[:, None], chosen, vectors["validation_mse"][places] / scale)


def _are_those_of(rows: FitRows, fitted: Fitted) -> bool:
    """Whether the rows are as many as the fit used, of either kind."""
    used = fitted.report["rows"]
    heldout = int(rows.validation.sum())
    return (len(rows.rows) - heldout, heldout) == (used["training"], used["validation"])


def _standardised(masks: NDArray[np.bool_], heldout: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Columns standardised by the rows that are not held out; 0 where one does not vary."""
    training = masks[~heldout]
    deviation = training.std(axis=0)
    return (masks - training.mean(axis=0)) / np.where(deviation > 0, deviation, np.inf)


def _errors(
    masks: NDArray[np.float64], margins: NDArray[np.float64], lams: NDArray[np.float64], heldout: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Mean squared error [k] on the held-out rows of fits to the others, for standardised masks and centred margins."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lasso_path

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        weights = lasso_path(masks[~heldout], margins[~heldout], alphas=lams, precompute=True)[1]
    return np.mean((margins[heldout, None] - masks[heldout] @ weights) ** 2, axis=0)
