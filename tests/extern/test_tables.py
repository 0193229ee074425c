"""The sparse matrix and the table as SciPy, PyArrow and pandas of another environment read them."""

import numpy as np
import pyarrow.parquet
import scipy.sparse
import torch


def weight_of(folder) -> np.ndarray:
    return torch.load(folder / "runs/digits_50pct/digits/datamodels/test_50pct.pt", weights_only=True)["weight"].numpy()


def test_scipy_reads_the_weights_above_the_threshold(block, folder) -> None:
    names, weight = block("load_npz"), weight_of(folder)
    assert scipy.sparse.issparse(names["weight"])
    assert np.array_equal(names["weight"].toarray(), np.where(np.abs(weight) > 0.01, weight, 0))
    assert names["strongest"] == weight[:, 7].argmax()


def test_pandas_and_arrow_read_the_strongest_attributions(block, folder, export) -> None:
    table, weight = block("read_parquet")["table"], weight_of(folder)
    helpful = block("read_parquet")["helpful"]
    assert all(weight[index, target] == weight[:, target].max() for target, index in helpful.items())
    read = pyarrow.parquet.read_table(
        export("parquet_test_50pct") / "attributions.parquet", filters=[("target", "=", 7)]
    )
    assert read.num_rows == (table.target == 7).sum()
    assert np.array_equal(weight[read["train_index"], 7], read["weight"])
