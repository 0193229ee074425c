"""Weights as a SciPy sparse matrix, without those that are 0 or small.

weight.npz  float32 CSC [N, T] in mask units, as scipy.sparse.load_npz reads it
bias.npy    float32 [T]
"""

import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Progress
from datamodels.launch.export.folder import write_array, write_npy
from datamodels.launch.export.weights import Weights
from datamodels.train import UserError
from datamodels.train.store import BaseStore

_COPY_BYTES = 2**20


def write(
    store: BaseStore, folder: Path, progress: Progress, *, split: str = "test", threshold: float = 0.0
) -> dict[str, Any]:
    """Write the weights whose size is above the threshold, in mask units, in one pass and in constant memory.

    Raises UserError if there are no datamodels.
    """
    if not 0 <= threshold < np.inf:
        raise UserError(f"--threshold is {threshold}, expected a number of at least 0, in mask units")
    weights = Weights(store, split, progress)
    n_train, targets = weights.shape
    ends, bias = np.zeros(targets + 1, np.int64), np.zeros(targets, np.float32)
    with tempfile.TemporaryFile(dir=folder) as values, tempfile.TemporaryFile(dir=folder) as examples:
        for start, weight, offset in weights.tiles():
            stop = start + len(offset)
            kept = np.abs(weight.T) > threshold
            values.write(weight.T[kept].data)
            examples.write(np.nonzero(kept)[1].astype(np.int32).data)
            ends[start + 1 : stop + 1] = kept.sum(axis=1)
            bias[start:stop] = offset
        ends = np.cumsum(ends)
        count = int(ends[-1])

        index = np.int32 if count < 2**31 else np.int64  # SciPy wants both index arrays alike
        with zipfile.ZipFile(folder / "weight.npz", "x") as archive:
            _add(archive, "data", count, np.float32, _blocks(values, np.float32))
            _add(archive, "indices", count, index, _blocks(examples, np.int32))
            _add(archive, "indptr", targets + 1, index, [ends])
            for name, value in {"format": b"csc", "shape": (n_train, targets), "_is_array": True}.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.array(value), allow_pickle=False)
    write_npy(folder / "bias.npy", (targets,), np.float32, [bias])
    return {"nonzero": count, "share": round(count / (n_train * targets), 6)}


def _blocks(file: BinaryIO, dtype: type[np.generic]) -> Iterator[NDArray[Any]]:
    """Yield the values in a file, some at a time."""
    file.seek(0)
    while block := file.read(_COPY_BYTES):
        yield np.frombuffer(block, dtype)


def _add(
    archive: zipfile.ZipFile, name: str, count: int, dtype: type[np.generic], blocks: Iterable[NDArray[Any]]
) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        write_array(member, (count,), dtype, blocks)
