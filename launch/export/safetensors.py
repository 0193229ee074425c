"""Datamodels as a file of the safetensors format, which maps tensors by name and runs no code when it is read.

datamodels.safetensors  weight float32 [N, T] in mask units, bias float32 [T], and lam float32 [T] if it is known
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Progress
from datamodels.launch.export.folder import append
from datamodels.launch.export.weights import Weights
from datamodels.train.store import BaseStore


def write(store: BaseStore, folder: Path, progress: Progress, *, split: str = "test") -> dict[str, Any]:
    """Raises UserError if there are no datamodels."""
    weights = Weights(store, split, progress)
    vectors = {"bias": weights.datamodels.bias, "lam": weights.datamodels.arrays.get("lam")}
    tensors: dict[str, tuple[tuple[int, ...], Iterable[NDArray[Any]]]] = {"weight": (weights.shape, weights.bands())}
    tensors |= {name: (vector.shape, [vector]) for name, vector in vectors.items() if vector is not None}
    about: dict[str, Any] = {"__metadata__": {"dataset": store.setting.dataset, "split": split, "weight_units": "mask"}}
    end = 0
    for name, (shape, _) in tensors.items():
        start, end = end, end + 4 * int(np.prod(shape))
        about[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(about).encode()
    header += b" " * (-len(header) % 8)
    with open(folder / "datamodels.safetensors", "xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for shape, blocks in tensors.values():
            append(file, np.float32, blocks, int(np.prod(shape)))
    return {}
