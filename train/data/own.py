"""A user's own data set: four arrays, as .npy files in a folder or from a function of a Python file."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Data
from datamodels.train.data.images import Examples, Images, LazyImages, Split, chunks, nbytes
from datamodels.train.errors import UserError
from datamodels.train.npy_file import mapped
from datamodels.train.user_code import function_of, telling
from datamodels.train.values import expanded

NAMES = ("train_images", "train_labels", "test_images", "test_labels")
FILES = [f"{name}.npy" for name in NAMES]
CLASSES = "classes.txt"
MAPPED_BYTES = 1 << 28
"""Images of this size stay in their file, and are read through the system's cache, which all workers share."""


class ChannelsFirst(LazyImages):
    """The images of an array [N, channels, height, width] in a file."""

    def __init__(self, array: NDArray, called: str) -> None:
        n, channels, height, width = array.shape
        super().__init__((n, height, width, channels), array.dtype)
        self.array, self.called = array, called

    def read_into(self, position: int, out: NDArray) -> None:
        out[:] = self.array[position].transpose(1, 2, 0)

    def stamp(self) -> str:
        return self.called


def missing(data: Data) -> str | None:
    """Return the first of the four files that is not in data.root; None where all are, or a Python file is named."""
    if data.python is not None:
        return None
    folder = expanded(data.root, "data.root")
    return next((str(folder / name) for name in FILES if not (folder / name).exists()), None)


def read(data: Data) -> Examples:
    """Return the checked data set. Raises UserError naming the array that is not as it should be."""
    folder = expanded(data.root, "data.root")
    if data.python is not None:
        arrays, classes = _from_function(data.python)
    else:
        arrays = {name: mapped(folder / f"{name}.npy") for name in NAMES}
        classes = _class_names(folder / CLASSES)
    called = {name: place(data, name) for name in NAMES}
    splits, first = {}, []
    for name in ("train", "test"):
        images, labels = f"{name}_images", f"{name}_labels"
        _check_images(arrays[images], called[images])
        layout = _layout(arrays[images].shape, data.layout, called[images])
        if (data.layout, layout) == ("auto", "NCHW"):
            first.append(called[images])
        split = Split(_images(arrays[images], layout, called[images]), _labels(arrays[labels], called[labels]))
        if len(split.labels) != len(split.images):
            raise UserError(
                f"{called[labels]} holds {len(split.labels)} labels, but {called[images]} {len(split.images)} images"
            )
        splits[name] = split
    train, test = splits["train"], splits["test"]
    found, expected = (f"{each.images.dtype} images {list(each.images.shape[1:])}" for each in (test, train))
    if found != expected:
        raise UserError(f"{called['test_images']} holds {found}, expected {expected} as in {called['train_images']}")
    if classes is None:
        classes = _numbers(np.union1d(train.labels, test.labels), called["train_labels"])
    if len(classes) < 2:
        raise UserError(f"{called['train_labels']} has labels of {len(classes)} class, expected at least 2")
    for name, split in splits.items():
        if split.labels.max() >= len(classes):
            raise UserError(
                f"{called[f'{name}_labels']} has the label {split.labels.max()} at {split.labels.argmax()}, expected 0 "
                f"to {len(classes) - 1} for the {len(classes)} class names"
            )
    height, width, channels = train.images.shape[1:]
    size = f"[N, channels, height, width], {channels} of {height} x {width}"
    notice = f"{' and '.join(first)}: taken as {size} (data.layout: NCHW)" if first else None
    return Examples(train, test, classes, data.python or data.root, notice)


def statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of images [N, H, W, C], in their units.

    A constant channel has deviation 1. Of integers, all is in whole numbers up to the last division and root, so that
    the result is the same on every machine; of float32, differences from the first pixel are summed in float64.
    """
    n, channels = math.prod(images.shape[:3]), range(images.shape[3])
    floats = images.dtype == np.float32
    origin = images[:1][0, 0, 0] * np.float64(floats)
    wide, squared = (np.float64, np.float64) if floats else (np.int64, f"u{2 * images.dtype.itemsize}")
    totals, squares = [0 for _ in channels], [0 for _ in channels]
    for chunk in chunks(images):
        values = chunk - origin if floats else chunk
        sums = values.sum((0, 1, 2), dtype=wide).tolist()
        square_sums = np.square(values, dtype=squared).sum((0, 1, 2), dtype=wide).tolist()
        for channel in channels:
            totals[channel] += sums[channel]
            squares[channel] += square_sums[channel]
    variances = [max(0.0, (n * square - total**2) / n**2) for total, square in zip(totals, squares, strict=True)]
    means = tuple(total / n + start for total, start in zip(totals, origin.tolist(), strict=True))
    return means, tuple(math.sqrt(variance) or 1.0 for variance in variances)


def refuse_not_finite(images: Images, called: str) -> None:
    """Raises UserError naming the first image with a value that is not finite."""
    first = 0
    for chunk in chunks(images) if images.dtype == np.float32 else ():
        bad = np.flatnonzero(~np.isfinite(chunk).all((1, 2, 3)))
        if len(bad):
            raise UserError(f"{called}: image {first + bad[0]} has a value that is not finite, expected none")
        first += len(chunk)


def place(data: Data, name: str) -> str:
    """Return where one of the arrays of NAMES is read from, for people."""
    return f"{data.python}: {name}" if data.python else str(expanded(data.root, "data.root") / f"{name}.npy")


def _from_function(path: str) -> tuple[dict[str, NDArray], tuple[str, ...] | None]:
    """Return what `dataset()` in a user's Python file returns: the arrays of NAMES, and `classes` if it has them."""
    found = function_of(path, "data.python", "dataset")()
    if not isinstance(found, dict) or not set(NAMES) <= found.keys() <= {*NAMES, "classes"}:
        keys = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise UserError(f"{path}: dataset() returns {keys}, expected a dictionary of {', '.join(NAMES)} (and classes)")
    with telling(path):
        arrays = {name: np.ascontiguousarray(found[name]) for name in NAMES}
        return arrays, tuple(map(str, found["classes"])) if "classes" in found else None


def _class_names(path: Path) -> tuple[str, ...] | None:
    """Return the lines of a file, without blank ones at its end; None where there is no file. Raises UserError."""
    try:
        names = path.read_text("utf-8-sig").rstrip().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise UserError(f"{path} has no name in line {number}, expected one class name a line")
    return tuple(names)


def _numbers(used: NDArray[np.int64], labels: str) -> tuple[str, ...]:
    """Return the numbers 0 to the largest label as class names. Raises UserError where one of them is no label."""
    count = int(used[-1]) + 1
    if len(used) < count:
        unused = next(number for number, found in enumerate(used) if number != found)
        raise UserError(
            f"{labels} has labels up to {count - 1}, but none is {unused}: expected labels from 0 on, or a {CLASSES} "
            "with all class names"
        )
    return tuple(map(str, range(count)))


def _check_images(array: NDArray, called: str) -> None:
    """Raises UserError unless an array can hold images."""
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise UserError(
            f"{called} holds {array.dtype} {list(array.shape)}, expected uint8, uint16 or float32: "
            "images.astype(np.float32), or np.uint8 or np.uint16 for whole numbers that fit there"
        )
    if array.ndim not in (3, 4) or 0 in array.shape or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else " in Fortran's order"
        raise UserError(
            f"{called} holds {array.dtype} {list(array.shape)}{order}, expected [N, height, width], "
            "[N, height, width, channels] or [N, channels, height, width] in C's order (np.ascontiguousarray)"
        )


def _layout(shape: tuple[int, ...], stated: str, called: str) -> str:
    """Return the layout of images of this shape: as stated, or NHWC or NCHW if only one can be. Raises UserError."""
    if stated != "auto" or len(shape) == 3:
        return stated
    _, second, third, last = shape
    first_can_be = second in (1, 3, 4) and min(third, last) >= second
    last_can_be = last in (1, 3, 4) or last < min(second, third)
    if first_can_be == last_can_be:
        raise UserError(
            f"{called} holds images {list(shape[1:])}, which may be {third} x {last} pixels with {second} channels "
            f"first or {second} x {third} with {last} last: expected data.layout to be NCHW or NHWC"
        )
    return "NCHW" if first_can_be else "NHWC"


def _images(array: NDArray, layout: str, called: str) -> Images:
    """Return images [N, height, width, channels]: large ones in their file, others in memory."""
    in_file = nbytes(array) >= MAPPED_BYTES and array.flags.writeable
    if array.ndim == 3:
        array = array[..., None]
    elif layout == "NCHW":
        return ChannelsFirst(array, called) if in_file else np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    return array if in_file else np.array(array)


def _labels(array: NDArray, called: str) -> NDArray[np.int64]:
    """Return labels [N]. Raises UserError."""
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
        raise UserError(f"{called} holds {array.dtype} {list(array.shape)}, expected integers [N]")
    if len(array) and (array.min() < 0 or array.max() >= 2**31):
        wrong = array.argmin() if array.min() < 0 else array.argmax()
        raise UserError(f"{called} has the label {array[wrong]} at {wrong}, expected labels from 0 on")
    return array.astype(np.int64)
