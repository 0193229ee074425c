"""What every data set is read as: images [N, height, width, channels] in uint8, uint16 or float32, labels, class names.

Images are in memory, mapped from a file, or read when they are asked for.
"""

import copy
import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from datamodels.train.config import Outputs
from datamodels.train.data.memory import free_host_memory
from datamodels.train.errors import UserError
from datamodels.train.outputs import Declared, image_outputs

CHUNK_BYTES = 1 << 26
"""Bytes read at a time where all images are gone through."""
SHARED_BYTES = 1 << 22
"""Copying less than this is not worth waking another core."""


class LazyImages(ABC):
    """Images that are read or decoded when they are asked for, on all cores. Indexed like an array, along N alone."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: DTypeLike = np.uint8) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        """[N, height, width, channels]"""

    @abstractmethod
    def read_into(self, position: int, out: NDArray) -> None:
        """Write one image to `out` [height, width, channels]. Raises UserError."""

    @abstractmethod
    def stamp(self) -> str:
        """Return a text that differs for other images, without reading them."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, pick: int | np.integer | slice | NDArray[np.int64]) -> NDArray:
        positions = np.arange(len(self))[pick]
        out = np.empty((positions.size, *self.shape[1:]), self.dtype)
        gather(self, positions.reshape(-1), out)
        return out if positions.ndim else out[0]

    def read_many(self, positions: NDArray[np.int64], out: NDArray) -> None:
        """Write images to `out` [n, height, width, channels], in this thread. Raises UserError."""
        for place, position in enumerate(positions.tolist()):
            self.read_into(position, out[place])

    def head(self, n: int) -> Self:
        """Return the first n images."""
        shorter = copy.copy(self)
        shorter.shape = (n, *self.shape[1:])
        return shorter


Images = NDArray | LazyImages
"""In uint8, uint16 or float32."""


@dataclass(frozen=True)
class Split:
    """Images and labels of the training or of the test examples, in column order."""

    images: Images
    """[N, height, width, channels]"""
    labels: NDArray[np.int64]
    """[N]"""

    def first(self, n: int | None, key: str) -> "Split":
        """Return the first n examples, or all for None. Raises UserError naming `key` where there are fewer."""
        if n is None:
            return self
        if n > len(self.labels):
            raise UserError(f"{key} is {n}, expected at most the {len(self.labels)} examples of the data set")
        images = self.images.head(n) if isinstance(self.images, LazyImages) else self.images[:n]
        return Split(images, self.labels[:n])

    def in_memory(self, wanted: bool | None) -> "Split":
        """Return the split with lazy images read now if wanted; None: if they take at most half of the free memory."""
        if not isinstance(self.images, LazyImages) or wanted is False:
            return self
        if wanted is None and not fits(nbytes(self.images), free_host_memory()):
            return self
        return Split(self.images[:], self.labels)

    @cached_property
    def sha256(self) -> str:
        """sha256 of images and labels, read a chunk at a time."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for chunk in chunks(self.images):
            digest.update(np.ascontiguousarray(chunk).data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return digest.hexdigest()

    @property
    def stamp(self) -> str:
        """Digest that changes with the labels and the images' source, without reading what is read lazily."""
        if not isinstance(self.images, LazyImages):
            return self.sha256
        source = f"{self.images.shape} {self.images.stamp()}".encode(errors="surrogateescape")
        return hashlib.sha256(source + np.ascontiguousarray(self.labels, dtype="<i8").tobytes()).hexdigest()


class Examples(NamedTuple):
    """All training and test examples of a data set and the names of its classes, as a source reads them."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    where: str
    """Where they were read from, for people."""
    notice: str | None = None
    """What the user should know of how they were read."""


@dataclass(frozen=True)
class Dataset:
    """The data set of a setting: images, labels and classes, and what images are normalised with."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """[channels], in the images' units; in their type (of integers, its whole part) it fills the borders and holes of
    augmentation."""
    std: tuple[float, ...]
    """[channels], in the images' units."""
    where: str
    """Where it was read from, for people."""

    def sha256(self) -> str:
        """Return the digest of images and labels, in column order."""
        return hashlib.sha256(f"{self.train.sha256} {self.test.sha256}".encode()).hexdigest()

    def declared(self, kept: Outputs) -> Declared:
        """Return what rows of this data set hold, by the outputs that are kept."""
        n_train, n_test = len(self.train.labels), len(self.test.labels)
        outputs = image_outputs(kept, n_train, n_test, len(self.classes))
        return Declared(n_train, n_test, self.classes, outputs, self.sha256(), f"the data set in {self.where}")


def gather(images: Images, positions: NDArray[np.int64], out: NDArray) -> None:
    """Write the images at some positions to `out` [n, height, width, channels], all cores sharing the work.

    An array must be C-contiguous: NumPy would copy all of it otherwise.
    """

    def share(part: slice) -> None:
        if isinstance(images, LazyImages):
            images.read_many(positions[part], out[part])
        else:
            images.take(positions[part], axis=0, out=out[part], mode="clip")

    if isinstance(images, np.ndarray) and out.nbytes < SHARED_BYTES:
        return share(slice(None))
    bounds = np.linspace(0, len(positions), cores() + 1).astype(int).tolist()
    list(_readers().map(share, map(slice, bounds[:-1], bounds[1:])))
    return None


def chunks(images: Images) -> Iterator[NDArray]:
    """Yield all images in order, in pieces of bounded size."""
    step = max(1, CHUNK_BYTES // (nbytes(images) // len(images)))
    for start in range(0, len(images), step):
        yield images[start : start + step]


def nbytes(images: Images) -> int:
    return math.prod(images.shape) * images.dtype.itemsize


def fits(size: int, free: int) -> bool:
    """Whether `size` bytes may be kept where `free` bytes are free: half of them are left to the work itself."""
    return size <= free // 2


@cache
def cores() -> int:
    return len(os.sched_getaffinity(0))


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), "images")
