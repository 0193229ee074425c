"""The strongest attributions of each target, as an Arrow table in a Parquet file.

    attributions.parquet  columns target int32, sign int8, rank int32, train_index int32, weight float32

`sign` is 1 for training examples that raise the target's margin and -1 for those that lower it; `rank` counts from 1,
the strongest of its sign. Rows are sorted by target, sign (1 first) and rank; weights of 0 are left out.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.export.job import Job
from datamodels.train import UserError

if TYPE_CHECKING:
    import pyarrow


def write(job: Job, folder: Path) -> dict[str, Any]:
    """Raises UserError where there are no datamodels or PyArrow is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("--to parquet needs PyArrow: run `pip install pyarrow`") from None
    k = job.options.k
    if k < 1:
        raise UserError(f"--k is {k}, expected at least 1")
    weights, rows = job.weights(), 0
    with pyarrow.parquet.ParquetWriter(folder / "attributions.parquet", _schema()) as writer:
        for start, weight, _ in weights.tiles():
            columns = _strongest(weight, k)
            columns["target"] += start
            table = pyarrow.table(columns, schema=_schema())
            writer.write_table(table)
            rows += table.num_rows
    return {"rows_of_table": rows}


def _schema() -> "pyarrow.Schema":
    import pyarrow

    types = {"target": "int32", "sign": "int8", "rank": "int32", "train_index": "int32", "weight": "float32"}
    return pyarrow.schema([(name, pyarrow.type_for_alias(alias)) for name, alias in types.items()])


def _strongest(weight: NDArray[np.float32], k: int) -> dict[str, NDArray[Any]]:
    """The table's columns for weight [N, t]; targets count from 0."""
    n_train, targets = weight.shape
    k = min(k, n_train)
    index = np.stack([_first(-weight, k), _first(weight, k)])  # [2, k, t]
    values = np.take_along_axis(np.broadcast_to(weight, (2, n_train, targets)), index, axis=1)
    sign = np.array([1, -1])[:, None, None]
    kept = (values * sign > 0).transpose(2, 0, 1)

    def column(values: NDArray[Any], dtype: str) -> NDArray[Any]:
        return np.broadcast_to(values, (2, k, targets)).transpose(2, 0, 1)[kept].astype(dtype)

    return {
        "target": column(np.arange(targets), "int32"),
        "sign": column(sign, "int8"),
        "rank": column(np.arange(1, k + 1)[:, None], "int32"),
        "train_index": column(index, "int32"),
        "weight": column(values, "float32"),
    }


def _first(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Places [k, t] of the k smallest values of each column, ascending; equal values by their place."""
    places = np.sort(np.argpartition(values, k - 1, axis=0)[:k], axis=0)
    order = np.argsort(np.take_along_axis(values, places, axis=0), axis=0, kind="stable")
    return np.take_along_axis(places, order, axis=0)
