"""Simulated power loss: a run's writes and syncs are recorded, and the disk rebuilt as it may look at any moment.

What was synced is on the disk. Of what was not, any subset of pages (or of 512-byte sectors, each in any version it
went through), any of the file sizes, and any prefix or subset of the changes of names may have reached it.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from datamodels.train import npy_file
from datamodels.train.npy_file import RowFile
from datamodels.train.store import writer
from tests.faults.stores import check, check_end, script

PAGE, SECTOR = 4096, 512
CALLS = ("open", "pwrite", "ftruncate", "fsync", "fdatasync", "rename", "replace", "link", "unlink", "mkdir", "rmdir")

Change = tuple[str | None, str | None, "File | None"]
"""A change of names: (name that goes, name that comes, what it names)."""


class File:
    """One file: what the disk has of it for certain, and what it may have."""

    def __init__(self, path: Path | None = None) -> None:
        self.now = bytearray(path.read_bytes() if path else b"")
        self.sync()

    def write(self, offset: int, data: bytes) -> None:
        self.resize(max(len(self.now), offset + len(data)))
        self.now[offset : offset + len(data)] = data
        for page in range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1):
            self.versions.setdefault(page, []).append(bytes(self.now[page * PAGE : (page + 1) * PAGE]))

    def resize(self, size: int) -> None:
        if size != len(self.now):
            self.now = self.now[:size].ljust(size, b"\0")
            self.sizes.append(size)

    def sync(self) -> None:
        self.durable, self.sizes = bytes(self.now), [len(self.now)]
        self.versions: dict[int, list[bytes]] = {}

    def after_cut(self, rng: random.Random) -> bytes:
        size = rng.choice(self.sizes)
        content = bytearray(self.durable[:size].ljust(size, b"\0"))
        unit, share = rng.choice((PAGE, SECTOR)), rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for page, versions in self.versions.items():
            for start in range(0, PAGE, unit):
                if rng.random() < share:
                    piece = rng.choice((versions[-1], rng.choice(versions)))[start : start + unit]
                    content[page * PAGE + start : page * PAGE + start + len(piece)] = piece
        return bytes(content[:size])


class Disk:
    """Names (relative to the root, '' itself; None stands for a folder) and the files behind them."""

    def __init__(self, root: Path) -> None:
        found = {str(path.relative_to(root)): File(path) if path.is_file() else None for path in root.rglob("*")}
        self.live: dict[str, File | None] = {"": None, **found}
        self.durable = dict(self.live)
        self.pending: list[Change] = []

    def change(self, gone: str | None, new: str | None, what: File | None) -> None:
        _apply(self.live, (gone, new, what))
        self.pending.append((gone, new, what))

    def sync_folder(self, folder: str) -> None:
        inside = [any(name and os.path.dirname(name) == folder for name in change[:2]) for change in self.pending]
        for change, durable in zip(self.pending, inside, strict=True):
            if durable:
                _apply(self.durable, change)
        self.pending = [change for change, durable in zip(self.pending, inside, strict=True) if not durable]

    def cut(self, root: Path, rng: random.Random) -> None:
        """Lay a disk as it may look after a power cut now into an empty folder."""
        names = dict(self.durable)
        some = rng.sample(range(len(self.pending)), rng.randint(0, len(self.pending)))
        for index in sorted(some) if rng.random() < 0.5 else range(len(some)):
            _apply(names, self.pending[index])
        _lay(root, names, lambda file: file.after_cut(rng))

    def all(self, root: Path) -> None:
        """Lay the disk as it is if everything done so far reached it."""
        _lay(root, self.live, lambda file: bytes(file.now))

    def least(self, root: Path) -> None:
        """Lay the disk as it is if nothing reached it but what was synced."""
        _lay(root, self.durable, lambda file: file.durable)


def _lay(root: Path, names: dict[str, File | None], content: Callable[[File], bytes]) -> None:
    for name, file in sorted(names.items()):
        if name and (root / name).parent.is_dir():
            if file is None:
                (root / name).mkdir()
            else:
                (root / name).write_bytes(content(file))


def _apply(names: dict[str, File | None], change: Change) -> None:
    gone, new, what = change
    if gone is not None:
        names.pop(gone, None)
    if new is not None:
        names[new] = what


class Recorder:
    """Carries out what is asked of the operating system below a root, and mirrors it on a Disk."""

    def __init__(self, root: Path, look: Callable[["Recorder"], None]) -> None:
        self.root = str(root)
        self.look = look
        """Called after each change, with the operating system as it was."""
        self.disk = Disk(root)
        self.acknowledged: dict[int, int] = {}
        self.handles: dict[int, Any] = {}
        self.real = {name: getattr(os, name) for name in CALLS}

    def step(self) -> None:
        with mock.patch.multiple(os, **self.real):
            self.look(self)

    @contextmanager
    def recording(self) -> Iterator[None]:
        calls = {name: getattr(self, name) for name in CALLS}
        no_fallocate = mock.patch.object(npy_file, "_fallocate", return_value=False)
        with mock.patch.multiple(os, **calls), no_fallocate, one_after_the_other():
            yield

    def ack(self, row: int, generation: int) -> None:
        self.acknowledged[row] = generation
        self.step()

    def name(self, path: Any) -> str:
        return os.path.relpath(os.fspath(path), self.root).removeprefix(".")

    def open(self, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        name = self.name(path)
        fd = self.real["open"](path, flags, *rest, **options)
        if flags & os.O_CREAT and name not in self.disk.live:
            self.disk.change(None, name, File())
            self.step()
        self.handles[fd] = self.disk.live.get(name) or name
        return fd

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        written = self.real["pwrite"](fd, data, offset)
        self.handles[fd].write(offset, bytes(data)[:written])
        self.step()
        return written

    def ftruncate(self, fd: int, size: int) -> None:
        self.real["ftruncate"](fd, size)
        self.handles[fd].resize(size)
        self.step()

    def fsync(self, fd: int) -> None:
        if isinstance(handle := self.handles[fd], File):
            handle.sync()
        else:
            self.disk.sync_folder(handle)
        self.step()

    fdatasync = fsync

    def rename(self, source: Any, target: Any) -> None:
        self.real["rename"](source, target)
        self.disk.change(self.name(source), self.name(target), self.disk.live[self.name(source)])
        self.step()

    replace = rename

    def link(self, source: Any, target: Any) -> None:
        self.real["link"](source, target)
        self.disk.change(None, self.name(target), self.disk.live[self.name(source)])
        self.step()

    def unlink(self, path: Any, **options: Any) -> None:
        self.real["unlink"](path, **options)
        self.disk.change(self.name(path), None, None)
        self.step()

    def mkdir(self, path: Any, *rest: Any, **options: Any) -> None:
        self.real["mkdir"](path, *rest, **options)
        self.disk.change(None, self.name(path), None)
        self.step()

    def rmdir(self, path: Any, **options: Any) -> None:
        self.real["rmdir"](path, **options)
        self.disk.change(self.name(path), None, None)
        self.step()


@contextmanager
def one_after_the_other() -> Iterator[None]:
    """Files are synced in their order, so that what happened first is told."""

    def sync(files: Sequence[RowFile], row: int) -> None:
        for file in files:
            file.sync(row)

    with mock.patch.object(writer, "sync_all", sync):
        yield


def power_loss(folder: Path, each: int, seed: int = 0, resume_every: int = 100) -> tuple[int, int]:
    """Cut the power in `each` ways after every event of the script: with everything done so far on the disk, with
    what was synced alone, and otherwise at random.

    Returns the number of disks looked at, and of completed rows on them, all of which were right.
    """
    rng = random.Random(seed)
    states = rows = 0

    def look(recorder: Recorder) -> None:
        nonlocal states, rows
        disk = recorder.disk
        ways = [disk.all, disk.least, *[lambda place: disk.cut(place, rng)] * (each - 2)]
        for lay in ways:
            place = folder / "cut"
            place.mkdir()
            lay(place)
            rows += check(place, recorder.acknowledged)
            states += 1
            if states % resume_every == 0:
                check_end(place)
            shutil.rmtree(place)

    assert each >= 2
    (folder / "root").mkdir()
    recorder = Recorder(folder / "root", look)
    with recorder.recording():
        script(folder / "root", recorder.ack)
    check_end(folder / "root")
    return states, rows
