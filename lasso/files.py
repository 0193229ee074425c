"""Datamodel files: ROOT/{dataset}/datamodels/{split}_{pct}pct.pt with the arrays, and a .json about the fit.

A fit of targets [A, B) alone is a piece, {split}_{pct}pct.{A}-{B}.pt and .json, of the same form. The .json is written
last and carries the stamp that the .pt holds, so that files of two different fits are not taken for a pair.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.atomic import replacing
from datamodels.lasso.datamodels import load, path_of, piece_of, read_report
from datamodels.train import UserError
from datamodels.train.store import BaseStore as Store

VECTORS = {
    "bias": np.float32,
    "lam": np.float32,
    "chosen": np.int32,
    "tried": np.int32,
    "validation_mse": np.float64,
    "variance": np.float64,
    "gap": np.float64,
    "kkt": np.float64,
    "path_gap": np.float64,
}
"""What a .pt holds per target beside `weight`; the fields of Solution."""

EXAMPLES = ("mean", "deviation")
"""What a .pt holds per example beside `weight`: the masks' mean and deviation over the rows fitted, float64."""

_BAND_BYTES = 2**27
"""Weights that are in memory at a time while pieces are joined."""


def fit_bytes(n_train: int, targets: int) -> int:
    """Bytes of the .pt of a fit: weights, and its vectors over targets and training examples."""
    each = sum(np.dtype(dtype).itemsize for dtype in VECTORS.values())
    return (4 * n_train + each) * targets + 8 * len(EXAMPLES) * n_train


def prepare(store: Store, split: str) -> None:
    """Create the folder. Raises UserError where it cannot be written, or holds a .pt that no fit has written."""
    path = path_of(store, split)
    make_folder(path.parent)
    if path.exists() and not _is_ours(path):
        raise UserError(f"{path} was not written by `datamodels fit`, which would replace it: move it away")


