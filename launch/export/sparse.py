"""Weights as a SciPy sparse matrix, without those that are 0 or small.

weight.npz  float32 CSC [N, T] in mask units, as scipy.sparse.load_npz reads it
bias.npy    float32 [T]
"""

import tempfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.export.folder import write_npy
from datamodels.launch.export.job import Job
from datamodels.train import UserError


def write(job: Job, folder: Path) -> dict[str, Any]:
    """One pass over the weights; memory does not grow with them. Raises UserError where there are no datamodels."""
    threshold = job.options.threshold
    if not 0 <= threshold < np.inf:
        raise UserError(f"--threshold is {threshold}, expected a number of at least 0, in mask units")
    weights = job.weights()
    n_train, targets = weights.shape
    ends, bias = np.zeros(targets + 1, np.int64), np.zeros(targets, np.float32)
    with tempfile.TemporaryFile(dir=folder) as values, tempfile.TemporaryFile(dir=folder) as examples:
        for start, weight, offset in weights.tiles():
            columns = slice(start, start + len(offset))
            kept = np.abs(weight.T) > threshold
            values.write(weight.T[kept].data)
            examples.write(np.nonzero(kept)[1].astype(np.int32).data)
            ends[columns.start + 1 : columns.stop + 1] = kept.sum(axis=1)
            bias[columns] = offset
        ends = np.cumsum(ends)
        index = np.int32 if ends[-1] < 2**31 else np.int64  # SciPy wants both index arrays alike
        with zipfile.ZipFile(folder / "weight.npz", "x") as archive:
            _add(archive, "data", np.float32, int(ends[-1]), values)
            _add(archive, "indices", index, int(ends[-1]), examples)
            for name, array in _rest((n_train, targets), ends.astype(index)).items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    write_npy(folder / "bias.npy", (targets,), np.float32, [bias])
    return {"nonzero": int(ends[-1]), "share": round(float(ends[-1]) / (n_train * targets), 6)}


def _rest(shape: tuple[int, int], ends: NDArray[Any]) -> dict[str, Any]:
    """What scipy.sparse.load_npz reads beside the nonzero values and their rows."""
    return {"indptr": ends, "format": np.array(b"csc"), "shape": np.array(shape), "_is_array": np.array(True)}


def _add(archive: zipfile.ZipFile, name: str, dtype: type[np.generic], count: int, source: BinaryIO) -> None:
    """Add an array of `count` values from a file that holds them, 4 bytes each."""
    held = np.float32 if name == "data" else np.int32
    described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (count,)}
    source.seek(0)
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, described)
        while block := source.read(_COPY_BYTES):
            member.write(np.frombuffer(block, held).astype(dtype, copy=False).data)


_COPY_BYTES = 2**20
