"""Creating a store, and lengthening one.

`init` works under names of its own attempt, and the manifest gets its final name last: a store is there completely or
not at all. `_completed` is the first to get its final name, so that arrays without a manifest are never taken for
published data. No name is taken from a file that has it, so that two `init` that meet, even without locks, never undo
each other's store.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodels.train.config import Setting
from datamodels.train.data import Dataset
from datamodels.train.errors import UserError, WorkError
from datamodels.train.masks import Masks
from datamodels.train.npy_file import Notice, header, rename_new, reserve, sync_folder, write_all, write_file
from datamodels.train.store.layout import UNFINISHED, Layout, temporary
from datamodels.train.store.locks import LockFile, store_lock
from datamodels.train.store.manifest import (
    Array,
    Manifest,
    array_list,
    check_data,
    check_identity,
    new_manifest,
    read_manifest,
)
from datamodels.train.store.row_state import RowStates
from datamodels.train.store.store import Store, open_own, refuse_orphans, refuse_published


def create_store(layout: Layout, setting: Setting, dataset: Dataset, notice: Notice) -> Store:
    """The store of a setting, created where there is none yet. Raises UserError, and then leaves the disk unchanged."""
    layout.refuse_links()
    if layout.manifest.exists():
        store = open_own(layout, setting)
        check_data(store.manifest, dataset)
        with contextlib.suppress(OSError):
            for path in layout.intents:  # of an `init` that was killed just when it was done
                path.unlink(missing_ok=True)
        return store
    Masks(setting, len(dataset.train.labels))
    _refuse_others(layout)
    _check_memory(layout, setting.rows)
    rows, classes = setting.rows, dataset.classes
    arrays = array_list(setting, rows, len(dataset.train.labels), len(dataset.test.labels), len(classes))
    arrays.insert(0, Array("_completed", (rows,), np.dtype(bool)))
    if setting.outputs.preallocate:
        _check_space(layout.data, sum(array.bytes for array in arrays))
    manifest = new_manifest(
        setting, dataset.sha256(), len(dataset.train.labels), len(dataset.test.labels), dataset.classes
    )
    with _new_folder(layout), store_lock(layout.lock) as lock:
        if not layout.manifest.exists():
            _refuse_others(layout)
            _remove_unfinished(layout, lock)
            _create(layout, setting, manifest, arrays, notice)
        sync_folder(layout.data)
    return open_own(layout, setting)


def _refuse_others(layout: Layout) -> None:
    """Raises UserError where files lie there that are not an interrupted `init` of ours."""
    intents = layout.intents
    if intents and (layout.completed.exists() or not layout.arrays):
        return
    if not intents:
        refuse_orphans(layout)
    refuse_published(layout)


def _check_memory(layout: Layout, rows: int) -> None:
    """Raises UserError where a store of so many rows could be created, but not opened here."""
    try:
        RowStates(layout.journals, 2 * rows, "")
    except UserError:
        raise UserError(f"{rows:,} rows (models and eval_models) take more memory than there is here") from None


def _remove_unfinished(layout: Layout, lock: LockFile) -> None:
    """Remove what an interrupted `init` left, but for its intent; no row can have been written before the manifest.

    `_completed` goes last: what a kill leaves is known by it. Raises UserError where locks do not work: then that
    `init` may still be at work.
    """
    left = [*_temporaries(layout), *reversed(layout.arrays.values())]
    left += [path for path in (layout.completed,) if path.exists()]
    if not lock.works and (found := left + layout.intents):
        raise UserError(
            f"{found[-1]} is of an `init` that was interrupted, or is still at work: without file locks nobody can "
            f"tell. Once none is, remove it and all else of {layout.pct}pct in that folder"
        )
    for path in left:
        path.unlink(missing_ok=True)


def _temporaries(layout: Layout) -> list[Path]:
    """Files of this setting with names that are not final, but for intents."""
    own = f"*_{layout.pct}pct.npy.*{UNFINISHED}", f"{layout.manifest.name}.*.tmp"
    return [path for pattern in own for path in sorted(layout.data.glob(pattern))]


class _Init:
    """One attempt at a store: files under names of its own, which take their final names one by one, if nobody has."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.attempt = secrets.token_hex(4)
        self.names: list[Path] = []
        self.published: dict[Path, os.stat_result] = {}

    def create(self, manifest: Manifest, arrays: Sequence[Array], preallocate: bool, notice: Notice) -> None:
        """Raises OSError that names a file; what was made must then be undone."""
        before = self.layout.intents
        write_file(self._temporary(self.layout.manifest), manifest.encode())
        for path in before:
            path.unlink(missing_ok=True)
        self.layout.journals.mkdir(exist_ok=True)
        notices = set[str]()
        for array in arrays:
            path = self.layout.array(array.name)
            _create_array(self._temporary(path), array, preallocate, notices.add)
        for text in notices:
            notice(text)
        sync_folder(self.layout.data)
        for path in [*(self.layout.array(array.name) for array in arrays), self.layout.manifest]:
            self._publish(path)

    def _temporary(self, path: Path) -> Path:
        self.names.append(temporary(path, self.attempt))
        return self.names[-1]

    def _publish(self, path: Path) -> None:
        made = temporary(path, self.attempt)
        self.published[path] = made.stat()
        rename_new(made, path)
        sync_folder(self.layout.data)

    def undo(self) -> None:
        """Take back what has been made, its intent last; files of others are left alone."""
        intent, *others = self.names or [temporary(self.layout.manifest, self.attempt)]
        if not self.layout.manifest.exists():
            for path, status in reversed(self.published.items()):
                if path.exists() and os.path.samestat(path.stat(), status):
                    path.unlink()
            with contextlib.suppress(OSError):  # an `init` that came first may use it
                self.layout.journals.rmdir()
        for path in [*reversed(others), intent]:
            path.unlink(missing_ok=True)


