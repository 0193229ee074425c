"""The arguments of quanda's LinearDatamodelingMetric (quanda 0.5.0), each row a subset with a model of its own.

subset_ids.json           the training examples that each row's model saw, a list of lists (JSON is YAML too)
network.py, network.json, checkpoints/row_R.pt      with --checkpoints: see launch/export/checkpoints.py
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.lasso import Progress, blocks, read_masks
from datamodels.launch.export.checkpoints import write_checkpoints
from datamodels.launch.export.rows import Rows, choose
from datamodels.train import UserError
from datamodels.train.store import BaseStore


def write(
    store: BaseStore, folder: Path, progress: Progress, *, rows: Rows = None, checkpoints: Rows = None
) -> dict[str, Any]:
    """Raises UserError if rows or what their training needs are missing, WorkError for damaged rows."""
    if checkpoints and rows:
        raise UserError("--checkpoints names the rows already, expected no --rows with it")
    chosen = choose(store, checkpoints or rows)
    with open(folder / "subset_ids.json", "x", encoding="utf-8") as file:
        separator = "["
        for block in blocks(store, chosen):
            for mask in read_masks(store, block):
                file.write(f"{separator}\n{json.dumps(np.flatnonzero(mask).tolist())}")
                separator = ","
        file.write("\n]\n")
    about: dict[str, Any] = {"rows": chosen.tolist()}
    if checkpoints:
        about["checkpoints"] = write_checkpoints(store, chosen, folder, progress)
    return about
