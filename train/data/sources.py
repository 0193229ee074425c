"""Data sets as uint8 arrays in the column order of the published files."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodels.train.config import Data, Setting
from datamodels.train.data import beton, cifar, own
from datamodels.train.data import fmow as fmow_tree
from datamodels.train.data.images import Split
from datamodels.train.data.packed import SUFFIXES, Pack, Progress
from datamodels.train.errors import UserError

__all__ = ["Dataset", "Split", "fetch", "load", "pack"]

DIGITS_TRAIN = 100


@dataclass(frozen=True)
class Dataset:
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, in units of 0..255; its integer part fills the borders and holes of augmentation."""
    std: tuple[float, ...]
    """Per channel, in units of 0..255."""
    where: str
    """Where it was read from, for people."""

    def sha256(self) -> str:
        """Digest of images and labels, in column order."""
        return hashlib.sha256(f"{self.train.sha256} {self.test.sha256}".encode()).hexdigest()


@dataclass(frozen=True)
class Source:
    """A data set as it is published, and how it is known again in other forms."""

    read: Callable[[Data], tuple[Split, Split]]
    """All training and test examples, in the published order. Raises UserError."""
    classes: Callable[[], tuple[str, ...]]
    where: Callable[[Data], str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stem: Callable[[Data], str] | None = None
    """First part of its packed files' names; None where it is never packed."""
    refuse: Callable[[Data, str, Split], str | None] = lambda data, name, split: None
    """What a file of someone else's lacks to be this data set's `train` or `test`."""


def load(setting: Setting) -> Dataset:
    """The data set of a setting, cut to its subset, in the form that `data.form` names.

    Raises UserError that says what is missing and how to get it, or which file is damaged.
    """
    source, data = _source(setting), setting.data
    if source is None:
        (*splits,), classes, where = *own.read(data), own.where(data)
    elif data.form == "beton":
        splits, classes, where = _foreign(setting.dataset, source, data)
    elif packs := _packs(source, data):
        splits, classes, where = _packed(packs, data)
    else:
        splits, classes, where = [*source.read(data)], source.classes(), source.where(data)
    train = splits[0].first(data.train, "data.train").in_memory(data.resident)
    test = splits[1].first(data.test, "data.test").in_memory(data.resident)
    mean, std = (source.mean, source.std) if source else own.statistics(train.images)
    return Dataset(train, test, classes, _chosen(data, "mean", mean), _chosen(data, "std", std), where)


def _chosen(data: Data, key: str, usual: tuple[float, ...]) -> tuple[float, ...]:
    """A number a channel: what the config says, else the usual one. Raises UserError."""
    stated = getattr(data, key)
    if stated is not None and len(stated) != len(usual):
        raise UserError(f"data.{key} is {stated}, expected {len(usual)} numbers, one a channel")
    return usual if stated is None else tuple(stated)


def fetch(setting: Setting) -> None:
    """Download a data set that is missing and can be had. Raises UserError where there is no network."""
    if setting.dataset == "cifar" and setting.data.form != "beton":
        cifar.fetch(setting.data)


def pack(setting: Setting, progress: Progress = lambda what, done, total: None) -> None:
    """Write the packed form that `data.form` names (`auto`: `npy` for FMoW, none for the others) if it is not there.

    Raises UserError, WorkError.
    """
    source, form = _source(setting), setting.data.form
    if form == "auto" and setting.dataset == "fmow":
        form = "npy"
    if source is None or source.stem is None or form not in SUFFIXES:
        return
    paths = _paths(source.stem(setting.data), form, setting.data)
    train, test = source.read(setting.data)
    for name, split in (("train", train), ("test", test)):
        split.first(getattr(setting.data, name), f"data.{name}")  # refuses too many before anything is written
    for name, split in (("train", train), ("test", test)):
        Pack(paths[name], form).write(split, source.classes(), progress)


def _source(setting: Setting) -> Source | None:
    """Where the data set comes from; None where it is the user's own. Raises UserError."""
    data, source = setting.data, SOURCES.get(setting.dataset)
    if source and data.python is not None:
        raise UserError(f"data.python is {data.python!r}, expected null for {setting.dataset}, which is built in")
    if source is None and (missing := own.missing(data)):
        raise UserError(
            f"dataset is {setting.dataset!r}, expected one of {', '.join(SOURCES)}, or a name for your own data from "
            f"data.python, or in {', '.join(own.FILES)} in data.root: {missing} does not exist"
        )
    if (source is None or source.stem is None) and data.form not in ("auto", "original"):
        raise UserError(f"data.form is {data.form!r}, expected auto or original: {setting.dataset} has no other form")
    if setting.dataset != "fmow":
        for key, usual in (("size", None), ("split_scheme", "official")):
            if getattr(data, key) != usual:
                raise UserError(f"data.{key} is {getattr(data, key)!r}, but only fmow has a choice of it")
    return source


def _paths(stem: str, form: str, data: Data) -> dict[str, Path]:
    folder = Path(data.packed).expanduser()
    return {name: folder / f"{stem}_{name}{SUFFIXES[form]}" for name in ("train", "test")}


def _packs(source: Source, data: Data) -> list[Pack]:
    """The packed training and test split to read, or nothing where the original files are to be read.

    Raises UserError where the form that is asked for is not there.
    """
    if source.stem is None or data.form == "original":
        return []
    stem = source.stem(data)
    for form in ("npy", "beton-raw") if data.form == "auto" else (data.form,):
        packs = [_only(Pack(path, form)) for path in _paths(stem, form, data).values()]
        if all(pack.exists() for pack in packs):
            return packs
    if data.form != "auto":
        raise UserError(
            f"data.form is {data.form!r}, but {packs[0].path} does not exist: "
            f"`datamodels data CONFIG --data.form {data.form}` makes it"
        )
    return []


def _only(pack: Pack) -> Pack:
    """The one pack whose name matches, where the name is a pattern. Raises UserError where several do."""
    found = [path for path in pack.path.parent.glob(pack.path.name) if Pack(path, pack.form).exists()]
    if len(found) > 1:
        raise UserError(f"{pack.path} matches {len(found)} files: name another folder with data.packed")
    return Pack(found[0], pack.form) if found else pack


def _packed(packs: list[Pack], data: Data) -> tuple[list[Split], tuple[str, ...], str]:
    splits = []
    for pack in packs:
        split, classes = pack.read()
        splits.append(split.in_memory(data.resident))
        pack.check(splits[-1])
    return splits, classes, str(packs[0].path)


def _foreign(dataset: str, source: Source, data: Data) -> tuple[list[Split], tuple[str, ...], str]:
    """The .beton files of an FFCV user: data.root/{dataset}_train.beton and _test.beton. Raises UserError."""
    classes, splits = source.classes(), []
    for name in ("train", "test"):
        path = Path(data.root).expanduser() / f"{dataset}_{name}.beton"
        split = beton.read(path)
        if not ((split.labels >= 0) & (split.labels < len(classes))).all():
            raise UserError(f"{path} is not of {dataset}: expected labels from 0 to {len(classes) - 1}")
        if problem := source.refuse(data, name, split):
            raise UserError(f"{path} is not of {dataset}: {problem}")
        splits.append(split)
    return splits, classes, data.root


def digits(data: Data) -> tuple[Split, Split]:
    """scikit-learn's 1,797 real 8x8 digits (UCI optdigits): the first 100 for training, the rest for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    return (
        Split(images[:DIGITS_TRAIN], labels[:DIGITS_TRAIN]),
        Split(images[DIGITS_TRAIN:], labels[DIGITS_TRAIN:]),
    )


SOURCES = {
    "cifar": Source(
        read=cifar.read,
        classes=lambda: cifar.CLASSES,
        where=lambda data: str(cifar.folder_of(data)),
        mean=(125.307, 122.961, 113.8575),
        std=(51.5865, 50.847, 51.255),
        stem=lambda data: "cifar",
        refuse=cifar.refuse,
    ),
    "digits": Source(
        read=digits,
        classes=lambda: tuple("0123456789"),
        where=lambda data: "scikit-learn's own copy",
        mean=(77.0,),
        std=(96.0,),
    ),
    "fmow": Source(
        read=fmow_tree.read,
        classes=fmow_tree.classes,
        where=lambda data: str(fmow_tree.tree_of(data)),
        mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
        std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
        stem=fmow_tree.stem,
        refuse=fmow_tree.refuse,
    ),
}
