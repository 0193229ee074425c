"""TRAK's margin from stored logits: the correct class's logit minus the log-sum-exp of the others.

This is the log-odds of the correct class (Park et al., "TRAK", ICML 2023, section 3.3); stored margins take the
largest of the other logits in place of their log-sum-exp. Shape letters: T targets, C classes.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from datamodels.lasso import read_rows
from datamodels.train import UserError, WorkError
from datamodels.train.store import ReadableStore as Store

_ROUNDING = 4.5 * 2**-11
"""How far a margin of float16 logits may be from the stored one, as a share of the largest logit: half a unit of the
last place for either logit and for the margin, and some room."""
_MOST_ROWS = 64
"""Rows that are read to tell the labels."""


class TrakMargins:
    """TRAK's margins of a split's targets, read from a store that keeps the logits."""

    def __init__(self, store: Store, split: str) -> None:
        """Raises UserError where the store has no logits of the split, WorkError for damaged rows."""
        self.store, self.name = store, f"{split}_logits"
        if self.name not in store.arrays:
            raise UserError(
                f"{store.layout.array(self.name)} does not exist, expected logits for --margin trak: they are kept "
                f"where outputs.{self.name} is true from the start"
            )
        self.width = int(np.prod(store.arrays[self.name].shape[1:]))
        """Values of a row."""
        self.labels = _labels(store, split)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Margins [rows, T] of rows in ascending order."""
        logits_RTC = read_rows(self.store, self.name, rows).astype(np.float64)
        index = self.labels[None, :, None]
        correct = np.take_along_axis(logits_RTC, index, axis=2)[..., 0]
        np.put_along_axis(logits_RTC, index, -np.inf, axis=2)
        margins: NDArray[np.float64] = correct - logsumexp(logits_RTC, axis=2)
        if not np.isfinite(margins).all():
            raise WorkError(f"{self.store.layout.array(self.name)}: rows {rows[0]} to {rows[-1]} hold infinite margins")
        return margins


def _labels(store: Store, split: str) -> NDArray[np.int64]:
    """Each target's class [T]: the one whose margin, from the stored logits, is the stored margin.

    So no data set is needed, and logits that do not belong to the margins are noticed. Raises WorkError.
    """
    distance = largest = np.float32(0)
    for logits_TC, margins_T in _rows(store, split):
        distance = np.maximum(distance, np.abs(_margins(logits_TC) - margins_T[:, None]))
        largest = np.maximum(largest, np.abs(logits_TC).max(axis=1))
        fits = distance <= _ROUNDING * largest[:, None]
        if (fits.sum(axis=1) == 1).all():
            return fits.argmax(axis=1)
    target = int(np.flatnonzero(fits.sum(axis=1) != 1)[0])
    raise WorkError(
        f"target {target} of {store.layout.array(f'{split}_logits')} has {fits[target].sum()} classes whose margins "
        f"are those of {store.layout.array(f'{split}_margins')}, expected one"
    )


def _rows(store: Store, split: str) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Logits [T, C] and margins [T] of some completed rows."""
    for row in np.flatnonzero(store.completed())[:_MOST_ROWS, None]:
        logits = read_rows(store, f"{split}_logits", row)[0].astype(np.float32)
        yield logits, read_rows(store, f"{split}_margins", row)[0].astype(np.float32)


def _margins(logits_TC: NDArray[np.float32]) -> NDArray[np.float32]:
    """The margin [T, C] that each class would have if it were the correct one."""
    top = np.argmax(logits_TC, axis=1)[:, None]
    first = np.take_along_axis(logits_TC, top, axis=1)
    others = np.broadcast_to(first, logits_TC.shape).copy()
    second = np.partition(logits_TC, -2, axis=1)[:, -2:-1]
    np.put_along_axis(others, top, second, axis=1)
    return logits_TC - others
