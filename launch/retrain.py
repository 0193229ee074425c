"""Training completed rows again, to see that they come out the same."""

from typing import Any

import numpy as np

from datamodels.train.store import Store

MIN_CORRELATION = 0.8
"""Across devices rounding differs and training amplifies it: rows count as close where their masks are equal and their
test margins correlate at least this much over the test examples."""


def retrain(store: Store, count: int, leave_out: set[int]) -> dict[str, Any]:
    """Train `count` random completed rows again.

    `equal` and `different`: rows whose recorded environment is this one, compared byte for byte (and rows of another
    environment that are not even close); `close`: rows of another environment within the tolerance.
    """
    from datamodels.train.store import RowResult
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
        if not isinstance(again, RowResult):
            same = False
        elif kind == "equal":
            same = all(store.read(n, row, row + 1)[0].tobytes() == again.arrays[n].tobytes() for n in store.arrays)
        else:
            stored, new = store.read("test_margins", row, row + 1)[0], again.arrays["test_margins"]
            correlation = np.corrcoef(stored.astype(np.float64), new.astype(np.float64))[0, 1]
            equal_masks = np.array_equal(store.read("train_masks", row, row + 1)[0], again.arrays["train_masks"])
            same = equal_masks and correlation >= MIN_CORRELATION
        outcome[kind if same else "different"].append(row)
    return outcome
