"""Training completed rows again, to see that they come out the same."""

from contextlib import closing
from typing import Any

import numpy as np

from datamodels.launch.open_trainer import open_trainer
from datamodels.train.store import RowFailure, RowResult, Store

MIN_CORRELATION = 0.8
"""Across devices rounding differs and training amplifies it: rows count as close where their masks are equal and their
first outputs, the test margins of images, correlate at least this much over the targets."""


def retrain(store: Store, count: int, leave_out: set[int]) -> dict[str, Any]:
    """Train `count` random completed rows again, leaving some out; returns row numbers by outcome.

    `equal` and `different`: rows whose recorded environment is this one, compared byte for byte (and rows of another
    environment that are not even close); `close`: rows of another environment within the tolerance.
    """
    outcome: dict[str, Any] = {"equal": [], "different": [], "close": [], "min_correlation": MIN_CORRELATION}
    done = [row for row in np.flatnonzero(store.completed()).tolist() if row not in leave_out]
    output = list(store.arrays)[1]
    with closing(open_trainer(store)) as trainer:
        here = trainer.environment()
        for row in sorted(np.random.default_rng().choice(done, min(count, len(done)), replace=False).tolist()):
            results = trainer.start(row // store.group, lambda: False).result()
            again = {result.row: result for result in results}[row]
            made = store.states.readers[store.states.journal[row]].provenance
            kind = "equal" if all(made.get(key) == value for key, value in here.items()) else "close"
            if kind == "equal" or not isinstance(again, RowResult):
                same = has_stored_bytes(store, again)
            else:
                stored, new = store.read(output, row, row + 1).ravel(), again.arrays[output].ravel()
                correlation = np.corrcoef(stored.astype(np.float64), new.astype(np.float64))[0, 1]
                equal_masks = np.array_equal(store.read("train_masks", row, row + 1)[0], again.arrays["train_masks"])
                same = equal_masks and correlation >= MIN_CORRELATION
            outcome[kind if same else "different"].append(row)
    return outcome


def has_stored_bytes(store: Store, again: RowResult | RowFailure) -> bool:
    """Whether a row that was trained again has the bytes that are stored."""
    return isinstance(again, RowResult) and all(
        store.read(name, again.row, again.row + 1).tobytes() == again.arrays[name].tobytes() for name in store.arrays
    )
