"""The manifest of a store: its setting, data set, group size and lengths, in one JSON file with a digest."""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.train.config import Setting, flatten, identity
from datamodels.train.errors import UserError, WorkError
from datamodels.train.masks import Era
from datamodels.train.npy_file import file_bytes
from datamodels.train.outputs import Declared, Output, image_outputs, is_output
from datamodels.train.values import shown

FORMAT = "datamodels-store-1"

PACKAGES = ("torch", "torchvision", "numpy", "numba", "triton", "ffcv", "wilds")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a row's bytes may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Array:
    """Name, shape and type of one array of a store."""

    name: str
    """Stem of the published file, such as `train_masks`."""
    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)}"

    @property
    def bytes(self) -> int:
        """Size of its file."""
        return file_bytes(self.shape, self.dtype)

    @staticmethod
    def of(rows: int, n_train: int, outputs: Sequence[Output]) -> list["Array"]:
        """Return the arrays of so many rows: masks and outputs, in the order of a record's checksums."""
        masks = Array("train_masks", (rows, n_train), np.dtype(bool))
        return [masks, *(Array(each.name, (rows, *each.shape), each.dtype) for each in outputs)]


@dataclass(frozen=True)
class Manifest:
    id: str
    config: dict[str, Any]
    versions: dict[str, str]
    data_sha256: str
    n_train: int
    n_test: int
    classes: tuple[str, ...]
    group: int
    """Rows trained together: row r belongs to group r // group."""
    eras: tuple[Era, ...]
    """Every length the setting has had, the present one last."""
    outputs: tuple[Output, ...] = ()
    """What a trainer of one's own declared; empty for the image trainer, whose outputs follow from the setting."""

    @property
    def models(self) -> int:
        return self.eras[-1].models

    @property
    def rows(self) -> int:
        return self.eras[-1].rows

    def files(self, setting: Setting) -> list[Array]:
        """Return the rows' flags and then the arrays, in the order in which `init` names their files."""
        flags = Array("_completed", (self.rows,), np.dtype(bool))
        outputs = self.outputs or image_outputs(setting.outputs, self.n_train, self.n_test, len(self.classes))
        return [flags, *Array.of(self.rows, self.n_train, outputs)]

    def grown(self, models: int) -> "Manifest":
        era = Era(models, self.eras[-1].eval_models)
        return dataclasses.replace(self, config={**self.config, "models": models}, eras=(*self.eras, era))

    def encode(self) -> bytes:
        content = {
            "format": FORMAT,
            "id": self.id,
            "config": self.config,
            "versions": self.versions,
            "data_sha256": self.data_sha256,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "classes": list(self.classes),
            "group": self.group,
            "history": [[era.models, era.eval_models] for era in self.eras],
        }
        if self.outputs:
            content["outputs"] = [[each.name, list(each.shape), str(each.dtype)] for each in self.outputs]
        content["sha256"] = _digest(content)
        return (json.dumps(content, indent=1) + "\n").encode()


def read_manifest(path: Path) -> Manifest:
    """Return the manifest in a file. Raises UserError where there is none, or one of another version; WorkError where
    it is damaged.
    """
    try:
        written = path.read_bytes()
        content = json.loads(written)
        if content["format"] != FORMAT:
            raise UserError(f"{path} has the format {content['format']!r}, expected {FORMAT!r}")
        recorded = content.pop("sha256")
        if recorded != _digest(content):
            raise ValueError("its content does not match its sha256")
        manifest = _decode(content)
        if manifest.encode() != written:
            raise ValueError("it is not written as it was at first")
        return manifest
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: `datamodels init` creates the store") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WorkError(f"{path} is damaged ({error}): restore it from a copy") from None


