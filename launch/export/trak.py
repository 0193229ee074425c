"""The files that TRAK's own tests evaluate scores with (MadryLab/trak, tests/utils.py): masks and margins.

mask.npy         bool [S, N]      which training examples each model saw
val_margins.npy  float32 [S, T]   each model's margins, the mean over the models of one mask
"""

from pathlib import Path
from typing import Any

import numpy as np

from datamodels.lasso import Progress, target_count
from datamodels.launch.export.folder import write_npy
from datamodels.launch.export.rows import Rows, Subsets
from datamodels.train.store import BaseStore


def write(
    store: BaseStore, folder: Path, progress: Progress, *, split: str = "test", rows: Rows = None, margin: str = "store"
) -> dict[str, Any]:
    """Raises UserError if rows or logits are missing, WorkError for damaged rows."""
    subsets = Subsets(store, rows, progress)
    margins = subsets.margins(split, margin)
    write_npy(folder / "mask.npy", (subsets.count, store.n_features), np.bool_, subsets.masks())
    write_npy(folder / "val_margins.npy", (subsets.count, target_count(store, split)), np.float32, margins)
    return {"masks": subsets.count, "rows": subsets.rows.tolist()}
