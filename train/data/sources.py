"""Load, fetch or pack the data set of a setting.

To add a data set, write a file beside this one with what `Source` asks for (`digits.py` is the shortest), and name it
in SOURCES; where its images may be packed, or come as an FFCV user's .beton files, in PACKABLE too.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from datamodels.train.config import INSTEAD, Data, Setting
from datamodels.train.data import beton, cifar, digits, fmow, own
from datamodels.train.data.images import Dataset, Examples, Split
from datamodels.train.data.packed import Pack, Progress
from datamodels.train.errors import UserError
from datamodels.train.npy_file import Notice
from datamodels.train.values import expanded, shown


class Source(Protocol):
    """What the file of a data set defines."""

    @property
    def MEAN(self) -> tuple[float, ...]:
        """Mean of each channel, in the images' units."""

    @property
    def STD(self) -> tuple[float, ...]:
        """Standard deviation of each channel, in the images' units."""

    def read(self, data: Data) -> Examples:
        """Return all examples in the order of the published columns. Raises UserError naming the file at fault."""


class Packable(Source, Protocol):
    """What it defines besides where its images may come in other forms."""

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes."""

    def stem(self, data: Data) -> str:
        """Return the first part of its packed files' names; `*` in it stands for anything."""

    def refuse(self, data: Data, name: str, split: Split) -> str | None:
        """Return what a .beton file lacks to be the split `name`, `train` or `test`; None where it lacks nothing."""


SOURCES: dict[str, Source] = {"cifar": cifar, "digits": digits, "fmow": fmow}
PACKABLE: dict[str, Packable] = {"cifar": cifar, "fmow": fmow}


def load(setting: Setting, notice: Notice = lambda text: None) -> Dataset:
    """Return the data set of a setting, cut to its subset, read in the form that `data.form` names.

    notice: called with what the user should know of how it was read. Raises UserError that says what is missing and how
    to get it, or which file is damaged.
    """
    _check(setting)
    data, source, packable = setting.data, SOURCES.get(setting.dataset), PACKABLE.get(setting.dataset)
    if packable and data.form == "beton":
        found = _from_betons(setting.dataset, packable, data)
    elif packable and (packs := _find_packs(packable, data)):
        (train, classes), (test, _) = (pack.read() for pack in packs)
        found = Examples(train, test, classes, str(packs[0].path))
    else:
        found = source.read(data) if source else own.read(data)
    train = found.train.first(data.train, "data.train").in_memory(data.resident)
    test = found.test.first(data.test, "data.test").in_memory(data.resident)
    if not source:
        for name, split in (("train_images", train), ("test_images", test)):
            own.refuse_not_finite(split.images, own.place(data, name))
    mean, std = (source.MEAN, source.STD) if source else own.statistics(train.images)
    _check_units("mean", data.mean, mean, std, train.images.dtype)
    _check_units("std", data.std, std, std, train.images.dtype)
    if found.notice:
        notice(found.notice)
    return Dataset(train, test, found.classes, tuple(data.mean or mean), tuple(data.std or std), found.where)


def fetch(setting: Setting) -> None:
    """Download the data set if it is missing and can be had. Raises UserError where there is no network."""
    if setting.dataset == "cifar" and setting.data.form != "beton":
        cifar.fetch(setting.data)


def pack(setting: Setting, progress: Progress = lambda what, done, total: None) -> None:
    """Pack the data set if `data.form` is `npy`, or `auto` for FMoW, and it is not packed yet.

    Raises UserError, WorkError.
    """
    _check(setting)
    data, source = setting.data, PACKABLE.get(setting.dataset)
    if source is None or not (data.form == "npy" or (data.form == "auto" and setting.dataset == "fmow")):
        return
    found = source.read(data)
    found.train.first(data.train, "data.train")  # refuses too many before anything is written
    found.test.first(data.test, "data.test")
    for split, path in zip((found.train, found.test), _pack_paths(source, data), strict=True):
        Pack(path).write(split, found.classes, progress)


