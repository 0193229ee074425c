"""The strongest attributions of each target, as an Arrow table in a Parquet file.

    attributions.parquet  columns target int32, sign int8, rank int32, train_index int32, weight float32

`sign` is 1 for training examples that raise the target's margin and -1 for those that lower it; `rank` counts from 1,
the strongest of its sign. Rows are sorted by target, sign (1 first) and rank; weights of 0 are left out.
"""

from pathlib import Path
from typing import Any

from datamodels.lasso import COLUMNS, Progress, strongest
from datamodels.launch.export.weights import Weights
from datamodels.train import UserError
from datamodels.train.store import BaseStore


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
