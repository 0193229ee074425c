"""A store with a manifest: which rows are done, what is damaged, and flags and headers put right on opening."""

import hashlib
import os
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Setting, from_dict
from datamodels.train.errors import READ_ONLY, UserError, WorkError
from datamodels.train.masks import Masks, read_groups
from datamodels.train.npy_file import (
    HEADER_BYTES,
    Notice,
    RowFile,
    headed_shape,
    header,
    new_file,
    opened,
    runs,
    sync_folder,
    write_all,
)
from datamodels.train.outputs import Declared
from datamodels.train.store.base_store import BaseStore, Records
from datamodels.train.store.layout import Layout
from datamodels.train.store.locks import LockFile, store_lock
from datamodels.train.store.manifest import Array, Manifest, check_declared, check_identity, read_manifest
from datamodels.train.store.published import PublishedStore
from datamodels.train.store.row_state import RowState, RowStates
from datamodels.train.user_code import sha256_of

if TYPE_CHECKING:
    from datamodels.train.data import Dataset


class Store(BaseStore):
    """A store with a manifest and journals. `states` says which rows are done; `refresh` brings it up to date.

    Damage that `verify` and `repair` deal with does not keep it from being opened: see `check_arrays`, `check_files`.
    """

    def __init__(self, layout: Layout, setting: Setting, manifest: Manifest) -> None:
        """Raises UserError where the manifest is not the one that the other files belong to, WorkError."""
        self.manifest = manifest
        setting = replace(setting, models=manifest.models)
        self.flags, *arrays = manifest.files(setting)
        super().__init__(layout, setting, arrays, manifest.eras)
        self.group = manifest.group
        self.mended_flags = np.empty(0, np.int64)
        """Numbers of the rows whose flag `sync_flags` has put right."""
        self._headed = [*arrays, self.flags]
        if all(self.whole_rows(array) < self.rows for array in self._headed):  # or else the manifest may be wrong
            path = layout.array(self._headed[0].name)
            raise WorkError(f"{path} and all other arrays are cut short, or missing")
        self.states = RowStates(layout.journals, self.rows, manifest.id, len(arrays))
        self.states.refresh()
        self.states.refuse_foreign(layout.manifest)
        self._refuse_older()

    @classmethod
    def open(cls, layout: Layout, setting: Setting | None = None, mend: bool = True) -> "Store":
        """Open a store with a manifest. Raises UserError, also where it is of another setting; WorkError.

        setting: None for the manifest's own. mend: finish what an interrupted `grow` left and put flags right, where
        that can be written.
        """
        layout.refuse_links()
        if not layout.manifest.exists():
            layout.refuse_orphans()
        while True:  # the manifest must not be replaced (by `grow`) while the other files are read
            manifest = read_manifest(layout.manifest)
            own = setting or from_dict(manifest.config)
            check_identity(manifest, own, layout.manifest)
            try:
                store = cls(layout, own, manifest)
                break
            except (UserError, WorkError):
                if read_manifest(layout.manifest) == manifest:
                    raise
        if mend:
            try:
                store.restore_flags()
                store.write_headers(store.due_headers())
            except OSError as error:
                if error.errno not in READ_ONLY:
                    raise WorkError(f"cannot write the header of {error.filename}: {error.strerror}") from None
            store.sync_flags()
        return store

    def _refuse_older(self) -> None:
        """Raises UserError where journals or headers show that the store has been longer than its manifest says.

        A header alone may be damaged; two that agree are no chance. An interrupted `grow` leaves headers as they were.
        WorkError where two headers have other widths than the manifest says.
        """
        told = f"{self.layout.manifest} has {self.rows} rows: it is older than the store, restore the newest copy"
        if self.states.beyond:
            row, path = self.states.beyond
            raise UserError(f"{path} records row {row}, but {told}")
        longer = [rows for array in self._headed if (rows := self._headed_rows(array)) > self.rows]
        if len(longer) > len(set(longer)):
            raise UserError(f"the arrays in {self.layout.data} had {max(longer)} rows, but {told}")
        others = [array for array in self._headed if self._headed_shape(array)[1:] not in ((), array.shape[1:])]
        if len(others) > 1:
            path, shape = self.layout.array(others[0].name), self._headed_shape(others[0])
            told = f"{self.layout.manifest} expects {others[0].shape[1:]}: restore it from a copy"
            raise WorkError(f"{path} has rows of {shape[1:]}, but {told}")

    def _headed_rows(self, array: Array) -> int:
        """Return the number of rows in an array's header; 0 if this package did not write it for such rows."""
        rows, *shape = self._headed_shape(array) or (0,)
        return rows if tuple(shape) == array.shape[1:] else 0

    def _headed_shape(self, array: Array) -> tuple[int, ...]:
        """Return the shape in an array's header; () if this package did not write it."""
        try:
            return headed_shape(self._header(array), array.dtype)
        except OSError:
            return ()

    def whole_rows(self, array: Array) -> int:
        """Return how many of its rows an array's file holds in full; 0 where there is none. Raises WorkError."""
        path = self.layout.array(array.name)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise WorkError(f"cannot read {path}: {error.strerror}") from None
        return min(self.rows, max(0, size - HEADER_BYTES) // ((array.bytes - HEADER_BYTES) // self.rows))

    def cut_arrays(self) -> dict[str, int]:
        """Return how many whole rows those arrays hold that are cut short or missing. Raises WorkError."""
        found = {name: self.whole_rows(array) for name, array in self.arrays.items()}
        return {name: rows for name, rows in found.items() if rows < self.rows}

    def check_arrays(self) -> None:
        """Raises WorkError where an array is cut short or missing, as `repair` mends it."""
        for name, rows in self.cut_arrays().items():
            raise WorkError(
                f"{self.layout.array(name)} holds {rows} of {self.rows} rows: it was cut short, run `datamodels repair`"
            )

    def check_files(self) -> None:
        """`check_arrays`, and WorkError where journals are damaged: a row they made missing may look done again."""
        self.check_arrays()
        for index, told in self.states.damaged().items():
            raise WorkError(f"{self.states.readers[index].path}: {told}: run `datamodels repair`")

    @cached_property
    def seeded_masks(self) -> Masks:
        """The masks that the seed gives, whatever the file holds."""
        return Masks(self.setting, self.n_train, list(self.eras), self.groups)

    def is_seeded(self, row: int, mask: NDArray[np.bool_]) -> bool:
        """Return whether a row's mask is the one that its seed gives; of a user's file, checksums alone say so."""
        return self.setting.own_masks or np.array_equal(mask, self.seeded_masks[row])

    @cached_property
    def groups(self) -> NDArray[np.integer] | None:
        if self.setting.groups is None:
            return None
        path, expected = self.layout.groups, self.setting.groups_sha256
        if (found := sha256_of(str(path), "groups")) != expected:
            raise WorkError(f"{path} is damaged, it has sha256 {found}, expected {expected}: restore it from a copy")
        return read_groups(path, self.n_train)

    @cached_property
    def _files(self) -> dict[str, RowFile]:
        return {name: self._row_file(array) for name, array in self.arrays.items()}

    def _row_file(self, array: Array, writable: bool = False) -> RowFile:
        path = self.layout.array(array.name)
        try:
            return RowFile(path, array.shape, array.dtype, writable)
        except OSError as error:
            if writable and error.errno in READ_ONLY:
                raise
            raise WorkError(f"cannot read {path}: {error.strerror}") from None

    def refresh(self) -> None:
        self.states.refresh()

    def completed(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        return self.states.state[start:stop] == RowState.DONE

    def failed(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        return self.states.state[start:stop] == RowState.FAILED

    def records(self) -> Records:
        done, states = self.completed(), self.states
        device = np.array([str(reader.provenance.get("device", "")) for reader in states.readers] or [""])
        known = np.where(done, device[states.journal], "")
        return Records(np.where(done, states.accuracy, np.nan), np.where(done, states.seconds, np.nan), known)

    def dataset(self, root: str | Path | None = None) -> "Dataset":
        dataset = super().dataset(root)
        self.check_declared(dataset.declared(self.setting.outputs))
        return dataset

    def check_declared(self, declared: Declared) -> None:
        """Raises UserError where the data set or the trainer is not the one that the store was created with."""
        check_declared(self.manifest, self.setting, declared)

    def missing(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Return the numbers of the rows in [start, stop) that training still has to do."""
        state = self.states.state[start:stop]
        return start + np.flatnonzero((state == RowState.MISSING) | (state == RowState.CONFLICT))

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        return self._files[name].read(start, stop)

    def mismatches(self, name: str, start: int, content: NDArray) -> NDArray[np.bool_]:
        """Return bool [n]: which rows from `start` on are done, but `content` differs from their checksum.

        content: [n, ...], as read from the array `name`.
        """
        rows = slice(start, start + len(content))
        found = np.fromiter((zlib.crc32(row.data) for row in content), np.uint32, len(content))
        wrong = found != self.states.checksums[rows, list(self.arrays).index(name)]
        return wrong & (self.states.state[rows] == RowState.DONE)

    def bad_masks(self, start: int, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        done = self.states.state[start : start + len(masks)] == RowState.DONE
        for index in np.flatnonzero(done).tolist():
            done[index] = not self.is_seeded(start + index, masks[index])
        return done

    def bad_rows(self, names: Sequence[str], start: int, stop: int) -> NDArray[np.bool_]:
        return np.any([self.mismatches(name, start, self.read(name, start, stop)) for name in names], axis=0)

    def row_stamp(self, rows: NDArray[np.int64]) -> str:
        digest = hashlib.sha256(self.manifest.id.encode())
        digest.update(np.ascontiguousarray(rows, "<i8").data)
        digest.update(np.ascontiguousarray(self.states.generation[rows], "<u4").data)
        digest.update(np.ascontiguousarray(self.states.checksums[rows], "<u4").data)
        return digest.hexdigest()

    def wrong_headers(self) -> list[Array]:
        """Return the arrays whose .npy header is not that of their shape. Raises OSError."""
        there = [array for array in self._headed if self.layout.array(array.name).exists()]
        return [array for array in there if self._header(array) != header(array.shape, array.dtype)]

    def due_headers(self) -> list[Array]:
        """Return the arrays whose .npy header is still the one from before a `grow`. Raises OSError."""
        former = [era.rows for era in self.eras[:-1]]
        return [array for array in self._headed if self._headed_rows(array) in former]

    def _header(self, array: Array) -> bytes:
        with open(self.layout.array(array.name), "rb") as file:
            return file.read(HEADER_BYTES)

    def write_headers(self, arrays: Sequence[Array]) -> None:
        """Write the headers that the manifest asks for, unless it has been replaced. Raises OSError."""
        if not arrays:
            return
        with store_lock(self.layout.lock):
            if read_manifest(self.layout.manifest) != self.manifest:
                return
            for array in arrays:
                with opened(self.layout.array(array.name), os.O_RDWR) as fd:
                    write_all(fd, header(array.shape, array.dtype), 0)
                    os.fdatasync(fd)

    def restore_flags(self) -> None:
        """Make `_completed` again where it is missing or was cut short, with no row done. Raises OSError."""
        if self.whole_rows(self.flags) == self.rows:
            return
        with store_lock(self.layout.lock):
            if read_manifest(self.layout.manifest) == self.manifest:
                new_file(self.layout.completed, self.flags.shape, self.flags.dtype)
                sync_folder(self.layout.data)

    def sync_flags(self) -> None:
        """Bring `_completed` in line with the journals, except for groups that a live writer holds.

        A store that cannot be written is left as it is. Raises WorkError.
        """
        stale = self.stale_flags()
        if not len(stale):
            return
        try:
            flags, lock = self._row_file(self.flags, writable=True), LockFile(self.layout.lock)
        except OSError as error:
            if error.errno in READ_ONLY:
                return
            raise WorkError(f"cannot write to {error.filename}: {error.strerror}") from None
        try:
            groups = np.unique(stale // self.group)
            held = np.fromiter((lock.acquire(int(group)) for group in groups), bool, len(groups))
            self.refresh()
            rows = stale[np.isin(stale // self.group, groups[held])]
            done = self.completed()
            for run in runs(rows):
                flags.write(int(run[0]), done[run])
            flags.sync(int(stale[0]))
            self.mended_flags = np.concatenate([self.mended_flags, rows])
        finally:
            lock.close()
            flags.close()

    def stale_flags(self) -> NDArray[np.int64]:
        """Return the rows that `_completed` is wrong about. Raises WorkError."""
        if self.whole_rows(self.flags) < self.rows:
            return np.empty(0, np.int64)  # missing, where nothing can be written
        flags = self._row_file(self.flags)
        try:
            return np.flatnonzero(flags.read(0, self.rows).view(np.uint8) != self.completed())
        finally:
            flags.close()


def open_store(
    layout: Layout,
    setting: Setting,
    explicit_models: bool = False,
    out: str | Path | None = None,
    notice: Notice = warnings.warn,
) -> BaseStore:
    """Open what a root holds for a setting: a store, or published files. Raises UserError where that is neither.

    explicit_models: whether the setting's `models` must be what published files hold. out: see `derive_below`.
    notice: called with what is left out of published files.
    """
    written = layout.folder / "datamodels"
    layout.refuse_links([layout.data] if out is None else [layout.folder, layout.data, written])
    if layout.manifest.exists():
        store = Store.open(layout, setting)
        if out is not None:
            store.derive_below(out)
        return store
    layout.refuse_orphans()
    found = layout.published
    if not found:
        raise UserError(f"{layout.manifest} does not exist: `datamodels init` creates the store")
    test = next((name for name in found if name.startswith("test_")), "test_margins")
    for name in ("train_masks", test):
        if name not in found:
            beside = next(iter(found.values()))
            raise UserError(f"{layout.array(name)} does not exist beside {beside}: reading published files takes both")
    return PublishedStore(layout, setting, explicit_models, out, notice)
