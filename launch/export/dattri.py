"""The arguments of dattri.metric.lds(score, ground_truth) (dattri 0.3.0), as tensors that torch.load reads.

score.pt         float32 [N, T]                     the datamodels' weights, in mask units
ground_truth.pt  (float32 [S, T], int64 [S, k])     each model's margins, the mean over the models of one mask, and
                                                    which k training examples they saw
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Progress, read_features, storages
from datamodels.launch.export.folder import append
from datamodels.launch.export.rows import Rows, Subsets
from datamodels.launch.export.weights import Weights
from datamodels.train import UserError
from datamodels.train.store import BaseStore

_INSTEAD = "dattri takes subsets of one size; `--to trak` and `--to quanda` take any"


def write(
    store: BaseStore, folder: Path, progress: Progress, *, split: str = "test", rows: Rows = None, margin: str = "store"
) -> dict[str, Any]:
    """Raises UserError if masks differ in size, or if rows, logits or datamodels are missing; WorkError."""
    if store.setting.mask == "bernoulli":
        raise UserError(f"mask is 'bernoulli', expected exact: {_INSTEAD}")
    weights, subsets = Weights(store, split, progress), Subsets(store, rows, progress)
    margins = subsets.margins(split, margin)
    (n_train, targets), count = weights.shape, subsets.count
    size = int(read_features(store, subsets.rows[:1]).sum())
    _write_tensors(folder / "score.pt", ((n_train, targets), np.float32, weights.bands()))
    _write_tensors(
        folder / "ground_truth.pt",
        ((count, targets), np.float32, margins),
        ((count, size), np.int64, _indices(subsets, size)),
    )
    return {"masks": count, "rows": subsets.rows.tolist()}


def _indices(subsets: Subsets, size: int) -> Iterator[NDArray[np.int64]]:
    """The training examples of each mask, [S, size] in blocks of rows."""
    for masks in subsets.masks():
        sizes = np.count_nonzero(masks, axis=1)
        if (sizes != size).any():
            found = f"{min(size, sizes.min())} to {max(size, sizes.max())}"
            raise UserError(f"masks hold {found} training examples: {_INSTEAD}")
        yield np.nonzero(masks)[1].reshape(len(masks), size)


def _write_tensors(path: Path, *tensors: tuple[tuple[int, ...], type[np.generic], Iterator[NDArray[Any]]]) -> None:
    """Write a file that torch.load reads as one tensor, or as a tuple of them, block by block.

    tensors: shape, type, and blocks of rows of each.
    """
    import torch

    kinds = [torch.from_numpy(np.empty(0, dtype)).dtype for _, dtype, _ in tensors]
    empty = [torch.empty(shape, dtype=kind) for (shape, *_), kind in zip(tensors, kinds, strict=True)]  # never touched
    with torch.serialization.skip_data():
        torch.save(tuple(empty) if len(empty) > 1 else empty[0], path)
    with open(path, "r+b") as file:
        for place, (shape, dtype, blocks) in zip(storages(path), tensors, strict=True):
            file.seek(place)
            append(file, dtype, blocks, int(np.prod(shape)))
