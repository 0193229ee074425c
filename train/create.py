"""Creating a store, and lengthening one.

`init` works under temporary names, and the manifest gets its final name last: a store is there completely or not at
all. `_completed` is the first to get its final name, so that arrays without a manifest are never taken for published
data.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from train.config import Setting
from train.data import Dataset
from train.errors import UserError, WorkError
from train.layout import ARRAY_NAMES, Layout, temporary
from train.locks import store_lock
from train.manifest import Array, Manifest, array_list, check_identity, new_manifest, read_manifest
from train.masks import Masks
from train.npy import Notice, header, reserve, sync_folder, write_all, write_file
from train.store import Store, open_own, refuse_orphans


def create_store(layout: Layout, setting: Setting, dataset: Dataset, notice: Notice) -> Store:
    """The store of a setting, created where there is none yet. Raises UserError, and then leaves the disk unchanged."""
    layout.refuse_links(layout.data, *layout.files)
    if layout.manifest.exists():
        store = open_own(layout, setting)
        check_data(store.manifest, dataset)
        return store
    Masks(setting, len(dataset.train.labels))
    _refuse_others(layout)
    rows, classes = setting.rows, dataset.classes
    arrays = array_list(setting, rows, len(dataset.train.labels), len(dataset.test.labels), len(classes))
    arrays.insert(0, Array("_completed", (rows,), np.dtype(bool)))
    if setting.outputs.preallocate:
        _check_space(layout.data, sum(array.bytes for array in arrays))
    manifest = new_manifest(
        setting, dataset.sha256(), len(dataset.train.labels), len(dataset.test.labels), dataset.classes
    )
    with _new_folder(layout), store_lock(layout.lock):
        if not layout.manifest.exists():
            _refuse_others(layout)
            _create(layout, setting, manifest, arrays, notice)
        sync_folder(layout.data)
    return open_own(layout, setting)


def check_data(manifest: Manifest, dataset: Dataset) -> None:
    """Raises UserError where the data set is not the one the store was created with."""
    found = dataset.sha256()
    if found != manifest.data_sha256:
        raise UserError(
            f"the data set in {dataset.where} has sha256 {found}, but the store was created with {manifest.data_sha256}"
        )


def _refuse_others(layout: Layout) -> None:
    """Raises UserError where files lie there that are not an interrupted `init` of ours."""
    if layout.intent.exists() and (layout.completed.exists() or not _published(layout)):
        return
    if not layout.intent.exists():
        refuse_orphans(layout)
    for path in _published(layout):
        raise UserError(f"{path} exists without a manifest: published files are never overwritten, use another --root")


def _published(layout: Layout) -> list[Path]:
    return [path for name in ARRAY_NAMES if (path := layout.array(name)).exists()]


def _create(layout: Layout, setting: Setting, manifest: Manifest, arrays: Sequence[Array], notice: Notice) -> None:
    names = [layout.array(array.name) for array in arrays]
    try:
        # Left-overs of an interrupted init: no row can have been written before the manifest was there.
        _remove(layout, names)
        write_file(layout.intent, manifest.encode())
        layout.journals.mkdir(exist_ok=True)
        notices = set[str]()
        for path, array in zip(names, arrays, strict=True):
            _create_array(temporary(path), array, setting.outputs.preallocate, notices.add)
        for text in notices:
            notice(text)
        sync_folder(layout.data)
        for path in names:
            os.rename(temporary(path), path)
            sync_folder(layout.data)
        os.rename(layout.intent, layout.manifest)
    except BaseException as error:
        with contextlib.suppress(OSError):
            _remove(layout, names)
            layout.intent.unlink(missing_ok=True)
            layout.journals.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"cannot create the store in {layout.data}: {error.strerror or error}") from None
        raise


def _remove(layout: Layout, names: Sequence[Path]) -> None:
    """Remove arrays, the first one last: what a kill leaves of them is known by it as an unfinished `init`."""
    for path in [*map(temporary, names), *reversed(names)]:
        path.unlink(missing_ok=True)
    _remove_temporary_manifests(layout)


def _remove_temporary_manifests(layout: Layout) -> None:
    for path in layout.data.glob(f"{layout.manifest.name}.*tmp"):
        path.unlink(missing_ok=True)


def _create_array(path: Path, array: Array, preallocate: bool, notice: Notice) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        reserve(fd, array.bytes, preallocate, notice)
        write_all(fd, header(array.shape, array.dtype), 0)
        os.fsync(fd)
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
    layout.refuse_links(layout.data, *layout.files)
    with _lock_for_growth(layout):
        _remove_temporary_manifests(layout)
        manifest = read_manifest(layout.manifest)
        check_identity(manifest, replace(setting, models=manifest.models), layout.manifest)
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
