"""The strongest attributions of each target, as an Arrow table in a Parquet file.

    attributions.parquet  columns target int32, sign int8, rank int32, train_index int32, weight float32

`sign` is 1 for training examples that raise the target's margin and -1 for those that lower it; `rank` counts from 1,
the strongest of its sign. Rows are sorted by target, sign (1 first) and rank; weights of 0 are left out.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Progress
from datamodels.launch.export.weights import Weights
from datamodels.train import UserError
from datamodels.train.store import BaseStore

COLUMNS = {"target": "int32", "sign": "int8", "rank": "int32", "train_index": "int32", "weight": "float32"}


def write(store: BaseStore, folder: Path, progress: Progress, *, split: str = "test", k: int = 50) -> dict[str, Any]:
    """Write the k strongest training examples of each sign. Raises UserError without datamodels or PyArrow."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("--to parquet needs PyArrow: run `pip install pyarrow`") from None
    if k < 1:
        raise UserError(f"--k is {k}, expected at least 1")
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(alias)) for name, alias in COLUMNS.items()])
    weights, rows = Weights(store, split, progress), 0
    with pyarrow.parquet.ParquetWriter(folder / "attributions.parquet", schema) as writer:
        for start, weight, _ in weights.tiles():
            columns = strongest(weight, k)
            columns["target"] += start
            table = pyarrow.table(columns, schema=schema)
            writer.write_table(table)
            rows += table.num_rows
    return {"rows_of_table": rows}


def strongest(weight: NDArray[np.float32], k: int) -> dict[str, NDArray[Any]]:
    """The table's columns for weight [N, t], whose targets count from 0. Of equal weights the first example leads."""
    n_train, targets = weight.shape
    k = min(k, n_train)
    index = np.stack([_smallest(-weight, k), _smallest(weight, k)])  # [2, k, t]
    values = np.take_along_axis(np.broadcast_to(weight, (2, n_train, targets)), index, axis=1)
    sign = np.array([1, -1])[:, None, None]
    kept = (values * sign > 0).transpose(2, 0, 1)
    columns = {
        "target": np.arange(targets),
        "sign": sign,
        "rank": np.arange(1, k + 1)[:, None],
        "train_index": index,
        "weight": values,
    }
    return {
        name: np.broadcast_to(column, (2, k, targets)).transpose(2, 0, 1)[kept].astype(COLUMNS[name])
        for name, column in columns.items()
    }


def _smallest(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Places [k, t] of the k smallest values of each column, ascending; equal values by their place."""
    places = np.sort(np.argpartition(values, k - 1, axis=0)[:k], axis=0)
    order = np.argsort(np.take_along_axis(values, places, axis=0), axis=0, kind="stable")
    return np.take_along_axis(places, order, axis=0)