def make_folder(folder: Path) -> None:
    """Create the folder of datamodels. Raises UserError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; --out names another folder") from None


def _is_ours(path: Path) -> bool:
    """Whether a fit has written a .pt; if the .pt itself is damaged, the .json beside it decides."""
    try:
        return "stamp" in load(path).arrays
    except UserError:
        pass
    try:
        return "stamp" in json.loads(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return False


@dataclass
class Draft:
    """What a .pt will hold beside the weights."""

    vectors: dict[str, NDArray[Any]]
    """[T]: those in VECTORS"""
    examples: dict[str, NDArray[np.float64]]
    """[N_train]: those in EXAMPLES"""
    groups: NDArray[np.integer] | None = None
    """[N_train] with `mask: groups`; the examples above are then the groups"""

    @classmethod
    def joined(cls, parts: list[Path], widths: list[int]) -> "Draft":
        """That of pieces, of each the first `width` targets."""
        arrays = [load(part).arrays for part in parts]
        vectors = {
            name: np.concatenate([part[name][:width] for part, width in zip(arrays, widths, strict=True)])
            for name in VECTORS
        }
        return cls(vectors, {name: arrays[0][name].copy() for name in EXAMPLES}, arrays[0].get("groups"))

    def arrays(self, report: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """By name; with the stamp of the .json and the units, since the .json may be lost."""
        standardised = np.array([report["weight_units"] == "standardised"])
        stamp = hashlib.sha256(json.dumps(report, sort_keys=True).encode()).digest()
        stamps = {"stamp": np.frombuffer(stamp, np.uint8).copy(), "standardised": standardised}
        groups = {} if self.groups is None else {"groups": self.groups.astype(np.int32)}
        return {**self.vectors, **self.examples, **groups, **stamps}


def write(path: Path, draft: Draft, weight: NDArray[np.float32], report: dict[str, Any]) -> Path:
    """Write .pt and .json, each whole or not at all, the .json last; returns the path of the .pt. Raises WorkError."""
    import torch

    arrays = {"weight": np.ascontiguousarray(weight), **draft.arrays(report)}
    with replacing(path) as temporary:
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, temporary)
    _write_report(path, arrays["stamp"], report)
    return path


def write_joined(path: Path, draft: Draft, parts: list[Path], widths: list[int], report: dict[str, Any]) -> Path:
    """What `write` does, with the weights of pieces, of each the first `width` targets; not all at once in memory."""
    arrays = draft.arrays(report)
    shape = len(draft.examples["mean"]), sum(widths)
    write_blocks(path, shape, _bands(parts, widths, shape[0]), arrays)
    _write_report(path, arrays["stamp"], report)
    return path


def write_blocks(
    path: Path, shape: tuple[int, int], blocks: Iterable[NDArray[np.float32]], arrays: dict[str, NDArray[Any]]
) -> None:
    """Write a .pt alone, with weights [N_train, T] that come in blocks of rows. Raises WorkError.

    torch lays out a file without the values, which are then written to their places.
    """
    import torch

    tensors = {"weight": torch.empty(shape, dtype=torch.float32)}  # memory that is never touched
    tensors.update({name: torch.from_numpy(array) for name, array in arrays.items()})
    with replacing(path) as temporary:
        with torch.serialization.skip_data():
            torch.save(tensors, temporary)
        weight_offset, *offsets = storages(temporary)
        with open(temporary, "r+b") as file:
            file.seek(weight_offset)
            for block in blocks:
                file.write(np.ascontiguousarray(block).data)
            for offset, array in zip(offsets, arrays.values(), strict=True):
                file.seek(offset)
                file.write(np.ascontiguousarray(array).data)


def _bands(parts: list[Path], widths: list[int], n_train: int) -> Iterator[NDArray[np.float32]]:
    """Yield the weights of pieces side by side, some training examples at a time."""
    offsets = [storages(part)[0] for part in parts]
    stored = [load(part).stored_weight.shape[1] for part in parts]
    height = max(1, _BAND_BYTES // (4 * sum(widths)))
    for start in range(0, n_train, height):
        rows = min(height, n_train - start)
        bands = [
            np.fromfile(part, np.float32, rows * wide, offset=offset + 4 * start * wide).reshape(rows, wide)[:, :width]
            for part, offset, wide, width in zip(parts, offsets, stored, widths, strict=True)
        ]
        yield np.concatenate(bands, axis=1)


def storages(path: Path) -> list[int]:
    """Offsets in a .pt at which the values of its tensors begin, in the order in which they were saved."""
    found = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for entry in archive.infolist():
            if match := re.fullmatch(r".*/data/(\d+)", entry.filename):
                file.seek(entry.header_offset + 26)
                name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
                found[int(match[1])] = entry.header_offset + 30 + name + extra
    return [found[at] for at in range(len(found))]


def _write_report(path: Path, stamp: NDArray[np.uint8], report: dict[str, Any]) -> None:
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"stamp": stamp.tobytes().hex(), **report}, indent=1) + "\n", "utf-8")


def pieces(path: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Reports of the pieces in the folder of a whole file, by their targets [A, B)."""
    pattern = re.compile(re.escape(path.stem) + r"\.(\d+)-(\d+)\.json")
    found = {}
    for file in sorted(path.parent.glob("*.json")):
        if match := pattern.fullmatch(file.name):
            targets = (int(match[1]), int(match[2]))
            if report := read_report(piece_of(path, targets)):
                found[targets] = report
    return found


def paths_of(store: Store, split: str, targets: tuple[int, int]) -> Path:
    """Where the lambda paths of a piece are kept until its refit."""
    return path_of(store, split, targets).with_suffix(".path.npz")


def remove_piece(store: Store, split: str, targets: tuple[int, int]) -> None:
    """Remove the files of a piece, its .json first."""
    path = path_of(store, split, targets)
    for file in (path.with_suffix(".json"), path, paths_of(store, split, targets)):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a whole file, so that one process at a time writes it or its pieces."""
    with open(path.with_name(f".{path.stem}.lock"), "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
