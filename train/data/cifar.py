"""CIFAR-10 from its official python batches."""

import hashlib
import io
import pickle
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodels.train.config import Data
from datamodels.train.data.images import Examples, Split
from datamodels.train.errors import UserError
from datamodels.train.values import expanded

MEAN, STD = (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-py"
# sha256 of the official files, whose md5 sums are those published with the data set.
TRAIN_FILES = {
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
}
TEST_FILES = {"test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831"}

LABELS = {
    "train": "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
    "test": "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
}
"""sha256 of the labels as little-endian int64, in the default order."""


def read(data: Data) -> Examples:
    """Return CIFAR-10 (Krizhevsky 2009): train batches 1 to 5, then the test batch. Raises UserError."""
    folder = folder_of(data)
    return Examples(_read_batches(folder, TRAIN_FILES), _read_batches(folder, TEST_FILES), CLASSES, str(folder))


def classes() -> tuple[str, ...]:
    return CLASSES


def stem(data: Data) -> str:
    return "cifar"


def refuse(data: Data, name: str, split: Split) -> str | None:
    """Return what a .beton file lacks to be CIFAR-10's split `name`; None where it lacks nothing."""
    if split.images.shape[1:] != (32, 32, 3):
        return f"images of {split.images.shape[2]} x {split.images.shape[1]} pixels, expected 32 x 32"
    if hashlib.sha256(split.labels.astype("<i8").tobytes()).hexdigest() != LABELS[name]:
        return f"its {len(split.labels)} labels are not CIFAR-10's {name} labels in the default order"
    return None


def folder_of(data: Data) -> Path:
    """Return the folder of the python batches: data.root/cifar-10-batches-py, or data.root. Raises UserError."""
    root = expanded(data.root, "data.root")
    names = [*TRAIN_FILES, *TEST_FILES]
    for folder in (root / FOLDER, root):
        if (folder / names[0]).exists():
            missing = [name for name in names if not (folder / name).exists()]
            if missing:
                raise UserError(f"{folder / missing[0]} is missing: CIFAR-10 needs {', '.join(names)}")
            return folder
    raise UserError(
        f"data.root is {data.root!r}: no {FOLDER} folder there; `datamodels data CONFIG --data.root {data.root}` "
        "downloads it, or unpack cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html there"
    )


def fetch(data: Data) -> None:
    """Download the official batches if they are missing. Raises UserError where there is no network."""
    try:
        folder_of(data)
    except UserError as missing:
        from fmow import torchvision

        root = expanded(data.root, "data.root")
        existed = root.exists()
        try:
            root.mkdir(parents=True, exist_ok=True)
            torchvision().datasets.CIFAR10(str(root), download=True)
        except (OSError, RuntimeError) as error:
            if not existed:
                shutil.rmtree(root, ignore_errors=True)
            raise UserError(f"{missing}; the download failed ({error})") from None


def _read_batches(folder: Path, files: dict[str, str]) -> Split:
    batches = [_read_batch(folder / name, digest) for name, digest in files.items()]
    pixels = np.concatenate([batch[b"data"] for batch in batches])
    labels = np.concatenate([batch[b"labels"] for batch in batches]).astype(np.int64)
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Split(images, labels)


def _read_batch(path: Path, expected: str) -> dict[bytes, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise UserError(f"{path} is damaged or not the official file: sha256 {found}, expected {expected}")
    return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and plain containers, and nothing else."""

    _ALLOWED: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise UserError(f"a CIFAR-10 batch contains {module}.{name}, expected only numpy arrays") from None
