"""FMoW: the in-distribution training and test images of a WILDS tree, read when they are asked for."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodels.train.config import Data
from datamodels.train.data.images import Examples, LazyImages, Split
from datamodels.train.errors import UserError
from datamodels.train.values import expanded

if TYPE_CHECKING:  # wilds is slow to import
    import fmow

MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""ImageNet's."""
FOLDER = "fmow_v1.1"
METADATA = "rgb_metadata.csv"
SIDE = 224
"""Pixels of the images in WILDS."""


class Pictures(LazyImages):
    """Image files in RGB; all of one size, or resized to `size` x `size` pixels."""

    def __init__(self, paths: list[Path], shape: tuple[int, int, int, int], resize: bool) -> None:
        super().__init__(shape)
        self.paths = paths
        self.resize = resize

    def read_into(self, position: int, out: NDArray[np.uint8]) -> None:
        path = self.paths[position]
        image = _read(path)
        height, width = self.shape[1:3]
        if self.resize:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        elif image.size != (width, height):
            found = f"{image.width} x {image.height} pixels"
            raise UserError(f"{path} has {found}, expected {width} x {height} as the first image: data.size resizes")
        out[...] = np.asarray(image)

    def stamp(self) -> str:
        try:
            return repr([(path.name, path.stat().st_size) for path in self.paths])
        except OSError as error:
            raise UserError(f"{error.filename}: no such image") from None


def _read(path: Path) -> Image.Image:
    from fmow import read_image

    try:
        return read_image(path)
    except OSError as error:
        raise UserError(str(error)) from None


def read(data: Data) -> Examples:
    """Return training and test images in the order of `FMoWDataset.get_subset`. Raises UserError."""
    train, test = tables(data)
    width, height = (data.size, data.size) if data.size else _read(train.paths[0]).size

    def split(part: "fmow.Examples") -> Split:
        return Split(Pictures(part.paths, (len(part.paths), height, width, 3), bool(data.size)), part.labels)

    return Examples(split(train), split(test), classes(), str(tree_of(data)))


def tables(data: Data) -> tuple["fmow.Examples", "fmow.Examples"]:
    """Return rows, labels and paths of the training and test images, from the tree's tables. Raises UserError."""
    tree = tree_of(data)
    if not tree.is_dir():
        raise UserError(
            f"data.root is {data.root!r}: no {FOLDER} folder there, expected the FMoW tree of WILDS (download it with "
            '`python -c "from fmow import FMoWDataset; FMoWDataset(root_dir=..., download=True)"`, 50 GB)'
        )
    from fmow import FMoWDataset

    try:
        dataset = FMoWDataset(root_dir=tree.parent, split_scheme=data.split_scheme)
        train, test = (dataset.examples(split) for split in ("train", "id_test"))
    except OSError as error:
        problem = error.strerror or " ".join(str(error).split())
        raise UserError(f"{error.filename or tree}: {problem}") from None
    except ValueError as error:
        raise UserError(f"data.{error}" if str(error).startswith("split_scheme") else str(error)) from None
    for name, part in (("training", train), ("test", test)):
        if not part.paths:
            raise UserError(f"{tree / METADATA} has no {name} image under data.split_scheme {data.split_scheme!r}")
    return train, test


def classes() -> tuple[str, ...]:
    from fmow import CATEGORIES

    return CATEGORIES


def refuse(data: Data, name: str, split: Split) -> str | None:
    """Return what a .beton file lacks to be FMoW's split `name`, by the labels in the tree's tables; else None."""
    side = data.size or SIDE
    if split.images.shape[1:] != (side, side, 3):
        return f"images of {split.images.shape[2]} x {split.images.shape[1]} pixels, expected {side} x {side}"
    expected = tables(data)[name == "test"].labels
    if not np.array_equal(split.labels, expected):
        return f"its {len(split.labels)} labels are not those of the {len(expected)} {name} images of {tree_of(data)}"
    return None


def tree_of(data: Data) -> Path:
    return expanded(data.root, "data.root") / FOLDER


def stem(data: Data) -> str:
    """Return the stem of the packed files' names: split scheme, size, and a digest of the tree's place and table.

    Where the tree is gone, `*` stands for the digest, so that any tree's files match.
    """
    tree = tree_of(data)
    try:
        table = (tree / METADATA).read_bytes()
        digest = hashlib.sha256(os.fsencode(tree.resolve()) + b"\n" + table).hexdigest()[:12]
    except OSError:
        digest = "*"
    size = f"{data.size}px" if data.size else "full"
    return f"fmow_{data.split_scheme}_{size}_{digest}"