def _create(layout: Layout, setting: Setting, manifest: Manifest, arrays: Sequence[Array], notice: Notice) -> None:
    attempt = _Init(layout)
    try:
        attempt.create(manifest, arrays, setting.outputs.preallocate, notice)
    except BaseException as error:
        with contextlib.suppress(OSError):
            attempt.undo()
        if isinstance(error, FileExistsError):
            raise UserError(f"{error.filename2 or error.filename} is being created by another process") from None
        if isinstance(error, OSError):
            raise UserError(f"cannot create {error.filename or layout.data}: {error.strerror or error}") from None
        raise


def _create_array(path: Path, array: Array, preallocate: bool, notice: Notice) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        reserve(fd, array.bytes, preallocate, notice)
        write_all(fd, header(array.shape, array.dtype), 0)
        os.fsync(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(fd)


def _check_space(folder: Path, needed: int) -> None:
    """Raises UserError with the numbers where the disk is too small for `needed` more bytes."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the store needs {needed:,} bytes ({needed / 1e9:.1f} GB), but the disk of {folder} has {free:,} free "
            f"({free / 1e9:.1f} GB)"
        )


@contextlib.contextmanager
def _new_folder(layout: Layout) -> Iterator[None]:
    """Create a store's folder, and on failure remove again what was created. Raises UserError."""
    folder = layout.data
    created = []
    try:
        for path in [*reversed(folder.parents), folder]:
            if not path.exists():
                path.mkdir(exist_ok=True)
                created.append(path)
                sync_folder(path.parent)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            if created and not layout.manifest.exists():
                layout.lock.unlink(missing_ok=True)
            for path in reversed(created):
                path.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"cannot write to {error.filename or folder}: {error.strerror}") from None
        raise


def grow(layout: Layout, setting: Setting, models: int, notice: Notice) -> Store:
    """Lengthen a setting to `models` estimation rows; former evaluation rows become estimation rows.

    Files are extended first, then the manifest is replaced, then the headers: killed at any point, the store is the old
    one or the new one, and `open_own` writes the headers that are still due. Raises UserError.
    """
    layout.refuse_links()
    with _lock_for_growth(layout):
        manifest = read_manifest(layout.manifest)
        check_identity(manifest, replace(setting, models=manifest.models), layout.manifest)
        Store(layout, setting, manifest).check_arrays()
        for path in [*_temporaries(layout), *layout.intents]:
            path.unlink(missing_ok=True)
        if models != manifest.models:
            _check_growth(manifest, setting, models)
            grown = manifest.grown(models)
            _extend(layout, setting, manifest, grown, notice)
            _replace_manifest(layout, grown)
    return open_own(layout, setting)


@contextlib.contextmanager
def _lock_for_growth(layout: Layout) -> Iterator[None]:
    read_manifest(layout.manifest)
    try:
        with store_lock(layout.lock):
            yield
    except OSError as error:
        raise UserError(f"cannot write to {error.filename or layout.data}: {error.strerror}") from None


def _replace_manifest(layout: Layout, grown: Manifest) -> None:
    try:
        grown.write(layout.manifest)
    except OSError as error:
        raise WorkError(f"cannot replace {layout.manifest}: {error.strerror}") from None


def _check_growth(manifest: Manifest, setting: Setting, models: int) -> None:
    era = manifest.eras[-1]
    if models < era.models:
        raise UserError(f"models is {models}, but the store already has {era.models}: it can only grow")
    runs = setting.runs_per_mask
    if models < era.rows and (models - era.models) % runs:
        raise UserError(
            f"models is {models}, which divides evaluation rows that share a mask (runs_per_mask is {runs}): "
            f"expected {era.models} plus a multiple of {runs}, or at least {era.rows}"
        )


def _extend(layout: Layout, setting: Setting, old: Manifest, new: Manifest, notice: Notice) -> None:
    flags = [Array("_completed", (manifest.rows,), np.dtype(bool)) for manifest in (old, new)]
    pairs = list(zip([flags[0], *old.arrays(setting)], [flags[1], *new.arrays(setting)], strict=True))
    if setting.outputs.preallocate:
        _check_space(layout.data, sum(after.bytes - before.bytes for before, after in pairs))
    for _, array in pairs:
        path = layout.array(array.name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                reserve(fd, array.bytes, setting.outputs.preallocate, notice)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise WorkError(f"cannot lengthen {path}: {error.strerror}; the store is unchanged") from None
