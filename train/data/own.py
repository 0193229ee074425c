"""A user's own data set: four arrays, as .npy files in a folder or from a function of a Python file."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Data
from datamodels.train.data.images import Images, Split, chunks, nbytes
from datamodels.train.errors import UserError
from datamodels.train.npy_file import mapped
from datamodels.train.user_code import function_of, telling

NAMES = ("train_images", "train_labels", "test_images", "test_labels")
FILES = [f"{name}.npy" for name in NAMES]
CLASSES = "classes.txt"
MAPPED_BYTES = 1 << 28
"""Images of this size stay in their file, and are read through the system's cache, which all workers share."""


@dataclass(frozen=True)
class _Named:
    """An array, and how it is called in errors."""

    array: NDArray
    name: str


def missing(data: Data) -> str | None:
    """The first of the four files that is not in data.root; None where all are, or a Python file is named."""
    if data.python is not None:
        return None
    return next((str(path) for path in map(_folder(data).joinpath, FILES) if not path.exists()), None)


def read(data: Data) -> tuple[tuple[Split, Split], tuple[str, ...]]:
    """Training and test examples and the class names. Raises UserError."""
    if data.python is not None:
        return _from_function(data.python)
    paths = map(_folder(data).joinpath, FILES)
    arrays = {name: _Named(mapped(path), str(path)) for name, path in zip(NAMES, paths, strict=True)}
    return _splits(arrays, _class_names(_folder(data) / CLASSES))


def where(data: Data) -> str:
    return data.root if data.python is None else data.python


def statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images [N, H, W, C], in units of 0..255; a constant channel has
    deviation 1.

    In whole numbers up to the last division and root, so that they are the same on every machine.
    """
    n, channels = nbytes(images) // images.shape[3], range(images.shape[3])
    totals, squares = [0 for _ in channels], [0 for _ in channels]
    for chunk in chunks(images):
        sums = chunk.sum((0, 1, 2), dtype=np.int64).tolist()
        square_sums = np.square(chunk, dtype=np.uint16).sum((0, 1, 2), dtype=np.int64).tolist()
        for channel in channels:
            totals[channel] += sums[channel]
            squares[channel] += square_sums[channel]
    variances = [(n * square - total**2) / n**2 for total, square in zip(totals, squares, strict=True)]
    return tuple(total / n for total in totals), tuple(math.sqrt(variance) or 1.0 for variance in variances)


def _from_function(path: str) -> tuple[tuple[Split, Split], tuple[str, ...]]:
    """What `dataset()` in a user's Python file returns: a dictionary with NAMES, and `classes` if it likes."""
    found = function_of(path, "data.python", "dataset")()
    if not isinstance(found, dict) or not set(NAMES) <= found.keys() <= {*NAMES, "classes"}:
        keys = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise UserError(f"{path}: dataset() returns {keys}, expected a dictionary of {', '.join(NAMES)} (and classes)")
    with telling(path):
        arrays = {name: _Named(np.ascontiguousarray(found[name]), f"{path}: {name}") for name in NAMES}
        names = tuple(map(str, found["classes"])) if "classes" in found else None
    return _splits(arrays, names)


def _folder(data: Data) -> Path:
    return Path(data.root).expanduser()


def _class_names(path: Path) -> tuple[str, ...] | None:
    """The lines of a file, without blank ones at its end; None where there is no file. Raises UserError."""
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    while names and not names[-1].strip():
        names.pop()
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise UserError(f"{path} has no name in line {number}, expected one class name a line")
    return tuple(names)


def _splits(arrays: dict[str, _Named], names: tuple[str, ...] | None) -> tuple[tuple[Split, Split], tuple[str, ...]]:
    """The checked data set. Raises UserError naming the array that is not as it should be."""
    images = {name: _images(arrays[f"{name}_images"]) for name in ("train", "test")}
    labels = {name: _labels(arrays[f"{name}_labels"], arrays[f"{name}_images"]) for name in ("train", "test")}
    if images["train"].shape[1:] != images["test"].shape[1:]:
        raise UserError(
            f"{arrays['test_images'].name} holds images {list(images['test'].shape[1:])}, expected "
            f"{list(images['train'].shape[1:])} as in {arrays['train_images'].name}"
        )
    if names is None:
        count = 1 + max(int(each.max()) for each in labels.values())
        names = tuple(map(str, range(count)))
        if len(used := np.union1d(labels["train"], labels["test"])) < count:
            unused = next(number for number, found in enumerate([*used, count]) if number != found)
            raise UserError(
                f"{arrays['train_labels'].name} has labels up to {count - 1}, but none is {unused}: expected labels "
                f"from 0 on, or a {CLASSES} with all class names"
            )
    if len(names) < 2:
        raise UserError(f"{arrays['train_labels'].name} tells of {len(names)} class, expected at least 2")
    for name, found in labels.items():
        if found.max() >= len(names):
            raise UserError(
                f"{arrays[f'{name}_labels'].name} has the label {found.max()} at {found.argmax()}, expected 0 to "
                f"{len(names) - 1} for the {len(names)} class names"
            )
    return (Split(images["train"], labels["train"]), Split(images["test"], labels["test"])), names


def _images(found: _Named) -> NDArray[np.uint8]:
    """[N, height, width, channels]. Raises UserError."""
    array = found.array
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 0 in array.shape or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else " in Fortran's order"
        raise UserError(
            f"{found.name} holds {array.dtype} {list(array.shape)}{order}, expected uint8 [N, height, width] or "
            "[N, height, width, channels]"
        )
    if array.ndim == 3:
        array = array[..., None]
    return array if nbytes(array) >= MAPPED_BYTES and array.flags.writeable else np.array(array)


def _labels(found: _Named, images: _Named) -> NDArray[np.int64]:
    """[N]. Raises UserError."""
    array = found.array
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
        raise UserError(f"{found.name} holds {array.dtype} {list(array.shape)}, expected integers [N]")
    if len(array) != len(images.array):
        raise UserError(f"{found.name} holds {len(array)} labels, but {images.name} {len(images.array)} images")
    if array.min() < 0 or array.max() >= 2**31:
        wrong = array.argmin() if array.min() < 0 else array.argmax()
        raise UserError(f"{found.name} has the label {array[wrong]} at {wrong}, expected labels from 0 on")
    return array.astype(np.int64)
