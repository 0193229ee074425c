"""FFCV's .beton files (https://ffcv.io, format version 2): read without FFCV where pixels are raw.

A file holds a header, a description of the fields, one record an example, pages with the pixels, and at its end a table
of where each image lies and how long it is.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.train.data.images import LazyImages, Split
from datamodels.train.errors import UserError

VERSION = 2
HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("table", "<u8")], align=True
)
FIELD = np.dtype([("type", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("at", "<u8")])
RECORDS = {1: np.dtype("<i8"), 2: IMAGE}
"""What a record holds for a field of each type: IntField, RGBImageField."""
TABLE = np.dtype([("sample", "<u8"), ("at", "<u8"), ("size", "<u8")])
JPEG, RAW = 0, 1
LARGE_BYTES = 1 << 15
"""An image of this size is copied by itself."""
PIECE_BYTES = 1 << 19
"""Smaller ones are gathered as many at a time as fit into a core's cache."""


class BetonImages(LazyImages):
    """The images of a .beton file, mapped; JPEGs are decoded by FFCV's own decoder."""

    def __init__(self, path: Path, content: NDArray[np.uint8], records: NDArray, sizes: NDArray[np.int64]) -> None:
        super().__init__((len(records), int(records["height"][0]), int(records["width"][0]), 3))
        self.path = path
        self.content = content
        self.at = records["at"].astype(np.int64)
        self.sizes = sizes
        self.compressed = records["mode"] == JPEG
        self.decode = ffcv_decoder(path) if self.compressed.any() else None
        size = int(np.prod(self.shape[1:]))
        self.windows = np.lib.stride_tricks.as_strided(content, (max(0, len(content) - size + 1), size), (1, 1))
        """[bytes of the file, bytes of an image]: what follows each byte of the file; a raw image is one of them."""

    def read_into(self, position: int, out: NDArray[np.uint8]) -> None:
        self.read_many(np.array([position]), out[None])

    def read_many(self, positions: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        if self.decode is None:
            return self._copy(positions, out)
        source, target = self.content.ctypes.data, out.ctypes.data
        height, width = self.shape[1:3]
        for place, position in enumerate(positions.tolist()):
            if not self.compressed[position]:
                self._copy(positions[place : place + 1], out[place : place + 1])
                continue
            stored = source + int(self.at[position]), int(self.sizes[position])
            if not self.decode(*stored, target + place * self.windows.shape[1], height, width):
                raise UserError(f"{self.path}: image {position} is not a JPEG of {width} x {height} pixels")
        return None

    def _copy(self, positions: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy large images one by one; small ones, for which calls take longer than copies, some at a time."""
        size = self.windows.shape[1]
        if size >= LARGE_BYTES:
            for place, at in enumerate(self.at[positions].tolist()):
                out[place] = self.content[at : at + size].reshape(self.shape[1:])
            return
        step = max(1, PIECE_BYTES // size)
        for start in range(0, len(positions), step):
            piece = self.windows[self.at[positions[start : start + step]]]
            out[start : start + step] = piece.reshape(-1, *self.shape[1:])

    def stamp(self) -> str:
        return str(self.path)


def read(path: Path) -> Split:
    """Return the images and labels of a .beton file with one RGBImageField and one IntField.

    Raises UserError naming the file where it is something else, is cut short, or holds images of different sizes.
    """
    try:
        content = np.memmap(path, np.uint8, "r")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    try:
        records, table = _records(content)
    except (IndexError, ValueError) as error:
        raise UserError(f"{path} is not a .beton file of images and labels, or is cut short ({error})") from None
    image, labels = records
    order = np.argsort(table["at"])
    nearest = order[np.minimum(np.searchsorted(table["at"][order], image["at"]), len(order) - 1)]
    sizes = table["size"][nearest].astype(np.int64)
    _check(path, image, np.where(table["at"][nearest] == image["at"], sizes, -1), len(content))
    return Split(BetonImages(path, content, image, sizes), labels)


def _records(content: NDArray[np.uint8]) -> tuple[tuple[NDArray, NDArray[np.int64]], NDArray]:
    """Return image records and labels, and the table of images. Raises IndexError or ValueError."""
    header = content[: HEADER.itemsize].view(HEADER)[0]
    if header["version"] != VERSION or not 0 < header["samples"] <= len(content):
        raise ValueError(f"version {header['version']}, {header['samples']} samples")
    start = HEADER.itemsize + int(header["fields"]) * FIELD.itemsize
    types = content[HEADER.itemsize : start].view(FIELD)["type"].tolist()
    if sorted(types) != [1, 2]:
        raise ValueError(f"fields of types {types}, expected an RGBImageField (2) and an IntField (1)")
    record = np.dtype([(str(kind), RECORDS[kind]) for kind in types], align=True)
    count = int(header["samples"])
    records = content[start : start + count * record.itemsize].view(record)
    table = content[int(header["table"]) :].view(TABLE)
    if len(records) != count or len(table) != count:
        raise ValueError(f"{len(records)} records and {len(table)} images for {count} examples")
    return (np.array(records["2"]), np.array(records["1"], np.int64)), np.array(table)


def _check(path: Path, image: NDArray, sizes: NDArray[np.int64], length: int) -> None:
    shapes = np.unique(image[["height", "width"]])
    if len(shapes) != 1:
        raise UserError(f"{path} has images of {len(shapes)} different sizes, expected one size")
    raw = image["mode"] == RAW
    expected = 3 * int(image["height"][0]) * int(image["width"][0])
    inside = (sizes >= 0) & (image["at"] <= length) & (image["mode"] <= RAW)
    inside &= image["at"] + np.maximum(sizes, 0).astype(np.uint64) <= length
    bad = np.flatnonzero(~inside | (raw & (sizes != expected)))
    if len(bad):
        raise UserError(f"{path}: image {bad[0]} lies outside the file, or its length does not match its size")


def ffcv_decoder(path: Path) -> Callable[[int, int, int, int, int], bool]:
    """Return FFCV's JPEG decoder: from the address and length of a JPEG to the address, height and width of its pixels.

    It gives the same pixels as FFCV's Loader, without its compilation, releases the interpreter's lock meanwhile, and
    returns whether it was a JPEG of that size. Raises UserError where FFCV is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ffcv.libffcv import ctypes_imdecode
    except ImportError:
        raise UserError(f"{path} holds JPEGs: reading them needs FFCV, `pip install .[ffcv]`") from None

    def call(source: int, length: int, target: int, height: int, width: int) -> bool:
        code = ctypes_imdecode(source, length, height, width, target, height, width, 0, 0, 1, 1, False, False)
        return bool(code == 0)

    return call
