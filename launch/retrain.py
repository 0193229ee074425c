"""Training completed rows again, to see that they come out the same."""

from typing import Any

import numpy as np

from datamodels.train.store import RowFailure, RowResult, Store

MIN_CORRELATION = 0.8
"""Across devices rounding differs and training amplifies it: rows count as close where their masks are equal and their
test margins correlate at least this much over the test examples."""


def retrain(store: Store, count: int, leave_out: set[int]) -> dict[str, Any]:
    """Train `count` random completed rows again, leaving some out; returns row numbers by outcome.

    `equal` and `different`: rows whose recorded environment is this one, compared byte for byte (and rows of another
    environment that are not even close); `close`: rows of another environment within the tolerance.
    """
    from datamodels.train.trainer import Trainer, environment, pick_device

    device = pick_device(store.setting.recipe)
    trainer = Trainer(store.setting, store.dataset(), device, store.eras)
    here = environment(store.setting.recipe, device)
    outcome: dict[str, Any] = {"equal": [], "different": [], "close": [], "min_correlation": MIN_CORRELATION}
    done = [row for row in np.flatnonzero(store.completed()).tolist() if row not in leave_out]
    for row in sorted(np.random.default_rng().choice(done, min(count, len(done)), replace=False).tolist()):
        again = {result.row: result for result in trainer(row // store.group)}[row]
        made = store.states.readers[store.states.journal[row]].provenance
        kind = "equal" if all(made.get(key) == value for key, value in here.items()) else "close"
        if kind == "equal" or not isinstance(again, RowResult):
            same = has_stored_bytes(store, again)
        else:
            stored, new = store.read("test_margins", row, row + 1)[0], again.arrays["test_margins"]
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
