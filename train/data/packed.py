"""A data set packed for reading: one .npy file a split that is mapped at once, beside it a small JSON index.

The file is a plain uint8 array [N, height, width, 3] in the published column order. The index holds the sha256 of the
content, its shape, the labels, the class names, and a stamp of what it was made from.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.train.data.images import Images, Split, chunks, nbytes
from datamodels.train.errors import UserError, WorkError
from datamodels.train.npy_file import HEADER_BYTES, mapped, new_file, opened, sync_folder, write_all, write_file

FORMAT = "datamodels-pack-1"

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many images are done, and of how many."""


@dataclass(frozen=True)
class Pack:
    """One packed split."""

    path: Path

    @property
    def index(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def exists(self) -> bool:
        return self.index.exists() and self.path.exists()

    def read(self) -> tuple[Split, tuple[str, ...]]:
        """Return the split, mapped, and the class names, compared with the index.

        Raises UserError naming the file that is damaged.
        """
        index = self.read_index()
        split = Split(_open(self.path), np.array(index["labels"], np.int64))
        if list(split.images.shape) != index["shape"] or len(split.labels) != len(split.images):
            raise UserError(
                f"{self.path} holds images {list(split.images.shape)}, but {self.index} records {index['shape']} and "
                f"{len(split.labels)} labels"
            )
        if split.sha256 != index["sha256"]:
            raise UserError(
                f"{self.path} is damaged: its content has sha256 {split.sha256}, expected {index['sha256']}; delete it "
                "and pack again with `datamodels data`"
            )
        return split, tuple(index["classes"])

    def read_index(self) -> dict[str, Any]:
        """Return the index. Raises UserError."""
        try:
            index = json.loads(self.index.read_bytes())
            if index["format"] != FORMAT:
                raise UserError(f"{self.index} has the format {index['format']!r}, expected {FORMAT!r}")
            return {key: index[key] for key in ("sha256", "shape", "labels", "classes", "stamp")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.index} is not an index of packed images ({error})") from None

    def write(self, split: Split, classes: tuple[str, ...], progress: Progress) -> None:
        """Pack a split; nothing where it is packed already. Raises UserError, WorkError.

        Files appear when they are complete; an interrupted packing begins again.
        """
        stamp = split.stamp
        if self.exists() and self.read_index()["stamp"] == stamp:
            return
        part = self.path.with_name(f"{self.path.name}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(part):
                _write(part, split.images, lambda done, of: progress(f"packing {self.path}", done, of))
                index = {
                    "format": FORMAT,
                    "sha256": Split(_open(part), split.labels).sha256,
                    "shape": list(split.images.shape),
                    "stamp": stamp,
                    "classes": list(classes),
                    "labels": split.labels.tolist(),
                }
                self.index.unlink(missing_ok=True)
                os.replace(part, self.path)
                sync_folder(self.path.parent)
                write_file(self.index, json.dumps(index).encode())
        except OSError as error:
            raise WorkError(f"cannot pack {self.path}: {error.strerror or error}") from None


def _open(path: Path) -> np.memmap:
    array = mapped(path)
    if array.dtype != np.uint8 or array.ndim != 4 or not array.flags.c_contiguous:
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}, expected uint8 [N, height, width, channels]")
    return array


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Make the unfinished file where there is none, and lock it. Raises UserError where another process packs it."""
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{part} is being written by another process") from None
        yield


def _write(path: Path, images: Images, progress: Callable[[int, int], None]) -> None:
    """Write all images to a .npy file. Raises OSError, UserError."""
    new_file(path, images.shape, np.dtype(np.uint8), True, lambda text: None, os.O_TRUNC)
    with opened(path, os.O_RDWR) as fd:
        done = 0
        for chunk in chunks(images):
            write_all(fd, np.ascontiguousarray(chunk).data, HEADER_BYTES + done * (nbytes(images) // len(images)))
            done += len(chunk)
            progress(done, len(images))
        os.fsync(fd)
