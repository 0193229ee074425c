"""The section about the models themselves: how well they do, and what they were trained on."""

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.report import html, plots
from datamodels.launch.report.html import Section
from datamodels.launch.report.report_data import Subject, spread
from datamodels.launch.text import counted
from datamodels.train.store import ReadableStore, Store

_ROWS, _COLUMNS = 256, 2000
"""Rows and columns of margins that are read, evenly spaced, where all of them would take long."""
_COUNTED = 2**27
"""Mask entries that are read to count how often each example was trained on, where a fit has not counted all."""
_TAIL = 1e-3
"""Share of the margins beyond either end of their plot."""


def models(subject: Subject) -> Section:
    store = subject.store
    done = np.flatnonzero(store.completed())
    if not len(done):
        return Section("models", "Models and masks", html.paragraph("No row is done."))
    sample = done[spread(len(done), _ROWS)]
    shown = [_accuracy_plot(store), _margin_plot(store, sample), _column_sums(subject)]
    return Section("models", "Models and masks", html.plots(shown))


def accuracy_of(store: ReadableStore) -> NDArray[np.float64]:
    """Test accuracy of each done row as recorded; of published files that of some rows, on some test examples."""
    if isinstance(store, Store):
        return store.states.accuracy[store.completed()].astype(np.float64)
    return np.mean(_margins(store, "test", spread(store.rows, _ROWS)) > 0, axis=1, dtype=np.float64)


def _margins(store: ReadableStore, split: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """[rows, columns] of evenly spaced columns."""
    margins = store.array(f"{split}_margins")
    return np.stack([margins[row, :: _step(margins.shape[1])] for row in rows]).astype(np.float32)


def _step(columns: int) -> int:
    return -(-columns // _COLUMNS)


def _accuracy_plot(store: ReadableStore) -> str:
    values = accuracy_of(store)
    shown = store.n_test if isinstance(store, Store) else -(-store.n_test // _step(store.n_test))
    caption = (
        f"Share of {counted(shown, 'test example')} with a positive margin, one value a model: mean "
        f"{values.mean():.2%}, standard deviation {values.std():.2%}."
    )
    mark = f"mean {values.mean():.2%}", float(values.mean())
    edges = plots.whole_edges(np.round(values * shown).astype(np.int64)) / shown
    svg = plots.histogram("accuracy", values, "test accuracy", "models", edges=edges, mark=mark)
    return html.plot("Test accuracy", f"n = {counted(len(values), 'model')}", svg, caption)


def _margin_plot(store: ReadableStore, rows: NDArray[np.int64]) -> str:
    groups = {"test": _margins(store, "test", rows).ravel()}
    caption = "Correct-class logit minus the largest other logit; below 0 the model is wrong."
    if "train_margins" in store.arrays:
        margins, masks = _margins(store, "train", rows), store.array("train_masks")
        inside = np.stack([masks[row, :: _step(store.n_train)] for row in rows])
        groups = {"trained on": margins[inside], "left out": margins[~inside], **groups}
        caption += (
            " Training examples that a model was trained on, those that its mask left out, and test examples: the last "
            "two agree where training and test examples are alike."
        )
    groups = {name: values for name, values in groups.items() if len(values)}
    low, high = np.quantile(np.concatenate(list(groups.values())), (_TAIL, 1 - _TAIL))
    edges = np.linspace(low, max(high, low + 1e-3), 49)
    svg = plots.outlines("margins", groups, edges, "margin", "margins")
    n = f"n = {sum(map(len, groups.values())):,} in {counted(len(rows), 'model')}"
    return html.plot("Margins", n, svg, f"{caption} {2 * _TAIL:.1%} lie beyond the ends.")


def _column_sums(subject: Subject) -> str:
    """How often each training example was in a mask, against what independent masks would give."""
    from scipy.special import ndtr

    store, (counts, rows) = subject.store, _counts(subject)
    share = store.setting.alpha
    if store.setting.mask == "exact":
        share = round(share * store.n_train) / store.n_train
    mean = len(rows) * share
    deviation = float(np.sqrt(_independent(store, rows) * share * (1 - share)))
    edges, xlabel = plots.whole_edges(counts), "masks that hold the example"
    caption = (
        f"How many of {counted(len(rows), 'mask')} hold each training example: from {counts.min():,} to "
        f"{counts.max():,}; a share of {share:g} gives {mean:,.0f}."
    )
    expected = None
    if deviation:
        expected = len(counts) * np.diff(ndtr((edges - mean) / deviation))
        of_deviation = deviation / np.sqrt(2 * max(1, len(counts) - 1))
        caption += (
            f" They lie at most {np.abs(counts - mean).max() / deviation:.1f} deviations from it. Their standard "
            f"deviation is {counts.std():.1f}; independent masks (line) give {deviation:.1f} ± {of_deviation:.1f}."
        )
    svg = plots.histogram("columns", counts, xlabel, "training examples", edges=edges, expected=expected)
    return html.plot("Column sums of the masks", f"n = {counted(len(counts), 'training example')}", svg, caption)


def _counts(subject: Subject) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Masks that hold each training example [N_train], and of which rows: those of the fit, which has counted them, or
    some.
    """
    store, fitted = subject.store, subject.fitted
    done = np.flatnonzero(store.completed()[: store.models])
    mean = fitted.example("mean")
    if mean is not None and fitted.report.get("rows", {}).get("used") == len(done):
        return np.round(mean * len(done)).astype(np.int64), done
    rows = done[spread(len(done), max(1, _COUNTED // store.n_train))]
    masks, counts = store.array("train_masks"), np.zeros(store.n_train, np.int64)
    for row in rows:
        counts += masks[row]
    return counts, rows


def _independent(store: ReadableStore, rows: NDArray[np.int64]) -> int:
    """Sum over masks of their squared number of rows: the number of rows, unless `grow` has made rows that share a mask
    estimation rows.
    """
    if len(store.eras) == 1 or store.setting.runs_per_mask == 1:
        return len(rows)
    _, runs = np.unique([store.mask_index(int(row)) for row in rows], return_counts=True)
    return int((runs**2).sum())
