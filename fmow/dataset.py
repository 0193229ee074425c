"""WILDS' FMoW data set, its in-distribution splits restricted to one calendar year."""

import contextlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from fmow import tables
from fmow.torchvision_compat import torchvision


@contextlib.contextmanager
def importing(name: str, module: Any) -> Iterator[None]:
    """Within this context `import name` gives a module, or ImportError if it is None; afterwards all is as it was."""
    known, before = name in sys.modules, sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]
        if known:
            sys.modules[name] = before  # type: ignore[assignment]


torchvision()  # which wilds imports, and which may need help beside this torch
with importing("outdated", None):  # with it, wilds starts a thread that asks PyPI for a newer wilds
    _fmow = importlib.import_module("wilds.datasets.fmow_dataset")
    _base = importlib.import_module("wilds.datasets.wilds_dataset")
    _utils = importlib.import_module("wilds.common.utils")
    _grouper = importlib.import_module("wilds.common.grouper")

import torch  # noqa: E402

WILDSFMoW: Any = _fmow.FMoWDataset
WILDSSubset: Any = _base.WILDSSubset
CATEGORIES: tuple[str, ...] = tuple(_fmow.categories)
"""The 62 category names; a label is a position in it."""


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
        year = _ood_year(split_scheme)
        self._version = version
        self._data_dir = self.initialize_data_dir(root_dir, download)
        self.root = Path(self._data_dir)
        self.seed = int(seed)
        self._split_scheme = f"time_after_{year}"
        self.oracle_training_set = split_scheme == "mixed-to-test"
        self._original_resolution = (224, 224)
        self.category_to_idx = {category: label for label, category in enumerate(CATEGORIES)}

        id_val, ood_val = ("id_val", "val") if use_ood_val else ("val", "ood_val")
        self._split_dict = {"train": 0, id_val: 1, "id_test": 2, ood_val: 3, "test": 4}
        names = ("Train", "ID Val", "ID Test", "OOD Val", "OOD Test")
        self._split_names = dict(zip(self._split_dict, names, strict=True))
        self._source_domain_splits = [0, 1, 2]

        path = self.root / tables.METADATA
        table = tables.read_table(path)
        labels = tables.labels(table, CATEGORIES, path)
        time = tables.times(table, path)
        kept = np.asarray(table["split"] != "seq")
        self.full_idxs = np.flatnonzero(kept)
        self._split_array = self._splits(table["split"], time, year)[kept]

        self._y_array = torch.from_numpy(labels.to_numpy()[kept])
        self._y_size, self._n_classes = 1, len(CATEGORIES)
        self._add_metadata(table, labels, time, kept)
        super(WILDSFMoW, self).__init__(root_dir, download, split_scheme)  # not WILDS' own, which makes other splits

    def _splits(self, split: pd.Series, time: pd.Series, year: int) -> np.ndarray:
        """Return the split of each row [n], as a float as in WILDS; -1 for none."""

        def since(first: int) -> np.ndarray:
            return np.asarray(time >= pd.Timestamp(first, 1, 1, tz="UTC"))

        self.test_ood_mask = since(year)
        self.val_ood_mask = since(year - 3) & ~self.test_ood_mask
        self.ood_mask = since(year - 3)
        in_year = since(year - 4) & ~self.ood_mask
        test = np.asarray(split == "test")
        train, val = np.asarray(split == "train"), np.asarray(split == "val")
        rows = [
            np.flatnonzero(chosen)
            for chosen in (in_year & train, in_year & val, in_year & test, self.val_ood_mask & val, since(year) & test)
        ]
        if self.oracle_training_set:
            half, later = len(rows[0]) // 2, np.flatnonzero(self.ood_mask & ~test)
            drawn = _utils.subsample_idxs(later, num=half, seed=self.seed + 2)
            rows[0] = np.concatenate([drawn, _utils.subsample_idxs(rows[0], num=half, seed=self.seed + 3)])
        splits = np.full(len(split), -1.0)
        for number, chosen in enumerate(rows):
            splits[chosen] = number
        return splits

    def _add_metadata(self, table: pd.DataFrame, labels: pd.Series, time: pd.Series, kept: np.ndarray) -> None:
        """Add WILDS' metadata of each image: its region, its year since 2002 (-1 for another) and its label."""
        countries = tables.read_table(self.root / tables.COUNTRIES)
        region_of = dict(zip(countries["alpha-3"], countries["region"], strict=True))
        regions = pd.Series([region_of.get(code, "Other") for code in table["country_code"]])
        numbers, names = pd.factorize(regions, use_na_sentinel=False)
        known = time.dt.year.between(tables.FIRST_YEAR, tables.LAST_YEAR)
        years = (time.dt.year - tables.FIRST_YEAR).where(known, -1.0)
        self.metadata = table.assign(region=numbers, y=labels, year=years.astype(float))
        self._metadata_map = {"region": list(names), "year": list(range(tables.FIRST_YEAR, tables.LAST_YEAR + 1))}
        self._metadata_fields = ["region", "year", "y"]
        columns = self.metadata[self._metadata_fields].astype("int64").to_numpy()
        self._metadata_array = torch.from_numpy(columns[kept])
        with warnings.catch_warnings():
            # The groupers, made for `eval`, warn of trees without an image of 2002.
            warnings.filterwarnings("ignore", message="Minimum metadata value for CombinatorialGrouper is not 0")
            self._eval_groupers = {
                field: _grouper.CombinatorialGrouper(dataset=self, groupby_fields=[field])
                for field in ("year", "region")
            }

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

    def eval(
        self,
        y_pred: torch.Tensor,
        y_true: torch.Tensor,
        metadata: torch.Tensor,
        prediction_fn: Callable[..., Any] | None = None,
    ) -> tuple[dict[str, Any], str]:
        """As WILDS': accuracy over all, by year and by region, and a text with them.

        WILDS averages over groups with torch_scatter, which has to be compiled for every torch; it need not be there.
        """
        evaluate: Any = super().eval
        with contextlib.ExitStack() as stack:
            if importlib.util.find_spec("torch_scatter") is None:
                stack.enter_context(importing("torch_scatter", SimpleNamespace(scatter=_scatter)))
            results, text = evaluate(y_pred, y_true, metadata, prediction_fn)
        return results, text

    def get_input(self, idx: int) -> Image.Image:
        """The idx-th image, RGB; an OSError names the file that cannot be read."""
        return read_image(self._image_path(self.full_idxs[idx]))

    def _image_path(self, row: int) -> Path:
        return Path(self.root, "images", f"rgb_img_{row}.png")


def _scatter(src: torch.Tensor, index: torch.Tensor, dim_size: int, reduce: str) -> torch.Tensor:
    """The mean [dim_size] of the values of each group, 0 where there is none."""
    means = torch.zeros(dim_size, dtype=src.dtype, device=src.device)
    return means.scatter_reduce(0, index, src, reduce, include_self=False)


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
