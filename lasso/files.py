"""Datamodel files: ROOT/{dataset}/datamodels/{split}_{pct}pct.pt with the tensors, and a .json that tells how.

A fit of targets [A, B) alone is a piece, {split}_{pct}pct.{A}-{B}.pt and .json, of the same form. The .json is written
last and carries the stamp that the .pt holds, so that a pair of two different fits is seen.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.datamodels import load, path_of, piece_of, read_report
from datamodels.lasso.design import Scale, divide
from datamodels.train import UserError, WorkError
from datamodels.train.store import ReadableStore as Store

if TYPE_CHECKING:  # torch is slow to import
    from datamodels.lasso.solver import Solution

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


def prepare(store: Store, split: str) -> None:
    """Create the folder; raises UserError where it cannot be written, or the .pt there is somebody else's."""
    path = path_of(store, split)
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder}: permission denied")
    remove_orphans(folder)
    if path.exists() and not _is_ours(path):
        raise UserError(f"{path} was not written by `datamodels fit`, which would replace it: move it away")


def _is_ours(path: Path) -> bool:
    """Whether a fit wrote this .pt, be it damaged since: then the .json beside it tells."""
    try:
        return "stamp" in load(path).tensors
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

    @classmethod
    def of(cls, solution: "Solution", scale: Scale) -> "Draft":
        vectors = {name: getattr(solution, name) for name in VECTORS}
        return cls(vectors, {"mean": scale.mean, "deviation": divide(np.ones_like(scale.inv), scale.inv)})

    @classmethod
    def joined(cls, parts: list[Path], widths: list[int]) -> "Draft":
        """That of pieces, of each of which the first so many targets count."""
        tensors = [load(part).tensors for part in parts]
        vectors = {
            name: np.concatenate([part[name].numpy()[:width] for part, width in zip(tensors, widths, strict=True)])
            for name in VECTORS
        }
        return cls(vectors, {name: tensors[0][name].numpy().copy() for name in EXAMPLES})


def write(path: Path, draft: Draft, weight: NDArray[np.float32], report: dict[str, Any]) -> Path:
    """Write .pt and .json, each whole or not at all, the .json last; returns the path of the .pt."""
    import torch

    stamp = _stamp(report)
    arrays = {"weight": np.ascontiguousarray(weight), **_beside(draft, report, stamp)}
    with writing(path), replacing(path) as temporary:
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, temporary)
    return _finish(path, stamp, report)


def _beside(draft: Draft, report: dict[str, Any], stamp: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """What a .pt holds beside the weights, their units among it: the .json may be lost."""
    standardised = np.array([report["weight_units"] == "standardised"])
    return {**draft.vectors, **draft.examples, "stamp": stamp, "standardised": standardised}


def write_joined(path: Path, draft: Draft, parts: list[Path], widths: list[int], report: dict[str, Any]) -> Path:
    """What `write` does, with the weights of pieces, of each the first so many targets, band of rows by band of rows.

    Memory does not grow with the weights.
    """
    import torch

    stamp = _stamp(report)
    n_train, total = len(draft.examples["mean"]), sum(widths)
    arrays = _beside(draft, report, stamp)
    tensors = {"weight": torch.empty((n_train, total), dtype=torch.float32)}  # memory that is never touched
    tensors.update({name: torch.from_numpy(array) for name, array in arrays.items()})
    with writing(path), replacing(path) as temporary:
        with torch.serialization.skip_data():
            torch.save(tensors, temporary)
        places = storages(temporary)
        with open(temporary, "r+b") as file:
            for name, array in zip(tensors, (None, *arrays.values()), strict=True):
                file.seek(places[list(tensors).index(name)])
                if array is None:
                    _write_bands(file, parts, widths, n_train)
                else:
                    file.write(np.ascontiguousarray(array).data)
    return _finish(path, stamp, report)


def _write_bands(file: BinaryIO, parts: list[Path], widths: list[int], n_train: int) -> None:
    offsets = [storages(part)[0] for part in parts]
    stored = [load(part).stored_weight.shape[1] for part in parts]
    height = max(1, _BAND_BYTES // (4 * sum(widths)))
    for start in range(0, n_train, height):
        rows = min(height, n_train - start)
        bands = [
            np.fromfile(part, np.float32, rows * wide, offset=offset + 4 * start * wide).reshape(rows, wide)[:, :width]
            for part, offset, wide, width in zip(parts, offsets, stored, widths, strict=True)
        ]
        file.write(np.concatenate(bands, axis=1).data)


def storages(path: Path) -> list[int]:
    """Where in a .pt the values of its tensors begin, in the order in which they were saved."""
    found = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for entry in archive.infolist():
            if match := re.fullmatch(r".*/data/(\d+)", entry.filename):
                file.seek(entry.header_offset + 26)
                name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
                found[int(match[1])] = entry.header_offset + 30 + name + extra
    return [found[at] for at in range(len(found))]


def _stamp(report: dict[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(json.dumps(report, sort_keys=True).encode()).digest(), np.uint8).copy()


def _finish(path: Path, stamp: NDArray[np.uint8], report: dict[str, Any]) -> Path:
    with writing(path), replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"stamp": stamp.tobytes().hex(), **report}, indent=1) + "\n")
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn OSError into WorkError."""
    try:
        yield
    except OSError as error:
        raise WorkError(f"cannot write {path}: {error.strerror or error}") from None


def aside(path: Path) -> Path:
    """A name beside a path for what is to take its place: one of this process, see `remove_orphans`."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


def remove_orphans(folder: Path) -> None:
    """Remove what processes of this host that are no more have left aside."""
    for file in folder.glob(f".*.{_host()}.*.tmp"):
        process = file.name.split(".")[-3]
        if process.isdigit() and not Path(f"/proc/{process}").exists() and Path("/proc/self").exists():
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write, which takes the path's place once it is durable."""
    temporary = aside(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def pieces(path: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Reports of the pieces that lie beside the whole file, or where it would be, by their targets [A, B)."""
    pattern = re.compile(re.escape(path.stem) + r"\.(\d+)-(\d+)\.json")
    found = {}
    for file in sorted(path.parent.glob("*.json")):
        if match := pattern.fullmatch(file.name):
            targets = (int(match[1]), int(match[2]))
            if report := read_report(piece_of(path, targets)):
                found[targets] = report
    return found


def paths_of(store: Store, split: str, targets: tuple[int, int]) -> Path:
    """Where the paths of a piece are kept until its refit."""
    return path_of(store, split, targets).with_suffix(".path.npz")


def remove_piece(store: Store, split: str, targets: tuple[int, int]) -> None:
    """Remove what there is of a piece, its .json first."""
    path = path_of(store, split, targets)
    for file in (path.with_suffix(".json"), path, paths_of(store, split, targets)):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a whole file while it is assembled."""
    with open(path.with_name(f".{path.stem}.lock"), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
