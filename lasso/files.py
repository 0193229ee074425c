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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lasso.design import Scale, divide
from train.errors import UserError, WorkError
from train.store import ReadableStore as Store

if TYPE_CHECKING:  # torch is slow to import
    import torch

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
"""What a .pt holds per target beside `weight`; the fields of solver.Solution."""

EXAMPLES = ("mean", "deviation")
"""What a .pt holds per example beside `weight`: the masks' mean and deviation over the rows fitted, float64."""

_IN_MEMORY = 2**28
"""Bytes of weights up to which they are gathered in memory and not in a scratch file."""


def folder_of(store: Store) -> Path:
    return store.folder / "datamodels"


def path_of(store: Store, split: str, targets: tuple[int, int] | None = None) -> Path:
    """The .pt of a split, or of the piece with targets [A, B)."""
    piece = f".{targets[0]}-{targets[1]}" if targets else ""
    return folder_of(store) / f"{split}_{store.setting.pct}pct{piece}.pt"


def prepare(store: Store, split: str) -> None:
    """Create the folder; raises UserError where it cannot be written, or the .pt there is somebody else's."""
    path = path_of(store, split)
    folder = path.parent
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder}: permission denied")
    if path.exists() and "stamp" not in load(path).tensors:
        raise UserError(f"{path} was not written by `datamodels fit`, which would replace it: move it away")


@dataclass(frozen=True)
class Datamodels:
    """Fitted datamodels: mask @ weight + bias is the predicted margin. The tensors are mapped, not read."""

    weight: "torch.Tensor"
    """float32 [N_train, T]"""
    bias: "torch.Tensor"
    """float32 [T]"""
    tensors: "dict[str, torch.Tensor]"
    """Everything the file holds: `lam` [T] and the diagnostics in VECTORS."""


def load(path: Path) -> Datamodels:
    """Map a .pt in the format of the contract; raises UserError for anything else."""
    import torch

    try:
        tensors = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # torch raises many kinds for a file that is not one of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read as datamodels: {reason}") from None
    for key in ("weight", "bias"):
        tensor = tensors.get(key) if isinstance(tensors, dict) else None
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in (torch.float16, torch.float32, torch.float64):
            raise UserError(f"{path} holds no floating-point tensor `{key}`, expected weight [N_train, T] and bias [T]")
    weight, bias = tensors["weight"].detach(), tensors["bias"].detach()
    if weight.ndim != 2 or bias.shape != weight.shape[1:]:
        found = f"weight of shape {tuple(weight.shape)} and bias of shape {tuple(bias.shape)}"
        raise UserError(f"{path} holds {found}, expected [N_train, T] and [T]")
    return Datamodels(weight, bias, tensors)


def read_report(path: Path) -> dict[str, Any] | None:
    """The .json beside a .pt, or None where there is none or the pair does not belong together."""
    try:
        report = json.loads(path.with_suffix(".json").read_bytes())
        stamp = bytes(load(path).tensors["stamp"].tolist()).hex()
    except (OSError, ValueError, KeyError, UserError):
        return None
    return report if isinstance(report, dict) and report.get("stamp") == stamp else None


class Draft:
    """Weights [N_train, width] and vectors of a fit in the making, gathered target by target and then written."""

    def __init__(self, path: Path, n_train: int, width: int) -> None:
        self.path = path
        self.vectors = {name: np.zeros(width, dtype) for name, dtype in VECTORS.items()}
        self.examples: dict[str, NDArray[np.float64]] = {}
        self._scratch: Path | None = None
        self.weight: NDArray[np.float32]
        if 4 * n_train * width <= _IN_MEMORY:
            self.weight = np.zeros((n_train, width), np.float32)
        else:
            self._scratch = _temporary(path)
            with writing(self._scratch):
                self.weight = np.memmap(self._scratch, np.float32, "w+", shape=(n_train, width))
                self._reserve(self._scratch)

    def _reserve(self, scratch: Path) -> None:
        """Take the scratch file's space now: a full disk would otherwise end the process with SIGBUS."""
        try:
            with open(scratch, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, self.weight.nbytes)
        except OSError:
            scratch.unlink()
            raise

    def put(self, start: int, weight: NDArray[np.float32], vectors: dict[str, NDArray[Any]]) -> None:
        """Set the targets from `start` on: weight [N_train, width of this part]."""
        stop = start + weight.shape[1]
        self.weight[:, start:stop] = weight
        for name, vector in self.vectors.items():
            vector[start:stop] = vectors[name]

    def scale(self, scale: Scale) -> None:
        """Keep how the masks were standardised."""
        self.examples = {"mean": scale.mean, "deviation": divide(np.ones_like(scale.inv), scale.inv)}

    def write(self, report: dict[str, Any]) -> Path:
        """Write .pt and .json, each whole or not at all, the .json last; returns the path of the .pt."""
        import torch

        stamp = hashlib.sha256(json.dumps(report, sort_keys=True).encode())
        arrays = {
            "weight": self.weight,
            **self.vectors,
            **self.examples,
            "stamp": np.frombuffer(stamp.digest(), np.uint8).copy(),
        }
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        with writing(self.path), replacing(self.path) as temporary:
            torch.save(tensors, temporary)
        with writing(self.path), replacing(self.path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps({"stamp": stamp.hexdigest(), **report}, indent=1) + "\n")
        return self.path

    def discard(self) -> None:
        """Remove the scratch file."""
        if self._scratch:
            self._scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def drafted(path: Path, n_train: int, width: int) -> Iterator[Draft]:
    """A Draft whose scratch file goes at the end; raises WorkError where the disk fails it."""
    draft = Draft(path, n_train, width)
    try:
        yield draft
    finally:
        draft.discard()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn OSError into WorkError."""
    try:
        yield
    except OSError as error:
        raise WorkError(f"cannot write {path}: {error.strerror or error}") from None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write, which takes the path's place once it is durable."""
    temporary = _temporary(path)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def pieces(store: Store, split: str) -> dict[tuple[int, int], dict[str, Any]]:
    """Reports of the pieces that lie beside the whole file, by their targets [A, B)."""
    pattern = re.compile(re.escape(path_of(store, split).stem) + r"\.(\d+)-(\d+)\.json")
    found = {}
    for file in sorted(path_of(store, split).parent.glob("*.json")):
        if match := pattern.fullmatch(file.name):
            targets = (int(match[1]), int(match[2]))
            if report := read_report(path_of(store, split, targets)):
                found[targets] = report
    return found


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a whole file while it is assembled."""
    with open(path.with_name(f".{path.stem}.lock"), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
