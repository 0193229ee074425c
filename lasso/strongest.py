"""The strongest weights of each target, as columns of a table."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = {"target": "int32", "sign": "int8", "rank": "int32", "train_index": "int32", "weight": "float32"}
"""Names and types. `sign` is 1 for training examples that raise the target's margin and -1 for those that lower it;
`rank` counts from 1, the strongest of its sign."""


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
