"""What one export is asked for."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Progress
from datamodels.launch.export.rows import Subsets, choose
from datamodels.launch.export.weights import Weights
from datamodels.train.store import ReadableStore


@dataclass(frozen=True)
class Options:
    """Options of `datamodels export`; each target takes some of them."""

    split: str = "test"
    rows: tuple[int, int] | None = None
    """Rows [A, B); None: the evaluation rows."""
    margin: str = "store"
    """`store`: correct minus largest other logit; `trak`: correct minus log-sum-exp of the others."""
    checkpoints: tuple[int, int] | None = None
    """Rows [A, B) whose networks are exported too."""
    threshold: float = 0.0
    """Weights of at most this size, in mask units, are left out."""
    k: int = 50
    """Training examples of each sign kept for a target."""


@dataclass(frozen=True)
class Job:
    store: ReadableStore
    options: Options
    progress: Progress

    def rows(self, span: tuple[int, int] | None) -> NDArray[np.int64]:
        return choose(self.store, span)

    def subsets(self) -> Subsets:
        return Subsets(self.store, choose(self.store, self.options.rows), self.progress)

    def weights(self) -> Weights:
        return Weights.of(self.store, self.options.split, self.progress)