def _check(setting: Setting) -> None:
    """Raises UserError where the data set is not known, or a key of `data` has no effect on it."""
    data, name = setting.data, setting.dataset
    if name in SOURCES and data.python is not None:
        raise UserError(f"data.python is {data.python!r}, expected null for {name}, which is built in")
    if name not in SOURCES and (missing := own.missing(data)):
        raise UserError(
            f"dataset is {name!r}, expected one of {', '.join(SOURCES)}, or a name for your own data from data.python, "
            f"or in {', '.join(own.FILES)} in data.root: {missing} does not exist"
        )
    if data.form not in ("auto", "original", "npy", "beton"):  # in the manifest of an older store
        expected = INSTEAD.get(data.form, "auto, original, npy or beton")
        raise UserError(f"data.form is {data.form!r}, expected {expected}")
    if name not in PACKABLE and data.form not in ("auto", "original"):
        raise UserError(f"data.form is {data.form!r}, expected auto or original: {name} has no other form")
    if name != "fmow":
        for key, usual in (("size", None), ("split_scheme", "official")):
            if getattr(data, key) != usual:
                raise UserError(f"data.{key} is {shown(getattr(data, key))}, but this key is for fmow only")
    if name in SOURCES and data.layout != "auto":
        raise UserError(f"data.layout is {data.layout!r}, but this key is for your own data only")


def _check_units(
    key: str, stated: list[float] | None, usual: tuple[float, ...], std: tuple[float, ...], dtype: np.dtype
) -> None:
    """Raises UserError unless `data.mean` or `data.std` can be in the units of the images, as the usual values are.

    A factor of 16 is half way to units of 0..1 from those of 0..255. A mean of 0 is in any unit.
    """
    if stated is not None and len(stated) != len(usual):
        raise UserError(f"data.{key} is {stated}, expected {len(usual)} numbers, one a channel")
    for channel, (value, own_value, deviation) in enumerate(zip(stated or [], usual, std, strict=False)):
        largest = 16 * max(abs(own_value), deviation)
        low, high = (0, np.iinfo(dtype).max) if dtype.kind == "u" else (-largest, largest)
        small = value != 0 and 16 * abs(value) < abs(own_value) and abs(own_value - value) > deviation / 4
        if small or not low <= value <= high:
            raise UserError(
                f"data.{key} is {stated}: {value:g} is far from {own_value:.4g}, the usual one of channel {channel} of "
                f"these {dtype} images; expected units of the images' own values, as in "
                f"{[float(f'{each:.6g}') for each in usual]}"
            )


def _pack_paths(source: Packable, data: Data) -> list[Path]:
    """Return the paths of the packed training and test images."""
    return [expanded(data.packed, "data.packed") / f"{source.stem(data)}_{name}.npy" for name in ("train", "test")]


def _find_packs(source: Packable, data: Data) -> list[Pack]:
    """Return the packed training and test images, or nothing where the original files are to be read.

    Raises UserError where packed images are asked for and missing, and where a pattern matches several files.
    """
    if data.form == "original":
        return []
    packs = []
    for path in _pack_paths(source, data):
        found = [pack for each in path.parent.glob(path.name) if (pack := Pack(each)).exists()]
        if len(found) > 1:
            raise UserError(f"{path} matches {len(found)} files: name another folder with data.packed")
        if not found and data.form == "npy":
            raise UserError(
                f"data.form is 'npy', but {path} does not exist: `datamodels data CONFIG --data.form npy` makes it"
            )
        packs += found
    return packs if len(packs) == 2 else []


def _from_betons(dataset: str, source: Packable, data: Data) -> Examples:
    """Read the .beton files of an FFCV user: data.root/{dataset}_train.beton and _test.beton. Raises UserError."""
    classes, splits = source.classes(), []
    for name in ("train", "test"):
        path = expanded(data.root, "data.root") / f"{dataset}_{name}.beton"
        split = beton.read(path)
        if not ((split.labels >= 0) & (split.labels < len(classes))).all():
            raise UserError(f"{path} is not of {dataset}: expected labels from 0 to {len(classes) - 1}")
        if problem := source.refuse(data, name, split):
            raise UserError(f"{path} is not of {dataset}: {problem}")
        splits.append(split)
    return Examples(splits[0], splits[1], classes, data.root)