def _decode(content: dict[str, Any]) -> Manifest:
    """Return a manifest. Raises ValueError, KeyError, TypeError where the content makes no sense.

    Types that change on the way from JSON and back need no check here: `read_manifest` compares the bytes.
    """
    for key, digits in (("id", 32), ("data_sha256", 64)):
        if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", content[key]):
            raise ValueError(f"its {key} is not {digits} hexadecimal digits")
    if not all(type(name) is str for name in content["classes"]):
        raise ValueError("its classes are not names")
    manifest = Manifest(
        id=content["id"],
        config=dict(content["config"]),
        versions=dict(content["versions"]),
        data_sha256=content["data_sha256"],
        n_train=content["n_train"],
        n_test=content["n_test"],
        classes=tuple(content["classes"]),
        group=content["group"],
        eras=tuple(Era(*lengths) for lengths in content["history"]),
        outputs=tuple(Output(name, tuple(shape), np.dtype(kind)) for name, shape, kind in content.get("outputs", ())),
    )
    for output in manifest.outputs:
        sizes = all(type(size) is int and size > 0 for size in output.shape)
        if not (is_output(output.name) and output.shape and sizes and output.dtype in (np.float16, np.float32)):
            raise ValueError(f"its output {output} is none")
    eras, config = manifest.eras, manifest.config
    positive = [manifest.n_train, manifest.group, *(era.models for era in eras)]
    lengths = [*positive, manifest.n_test, *(era.eval_models for era in eras)]
    if not (eras and all(type(length) is int for length in lengths)):
        raise ValueError("its lengths are not whole numbers")
    if min(positive) < 1 or min(lengths) < 0 or max(lengths) >= 2**40:
        raise ValueError("its lengths are out of range")
    found = config["models"], config["eval_models"], config["recipe"]["group"]
    if found != (eras[-1].models, eras[-1].eval_models, manifest.group):
        raise ValueError("its lengths are not those of its config")
    if any(a.models >= b.models or a.eval_models != b.eval_models for a, b in itertools.pairwise(eras)):
        raise ValueError("its history does not ascend")
    return manifest


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_identity(manifest: Manifest, setting: Setting, path: Path) -> None:
    """Raises UserError, naming the key, where a setting is not the store's.

    A key that the manifest lacks, because it is newer than the store, counts as its default there: the default of a new
    key must be what was done before it.
    """
    there, here = identity(Setting().to_dict()) | identity(manifest.config), identity(setting.to_dict())
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) == here.get(key):
            continue
        if key.endswith("_sha256") and there.get(key) and here.get(key):
            name = key.removesuffix("_sha256")
            file, what = dict(flatten(setting.to_dict()))[name], name.rpartition(".")[2]
            raise UserError(
                f"{file} is not the {what} that {path} was made with: it has sha256 {here[key]}, expected "
                f"{there[key]}; use another root, or that file"
            )
        raise UserError(
            f"{key} is {shown(here.get(key))}, but {path} holds a setting with {shown(there.get(key))[:200]}: "
            "use another root, or the store's own value"
        )
    if setting.models not in {era.models for era in manifest.eras}:
        raise UserError(
            f"models is {setting.models}, but {path} holds a setting with {manifest.models}: "
            "`datamodels grow` lengthens it"
        )


def check_declared(manifest: Manifest, setting: Setting, declared: Declared) -> None:
    """Raises UserError where a data set or a trainer is not the one that a store was created with."""
    where = declared.where
    if declared.sha256 != manifest.data_sha256:
        raise UserError(f"{where} has sha256 {declared.sha256}, but the store was created with {manifest.data_sha256}")
    found, expected = len(declared.classes), len(manifest.classes)
    if found != expected:
        raise UserError(f"{where} has {found} classes, but the store was created with {expected}")
    there, here = manifest.files(setting)[1:], Array.of(manifest.rows, declared.n_train, declared.outputs)
    for array, other in itertools.zip_longest(here, there, fillvalue="no more"):
        if array != other:
            raise UserError(f"{where} declares {array}, but the store was created with {other}")
