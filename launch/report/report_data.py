"""What a report is about, gathered before anything is written: the sections only tell it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Curve, Evaluation, Progress
from datamodels.lasso.evaluation import EvaluationRows, Tile, evaluate
from datamodels.launch.lds_curve import growth_of
from datamodels.launch.report.weights import Fitted, Survey, survey
from datamodels.train import UserError
from datamodels.train.data import Dataset, Split
from datamodels.train.store import ReadableStore

SHOWN = 10
"""Targets shown with their training images."""
_PLOTTED = 40
"""Targets whose predictions are plotted."""


@dataclass(frozen=True)
class Subject:
    store: ReadableStore
    split: str
    dataset: Dataset | None
    """With the images and labels; None where they are not at hand."""
    fitted: Fitted
    quality: Evaluation | None
    """On the fitted targets; None where there are too few evaluation rows."""
    unjudged: str
    """Why there is no quality."""
    growth: Curve | str
    """LDS against the number of models, or why it is not known."""
    plotted: NDArray[np.int64]
    """Places among the fitted targets of those whose predictions are plotted; `found.columns` begins with them."""
    shown: NDArray[np.int64]
    """Places of those shown with their training images; `found.columns` goes on with them."""
    found: Survey
    price: float | None
    """Of an hour of a GPU or of a CPU core."""

    @property
    def kind(self) -> str:
        """What the targets are, for people."""
        return "training" if self.split == "train" else "test"

    @property
    def targets(self) -> Split:
        """The targets' images and labels; only where there is a data set."""
        assert self.dataset is not None
        return self.dataset.train if self.split == "train" else self.dataset.test


def gather(
    store: ReadableStore,
    split: str,
    dataset: Dataset | None,
    quality: Evaluation | None,
    progress: Progress,
    price: float | None,
) -> Subject:
    """Raises UserError, WorkError. quality: what `evaluate` has found, where that is known already."""
    fitted = Fitted(store, split)
    unjudged = ""
    if quality is None:
        quality, unjudged = _judge(store, split, fitted, progress)
    plotted, shown = (spread(len(fitted.targets), count) for count in (_PLOTTED, SHOWN))
    found = survey(fitted, np.concatenate([plotted, shown]), split == "train", progress)
    growth = growth_of(store, split, progress) if quality else ""
    return Subject(store, split, dataset, fitted, quality, unjudged, growth, plotted, shown, found, price)


def spread(total: int, count: int) -> NDArray[np.int64]:
    """Some of `total` places, evenly spaced."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


def _judge(store: ReadableStore, split: str, fitted: Fitted, progress: Progress) -> tuple[Evaluation | None, str]:
    """The quality of what is fitted, or why it is not known. Raises WorkError for damaged rows."""
    if not store.eval_models:
        return None, "The setting has no evaluation models (eval_models is 0), so nothing here was held out."
    try:
        if fitted.whole:
            return evaluate(store, split=split, progress=progress), ""
        rows = EvaluationRows(store, split, progress)
    except UserError as error:
        return None, f"Not evaluated: {error}."
    return rows.evaluate(_tiles(fitted, rows.width)), ""


def _tiles(fitted: Fitted, width: int) -> Iterator[Tile]:
    """The fitted targets and their weights, `width` at a time."""
    for part in fitted.parts:
        for start in range(part.first, part.last, width):
            targets = np.arange(start, min(start + width, part.last))
            yield targets, *part.datamodels.columns(targets - part.first + part.skip)
