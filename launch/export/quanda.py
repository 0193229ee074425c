"""What quanda's LinearDatamodelingMetric takes (quanda 0.5.0), each row a subset with a model of its own.

subset_ids.json           the training examples that each row's model saw, a list of lists (JSON is YAML too)
network.py, network.json, checkpoints/row_R.pt      with --checkpoints: see launch/export/checkpoints.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import blocks, read_masks
from datamodels.launch.export.checkpoints import write_checkpoints
from datamodels.launch.export.job import Job
from datamodels.train import UserError
from datamodels.train.store import ReadableStore as Store


def write(job: Job, folder: Path) -> dict[str, Any]:
    """Raises UserError where rows or what their training needs are not there, WorkError for damaged rows."""
    again = job.options.checkpoints
    if again and job.options.rows:
        raise UserError("--checkpoints names the rows already, expected no --rows beside it")
    rows = job.rows(again or job.options.rows)
    with open(folder / "subset_ids.json", "x") as file:
        lists = (json.dumps(np.flatnonzero(mask).tolist()) for mask in _masks(job.store, rows))
        file.write("[")
        for number, text in enumerate(lists):
            file.write(f"{',' if number else ''}\n{text}")
        file.write("\n]\n")
    found: dict[str, Any] = {"rows": rows.tolist()}
    if again:
        found["checkpoints"] = write_checkpoints(job.store, rows, folder, job.progress)
    return found


def _masks(store: Store, rows: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
    for block in blocks(store, rows):
        yield from read_masks(store, block)
