"""TRAK's margin from stored logits: the correct class's logit minus the log-sum-exp of the others.

This is the log-odds of the correct class (Park et al., "TRAK", ICML 2023, section 3.3); stored margins take the
largest of the other logits in place of their log-sum-exp. Shape letters: R rows, T targets, C classes.
"""

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import read_rows
from datamodels.train import UserError, WorkError
from datamodels.train.store import BaseStore

_ROUNDING = 4.5 * 2**-11
"""Largest difference of a margin of float16 logits from the stored one, as a share of the largest logit: half a unit of
the last place for either logit and for the margin, and some room."""
_MOST_ROWS = 64
"""Rows to read until every target has one label."""


def labels_of(store: BaseStore, split: str) -> NDArray[np.int64]:
    """The class of each target, [T]: the one whose margin, computed from the stored logits, is the stored margin.

    So no data set is needed, and logits that do not belong to the margins are noticed. Raises UserError if the store
    has no logits of the split, WorkError if a target fits no class or several, or for damaged rows.
    """
    name = f"{split}_logits"
    if name not in store.arrays:
        raise UserError(
            f"{store.layout.array(name)} does not exist, expected logits for --margin trak: they are kept where "
            f"outputs.{name} is true from the start"
        )
    distance = largest = np.float32(0)
    for row in np.flatnonzero(store.completed())[:_MOST_ROWS, None]:
        logits_TC = read_rows(store, name, row)[0].astype(np.float32)
        margins_T = read_rows(store, f"{split}_margins", row)[0].astype(np.float32)
        second, first = np.partition(logits_TC, -2, axis=1)[:, -2:].T[..., None]
        margin_of_each_TC = logits_TC - np.where(logits_TC == first, second, first)
        distance = np.maximum(distance, np.abs(margin_of_each_TC - margins_T[:, None]))
        largest = np.maximum(largest, np.abs(logits_TC).max(axis=1))
        fits = distance <= _ROUNDING * largest[:, None]
        if (fits.sum(axis=1) == 1).all():
            return fits.argmax(axis=1)
    target = int(np.flatnonzero(fits.sum(axis=1) != 1)[0])
    raise WorkError(
        f"target {target} of {store.layout.array(name)} has {fits[target].sum()} classes whose margins are those of "
        f"{store.layout.array(f'{split}_margins')}, expected one"
    )


def trak_margins(
    store: BaseStore, split: str, rows: NDArray[np.int64], labels_T: NDArray[np.int64]
) -> NDArray[np.float64]:
    """TRAK's margins [R, T] of rows in ascending order. Raises WorkError for damaged rows."""
    from scipy.special import logsumexp

    name = f"{split}_logits"
    logits_RTC = read_rows(store, name, rows).astype(np.float64)
    index = labels_T[None, :, None]
    correct = np.take_along_axis(logits_RTC, index, axis=2)[..., 0]
    np.put_along_axis(logits_RTC, index, -np.inf, axis=2)
    margins: NDArray[np.float64] = correct - logsumexp(logits_RTC, axis=2)
    if not np.isfinite(margins).all():
        raise WorkError(f"{store.layout.array(name)}: rows {rows[0]} to {rows[-1]} hold infinite margins")
    return margins
