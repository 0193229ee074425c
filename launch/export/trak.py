"""The files that TRAK's own tests evaluate scores with (MadryLab/trak, tests/utils.py): masks and margins.

mask.npy         bool [S, N]      which training examples each model saw
val_margins.npy  float32 [S, T]   each model's margins, the mean over the models of one mask
"""

from pathlib import Path
from typing import Any

import numpy as np

from datamodels.lasso import target_count
from datamodels.launch.export.folder import write_npy
from datamodels.launch.export.job import Job


def write(job: Job, folder: Path) -> dict[str, Any]:
    """Raises UserError where rows or logits are not there, WorkError for damaged rows."""
    subsets, targets = job.subsets(), target_count(job.store, job.options.split)
    margins = subsets.margins(job.options.split, job.options.margin)
    write_npy(folder / "mask.npy", (subsets.count, job.store.n_train), np.bool_, subsets.masks())
    write_npy(folder / "val_margins.npy", (subsets.count, targets), np.float32, margins)
    return {"masks": subsets.count, "rows": subsets.rows.tolist()}
