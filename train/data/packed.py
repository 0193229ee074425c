"""Packed forms of a data set: one file a split that opens at once, beside it a small JSON index.

`npy` is a plain uint8 array [N, height, width, 3] in the published column order that needs nothing to be read;
`beton-raw` and `beton-jpeg` are FFCV's files. The index holds the sha256 of the content, its shape, the labels, the
class names, and a stamp of what it was made from.
"""

import contextlib
import fcntl
import json
import multiprocessing
import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.train.data import beton
from datamodels.train.data.images import Images, Split, cores, nbytes
from datamodels.train.errors import UserError, WorkError
from datamodels.train.npy_file import (
    HEADER_BYTES,
    file_bytes,
    header,
    mapped,
    reserve,
    sync_folder,
    write_all,
    write_file,
)

FORMAT = "datamodels-pack-1"
SUFFIXES = {"npy": ".npy", "beton-raw": ".raw.beton", "beton-jpeg": ".jpeg.beton"}
BLOCK = 256
"""Images that are packed, or after an interruption kept, together."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Pack:
    """One packed split."""

    path: Path
    form: str

    @property
    def index(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def exists(self) -> bool:
        return self.index.exists() and self.path.exists()

    def read(self) -> tuple[Split, tuple[str, ...]]:
        """The split, mapped, and the class names. Raises UserError naming the file that is damaged."""
        index = self.read_index()
        labels = np.array(index["labels"], np.int64)
        if self.form == "npy":
            split = Split(_open_npy(self.path), labels)
        else:
            split = beton.read(self.path)
        if split.images.shape != tuple(index["shape"]) or not np.array_equal(split.labels, labels):
            raise UserError(
                f"{self.path} holds images {list(split.images.shape)} or labels of another data set than {self.index}, "
                f"which tells of {index['shape']}"
            )
        return split, tuple(index["classes"])

    def check(self, split: Split) -> None:
        """Read everything and compare it with the index. Raises UserError."""
        expected = self.read_index()["sha256"]
        if split.sha256 != expected:
            raise UserError(
                f"{self.path} is damaged: its content has sha256 {split.sha256}, expected {expected}; delete it and "
                "pack again with `datamodels data`"
            )

    def read_index(self) -> dict[str, Any]:
        try:
            index = json.loads(self.index.read_bytes())
            if index["format"] != FORMAT:
                raise UserError(f"{self.index} has the format {index['format']!r}, expected {FORMAT!r}")
            return {key: index[key] for key in ("sha256", "shape", "labels", "classes", "stamp")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.index} is not an index of packed images ({error})") from None

    def write(self, split: Split, classes: tuple[str, ...], progress: Progress) -> None:
        """Pack a split; nothing where it is packed already. Raises UserError, WorkError.

        An interrupted `npy` goes on with the blocks that are missing, FFCV's files are written anew.
        """
        stamp = split.stamp
        if self.exists() and self.read_index()["stamp"] == stamp:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.path.with_name(f"{self.path.name}.part")) as part:
                if self.form == "npy":
                    _write_npy(part, split.images, stamp, lambda done, of: progress(f"packing {self.path}", done, of))
                else:
                    _write_beton(part, split, self.form)
                    progress(f"packing {self.path}", len(split.labels), len(split.labels))
                self._finish(part, split, classes, stamp)
        except OSError as error:
            raise WorkError(f"cannot pack {self.path}: {error.strerror or error}") from None

    def _finish(self, part: Path, split: Split, classes: tuple[str, ...], stamp: str) -> None:
        images = _open_npy(part) if self.form == "npy" else beton.read(part).images
        index = {
            "format": FORMAT,
            "sha256": Split(images, split.labels).sha256,
            "shape": list(split.images.shape),
            "stamp": stamp,
            "classes": list(classes),
            "labels": split.labels.tolist(),
        }
        self.index.unlink(missing_ok=True)
        os.replace(part, self.path)
        sync_folder(self.path.parent)
        write_file(self.index, json.dumps(index).encode())
        _journal(part).unlink(missing_ok=True)


def _open_npy(path: Path) -> np.memmap:
    array = mapped(path)
    if array.dtype != np.uint8 or array.ndim != 4 or not array.flags.c_contiguous:
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}, expected uint8 [N, height, width, channels]")
    return array


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[Path]:
    """The unfinished file, made where there is none and locked. Raises UserError where another process packs it."""
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{part} is being written by another process") from None
        yield part


def _journal(part: Path) -> Path:
    return part.with_name(f"{part.name}.blocks")


def _write_npy(part: Path, images: Images, stamp: str, progress: Callable[[int, int], None]) -> None:
    """Write the blocks that a former attempt has not written, each with its checksum told to a journal."""
    dtype, count = np.dtype(np.uint8), len(images)
    fd = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    try:
        done = _blocks_done(fd, part, images, stamp)
        if not done:
            write_file(_journal(part), f"{stamp}\n".encode())
        reserve(fd, file_bytes(images.shape, dtype), True, lambda text: None)
        write_all(fd, header(images.shape, dtype), 0)
        with open(_journal(part), "a") as journal:
            for start in range(0, count, BLOCK):
                if start not in done:
                    block = np.ascontiguousarray(images[start : start + BLOCK])
                    write_all(fd, block.data, _offset(images, start))
                    journal.write(f"{start} {zlib.crc32(block.data)}\n")
                    journal.flush()
                progress(min(start + BLOCK, count), count)
        os.fsync(fd)
    finally:
        os.close(fd)


def _offset(images: Images, position: int) -> int:
    return HEADER_BYTES + position * (nbytes(images) // len(images))


def _blocks_done(fd: int, part: Path, images: Images, stamp: str) -> set[int]:
    """The first images of the blocks that the journal tells of and the file still holds."""
    try:
        lines = _journal(part).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    if not lines or lines[0] != stamp:
        return set()
    told = [line.split() for line in lines[1:]]
    done = set()
    for start, crc in ((int(words[0]), words[1]) for words in told if len(words) == 2 and words[0].isdecimal()):
        first, last = (_offset(images, min(position, len(images))) for position in (start, start + BLOCK))
        if str(zlib.crc32(os.pread(fd, last - first, first))) == crc:
            done.add(start)
    return done


def _write_beton(part: Path, split: Split, form: str) -> None:
    """Run FFCV's writer, with its own bar on a terminal.

    In a fresh process of its own: it forks, and is best ended with all its workers. Raises UserError, WorkError.
    """
    spawn = multiprocessing.get_context("spawn")
    answer, question = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_run_ffcv, args=(question, part, split, form))
    process.start()
    assert process.pid is not None
    question.close()
    try:
        problem = answer.recv()
        process.join()
        kind: type[Exception] = UserError
    except EOFError:
        process.join()
        kind, problem = WorkError, f"FFCV's writer of {part} ended with exit code {process.exitcode}"
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        raise
    if problem:
        part.unlink()
        raise kind(problem)


def _run_ffcv(question: Connection, part: Path, split: Split, form: str) -> None:
    """Leads a process group; tells of a problem, or of none."""
    os.setsid()
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"
    problem = ""
    try:
        beton.write(part, split, "raw" if form == "beton-raw" else "jpg", cores())
    except ImportError:
        problem = f"data.form is {form!r}: writing it needs FFCV, `pip install .[ffcv]`"
    except UserError as error:
        problem = str(error)
    question.send(problem)
