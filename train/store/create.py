"""Creating a store, and lengthening one.

`init` works under names of its own attempt, and the manifest gets its final name last: a store is there completely or
not at all. The folder of the journals is there before any array, so that arrays without a manifest are never taken for
published data. No file is replaced, so that two `init` that meet, even without locks, never undo each other's store.
"""

import contextlib
import errno
import os
import secrets
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from datamodels.train.config import Setting
from datamodels.train.errors import UserError, WorkError
from datamodels.train.masks import Era, Masks
from datamodels.train.npy_file import Notice, new_file, opened, rename_new, reserve, sync_folder, write_file
from datamodels.train.outputs import Declared
from datamodels.train.store.layout import UNFINISHED, Layout, temporary
from datamodels.train.store.locks import LockFile, store_lock
from datamodels.train.store.manifest import Array, Manifest, check_identity, read_manifest, versions
from datamodels.train.store.row_state import RowStates
from datamodels.train.store.store import Store
from datamodels.train.values import expanded


def create_store(
    layout: Layout, setting: Setting, declared: Declared, notice: Notice, eras: tuple[Era, ...] = ()
) -> Store:
    """Return the store of a setting, created if it does not exist. Raises UserError, and then the disk is unchanged.

    eras: of a new store, every length that the setting has had, if it has had others than its present one.
    """
    layout.refuse_links()
    if layout.manifest.exists():
        store = Store.open(layout, setting)
        store.check_declared(declared)
        with contextlib.suppress(OSError):
            for path in layout.intents:  # of an `init` that was killed just when it was done
                path.unlink(missing_ok=True)
        return store
    Masks(setting, declared.n_train)  # raises UserError for an alpha that does not fit
    _refuse_others(layout)
    try:
        RowStates(layout.journals, 2 * setting.rows, "")
    except UserError:
        raise UserError(f"{setting.rows:,} rows (models and eval_models) take more memory than there is here") from None
    manifest = Manifest(
        id=uuid.uuid4().hex,
        config=setting.to_dict(),
        versions=versions(),
        data_sha256=declared.sha256,
        n_train=declared.n_train,
        n_test=declared.n_test,
        classes=declared.classes,
        outputs=declared.outputs if setting.trainer else (),
        group=setting.recipe.group,
        eras=eras or (Era(setting.models, setting.eval_models),),
    )
    arrays = manifest.files(setting)
    if setting.outputs.preallocate:
        check_space(layout.data, sum(array.bytes for array in arrays))
    with _new_folder(layout), store_lock(layout.lock) as lock:
        if not layout.manifest.exists():
            _refuse_others(layout)
            _remove_unfinished(layout, lock)
            _create(layout, setting, manifest, arrays, notice)
            for split, names in declared.names.items():
                if not layout.names(split).exists():
                    write_file(layout.names(split), "".join(f"{name}\n" for name in names).encode())
        sync_folder(layout.data)
    return Store.open(layout, setting)


def _refuse_others(layout: Layout) -> None:
    """Raises UserError where files lie there that are not of an interrupted `init`."""
    if not (layout.intents and (layout.completed.exists() or not layout.arrays)):
        if not layout.intents:
            layout.refuse_orphans()
        layout.refuse_published()


def _remove_unfinished(layout: Layout, lock: LockFile) -> None:
    """Remove what an interrupted `init` left, but for its intent; no row can have been written before the manifest.

    `_completed` goes last: what a kill leaves is known by it. Raises UserError where locks do not work: then that
    `init` may still be at work.
    """
    left = [*_temporaries(layout), *reversed(layout.arrays.values())]
    left += [path for path in (layout.groups, layout.completed) if path.exists()]
    if not lock.works and (found := left + layout.intents):
        raise UserError(
            f"{found[-1]} is of an `init` that was interrupted or is still running: without file locks there is no "
            f"way to know. Once none is running, remove it and the other files of {layout.tag} in that folder"
        )
    for path in left:
        path.unlink(missing_ok=True)


def _temporaries(layout: Layout) -> list[Path]:
    """Return the files of this setting with names that are not final, but for intents."""
    patterns = f"*_{layout.tag}.npy.*{UNFINISHED}", f"{layout.manifest.name}.*.tmp"
    return [path for pattern in patterns for path in sorted(layout.data.glob(pattern))]


