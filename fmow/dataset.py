"""WILDS' FMoW data set, its in-distribution splits restricted to one calendar year."""

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from PIL import Image

from fmow import tables
from fmow.upstream import CATEGORIES, WILDSFMoW, WILDSSubset


class Examples(NamedTuple):
    """What is known of a split's n images without opening them, in the order of `get_subset`."""

    rows: np.ndarray
    """int64 [n]: rows of `rgb_metadata.csv`, which number the images"""
    labels: np.ndarray
    """int64 [n]: positions in `CATEGORIES`"""
    paths: list[Path]
    """the n image files"""


class FMoWDataset(WILDSFMoW):
    """WILDS' FMoWDataset with the training year of the published datamodels.

    Under `time_after_Y` WILDS counts every image taken before 1 January of Y-3 (UTC) as in distribution; here the
    in-distribution splits (`train`, `id_val` and `id_test`; `val` is the second one's name under `use_ood_val=False`)
    hold those of the calendar year Y-4 alone. The out-of-distribution splits, and everything else, are WILDS'.
    `official` is `time_after_2016`, hence the year 2012; `mixed-to-test` takes its halves from the restricted pool.
    (https://github.com/MadryLab/datamodels-data, "FMoW data")

    Raises FileNotFoundError where the tree or one of its tables is absent, ValueError for an unknown scheme or version
    and for tables that cannot be used. Images are opened one at a time, when asked for.
    """

    def __init__(
        self,
        version: str | None = None,
        root_dir: str | os.PathLike[str] = "data",
        download: bool = False,
        split_scheme: str = "official",
        seed: int = 111,
        use_ood_val: bool = True,
    ) -> None:
        first_year = _ood_year(split_scheme) - 4
        published = pd.DataFrame()

        def read_csv(path: Path) -> pd.DataFrame:
            """The table as WILDS shall see it: times parsed, and in no split what is older than the training year."""
            table = tables.read_table(path)
            if path.name != tables.METADATA:
                return table
            nonlocal published
            published = table[["split", "timestamp"]]
            tables.check_categories(table, CATEGORIES, path)
            time = tables.times(table, path)
            return table.assign(timestamp=time, split=tables.splits_from(table, time, first_year))

        with warnings.catch_warnings():
            # Its groupers, made for `eval`, warn of trees without an image of 2002.
            warnings.filterwarnings("ignore", message="Minimum metadata value for CombinatorialGrouper is not 0")
            _reading_with(read_csv, WILDSFMoW.__init__)(
                self, version, root_dir, download, split_scheme, seed, use_ood_val
            )
        self.metadata[["split", "timestamp"]] = published

    def initialize_data_dir(self, root_dir: str | os.PathLike[str], download: bool) -> str:
        """The tree's folder, which must be there, or is downloaded as WILDS does.

        Unlike WILDS without `download`, no folder is made at a mistyped root, and a RELEASE file is not asked for.
        """
        if download:
            return str(super().initialize_data_dir(root_dir, download))
        self.check_version()
        data_dir = os.path.join(root_dir, f"{self.dataset_name}_v{self.version}")
        if not os.path.isdir(data_dir) or not os.listdir(data_dir):
            self.download_dataset(data_dir, download)
        return data_dir

    def get_subset(self, split: str, frac: float = 1.0, transform: Callable[..., Any] | None = None) -> "FMoWSubset":
        """As WILDS': the images of a split, in the order of the metadata's rows."""
        return FMoWSubset(self, super().get_subset(split, frac).indices, transform)

    def examples(self, split: str) -> Examples:
        """Rows, labels and files of a split; no image is opened."""
        indices = self.get_subset(split).indices
        rows = self.full_idxs[indices]
        return Examples(rows, self.y_array[indices].numpy(), [self._image_path(row) for row in rows])

    def get_input(self, idx: int) -> Image.Image:
        """The idx-th image, RGB; an OSError names the file that cannot be read."""
        return read_image(self._image_path(self.full_idxs[idx]))

    def _image_path(self, row: int) -> Path:
        return Path(self.root, "images", f"rgb_img_{row}.png")


class FMoWSubset(WILDSSubset):
    """WILDS' subset under a name of ours: a spawned DataLoader worker that unpickles it imports this package first,
    and so wilds without the network and torchvision beside any torch."""


def read_image(path: Path) -> Image.Image:
    """The image in RGB; FileNotFoundError or OSError naming the file where it is absent or damaged.

    Its checksums are verified first: decoding alone lets some truncated and some altered files pass.
    """
    try:
        with Image.open(path) as image:
            image.verify()
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such image") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged byte leads them to
        raise OSError(f"{path}: cannot be read as an image ({error})") from error


def _ood_year(split_scheme: str) -> int:
    """The year Y of `time_after_Y`, from which on WILDS tests out of distribution."""
    if split_scheme in ("official", "mixed-to-test"):
        return 2016
    named = re.fullmatch(r"time_after_(\d{4})", str(split_scheme))
    if named is None or not 2002 <= int(named[1]) <= 2018:
        raise ValueError(
            f"split_scheme {split_scheme!r} is unknown: official, mixed-to-test or time_after_Y, Y from 2002 to 2018"
        )
    return int(named[1])


def _reading_with(read_csv: Callable[[Path], pd.DataFrame], method: FunctionType) -> FunctionType:
    """`method` of WILDS', reading its tables with `read_csv` instead of pandas'.

    The same code with other globals: WILDS' module and pandas stay as they are for everyone else.
    """
    pandas = SimpleNamespace(read_csv=read_csv, to_datetime=pd.to_datetime)
    globals_ = {**method.__globals__, "pd": pandas}
    return FunctionType(method.__code__, globals_, method.__name__, method.__defaults__, method.__closure__)