def _create(layout: Layout, setting: Setting, manifest: Manifest, arrays: Sequence[Array], notice: Notice) -> None:
    """Make all files under names of this attempt, then give them their final names, if nobody has taken those.

    Raises UserError that names a file, and then takes back what it made.
    """
    attempt = secrets.token_hex(4)
    intent = temporary(layout.manifest, attempt)
    made = {layout.array(array.name): temporary(layout.array(array.name), attempt) for array in arrays}
    published: dict[Path, os.stat_result] = {}
    notices = set[str]()
    try:
        before = layout.intents
        write_file(intent, manifest.encode())
        for path in before:
            path.unlink(missing_ok=True)
        layout.journals.mkdir(exist_ok=True)
        for array in arrays:
            path = made[layout.array(array.name)]
            new_file(path, array.shape, array.dtype, setting.outputs.preallocate, notices.add, os.O_EXCL)
        if setting.groups:
            made[layout.groups] = temporary(layout.groups, attempt)
            write_file(made[layout.groups], expanded(setting.groups, "groups").read_bytes())
        for text in notices:
            notice(text)
        sync_folder(layout.data)
        for path, source in [*made.items(), (layout.manifest, intent)]:
            published[path] = source.stat()
            rename_new(source, path)
            sync_folder(layout.data)
    except BaseException as error:
        with contextlib.suppress(OSError):
            _undo(layout, published, [*reversed(made.values()), intent])
        if isinstance(error, FileExistsError):
            raise UserError(f"{error.filename2 or error.filename} is being created by another process") from None
        if isinstance(error, OSError):
            raise UserError(f"cannot create {error.filename or layout.data}: {error.strerror or error}") from None
        raise


def _undo(layout: Layout, published: dict[Path, os.stat_result], made: Sequence[Path]) -> None:
    """Remove what an attempt has made, its intent last; files of others are left alone."""
    if not layout.manifest.exists():
        for path, status in reversed(published.items()):
            if path.exists() and os.path.samestat(path.stat(), status):
                path.unlink()
        with contextlib.suppress(OSError):  # an `init` that came first may use it
            layout.journals.rmdir()
    for path in made:
        path.unlink(missing_ok=True)


def check_space(folder: Path, needed: int) -> None:
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
    one or the new one, and `Store.open` writes the headers that are still due. Raises UserError, WorkError.
    """
    layout.refuse_links()
    read_manifest(layout.manifest)
    try:
        with store_lock(layout.lock):
            manifest = read_manifest(layout.manifest)
            check_identity(manifest, replace(setting, models=manifest.models), layout.manifest)
            Store(layout, setting, manifest).check_arrays()
            for path in [*_temporaries(layout), *layout.intents]:
                path.unlink(missing_ok=True)
            if models != manifest.models:
                _check_growth(manifest, setting, models)
                grown = manifest.grown(models)
                _extend(layout, setting, manifest, grown, notice)
                try:
                    write_file(layout.manifest, grown.encode())
                except OSError as error:
                    raise WorkError(f"cannot replace {layout.manifest}: {error.strerror}") from None
    except OSError as error:
        raise UserError(f"cannot write to {error.filename or layout.data}: {error.strerror}") from None
    return Store.open(layout, setting)


def _check_growth(manifest: Manifest, setting: Setting, models: int) -> None:
    era, runs = manifest.eras[-1], setting.runs_per_mask
    if setting.own_masks:
        raise UserError(f"models is {models}, but {setting.mask} has no masks for more rows than {era.rows}")
    if models < era.models:
        raise UserError(f"models is {models}, but the store already has {era.models}: it can only grow")
    if models < era.rows and (models - era.models) % runs:
        raise UserError(
            f"models is {models}, which divides evaluation rows that share a mask (runs_per_mask is {runs}): "
            f"expected {era.models} plus a multiple of {runs}, or at least {era.rows}"
        )


def _extend(layout: Layout, setting: Setting, old: Manifest, new: Manifest, notice: Notice) -> None:
    """Give every array the size of the new manifest. Raises UserError, WorkError."""
    before, after = old.files(setting), new.files(setting)
    if setting.outputs.preallocate:
        check_space(layout.data, sum(array.bytes for array in after) - sum(array.bytes for array in before))
    for array in after:
        path = layout.array(array.name)
        try:
            with opened(path, os.O_RDWR) as fd:
                reserve(fd, array.bytes, setting.outputs.preallocate, notice)
                os.fsync(fd)
        except OSError as error:
            raise WorkError(f"cannot lengthen {path}: {error.strerror}; the store is unchanged") from None
