"""Stores opened for reading: those with a manifest, and what a root holds in general."""

import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Setting
from datamodels.train.errors import READ_ONLY, UserError, WorkError
from datamodels.train.masks import Masks
from datamodels.train.npy_file import HEADER_BYTES, RowFile, header, new_file, write_header
from datamodels.train.store.base_store import ReadableStore, Records
from datamodels.train.store.layout import Layout
from datamodels.train.store.locks import LockFile, store_lock
from datamodels.train.store.manifest import Array, Manifest, check_data, check_identity, read_manifest
from datamodels.train.store.published import PublishedStore
from datamodels.train.store.row_state import RowState, RowStates

if TYPE_CHECKING:
    from datamodels.train.data import Dataset


class Store(ReadableStore):
    """A store with a manifest. `states` says which rows are done; `refresh` brings it up to date.

    Damage that `verify` and `repair` deal with does not keep it from being opened: see `check_arrays`, `check_files`.
    """

    def __init__(self, layout: Layout, setting: Setting, manifest: Manifest) -> None:
        """Raises UserError where the manifest is not the one that the other files belong to, WorkError."""
        self.manifest = manifest
        setting = replace(setting, models=manifest.models)
        super().__init__(layout, setting, manifest.arrays(setting), manifest.eras)
        self.group = manifest.group
        self.mended_flags = np.empty(0, np.int64)
        """Rows whose flag `sync_flags` has put right."""
        self._refuse_ruin()
        self.states = RowStates(layout.journals, self.rows, manifest.id)
        self.states.refresh()
        self.states.refuse_foreign(layout.manifest)
        self._refuse_older()

    def _refuse_ruin(self) -> None:
        """Raises WorkError where no file is as long as the manifest says: nothing then tells that it is right."""
        if all(self.whole_rows(array) < self.rows for array in self._headed):
            array = next(iter(self.arrays.values()))
            raise WorkError(f"{self.layout.array(array.name)} and all other arrays are cut short, or missing")

    def _refuse_older(self) -> None:
        """Raises UserError where journals or headers tell that the store has been longer than its manifest says.

        A header alone may be damaged; two that agree are no chance. An interrupted `grow` leaves headers as they were.
        """
        told = f"{self.layout.manifest} has {self.rows} rows: it is an older one, restore the present one from a copy"
        if self.states.beyond:
            row, path = self.states.beyond
            raise UserError(f"{path} records row {row}, but {told}")
        longer = [rows for array in self._headed if (rows := self._headed_rows(array)) > self.rows]
        if len(longer) > len(set(longer)):
            raise UserError(f"the arrays in {self.layout.data} had {max(longer)} rows, but {told}")

    def _headed_rows(self, array: Array) -> int:
        """How many rows an array's header speaks of; 0 where it is not one of ours."""
        try:
            found = self._header(array)
        except OSError:
            return 0
        rows = re.search(rb"'shape': \((\d{1,15}),", found)
        if rows is None or found != header((int(rows[1]), *array.shape[1:]), array.dtype):
            return 0
        return int(rows[1])

    def whole_rows(self, array: Array) -> int:
        """How many of its rows an array's file holds in full; 0 where there is none. Raises WorkError."""
        path = self.layout.array(array.name)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise WorkError(f"cannot read {path}: {error.strerror}") from None
        return min(self.rows, max(0, size - HEADER_BYTES) // ((array.bytes - HEADER_BYTES) // self.rows))

    def cut_arrays(self) -> dict[str, int]:
        """How many whole rows those arrays hold that are cut short or missing. Raises WorkError."""
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
        """The masks that the seed gives, whatever lies in the file."""
        return Masks(self.setting, self.n_train, list(self.eras))

    @cached_property
    def flags(self) -> Array:
        return Array("_completed", (self.rows,), np.dtype(bool))

    @cached_property
    def _files(self) -> dict[str, RowFile]:
        return {name: self._open(array) for name, array in self.arrays.items()}

    def _open(self, array: Array, writable: bool = False) -> RowFile:
        path = self.layout.array(array.name)
        try:
            return RowFile(path, array.shape, array.dtype, writable)
        except OSError as error:
            if writable and error.errno in READ_ONLY:
                raise
            raise WorkError(f"cannot read {path}: {error.strerror}") from None

    def refresh(self) -> None:
        self.states.refresh()

    def completed(self) -> NDArray[np.bool_]:
        return self.states.state == RowState.DONE

    def failed(self) -> NDArray[np.bool_]:
        return self.states.state == RowState.FAILED

    def records(self) -> Records:
        done, states = self.completed(), self.states
        device = np.array([str(reader.provenance.get("device", "")) for reader in states.readers] or [""])
        known = np.where(done, device[states.journal], "")
        return Records(np.where(done, states.accuracy, np.nan), np.where(done, states.seconds, np.nan), known)

    def dataset(self, root: str | Path | None = None) -> "Dataset":
        dataset = super().dataset(root)
        check_data(self.manifest, dataset)
        return dataset

    def missing(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """The rows in [start, stop) that training still has to do."""
        state = self.states.state[start:stop]
        return start + np.flatnonzero((state == RowState.MISSING) | (state == RowState.CONFLICT))

    def read(self, name: str, start: int, stop: int) -> NDArray:
        """Rows [start, stop) of one array, read from the file. Raises WorkError."""
        return self._files[name].read(start, stop)

    def mismatches(self, name: str, start: int, content: NDArray) -> NDArray[np.bool_]:
        """Which of the rows from `start` on, read from one array, are done but differ from their checksum."""
        rows = slice(start, start + len(content))
        found = np.fromiter((zlib.crc32(row.data) for row in content), np.uint32, len(content))
        return (found != self.states.checksums[rows, list(self.arrays).index(name)]) & self._done(rows)

    def _done(self, rows: slice) -> NDArray[np.bool_]:
        return self.states.state[rows] == RowState.DONE

    def bad_masks(self, start: int, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        done = self._done(slice(start, start + len(masks)))
        pairs = zip(range(start, start + len(masks)), masks, done, strict=True)
        return np.fromiter(
            (d and not np.array_equal(mask, self.seeded_masks[row]) for row, mask, d in pairs), bool, len(masks)
        )

    def bad_rows(self, names: Sequence[str], start: int, stop: int) -> NDArray[np.bool_]:
        return np.any([self.mismatches(name, start, self.read(name, start, stop)) for name in names], axis=0)

    def row_stamp(self, rows: NDArray[np.int64]) -> str:
        digest = hashlib.sha256(self.manifest.id.encode())
        digest.update(np.ascontiguousarray(rows, "<i8").data)
        digest.update(np.ascontiguousarray(self.states.generation[rows], "<u4").data)
        digest.update(np.ascontiguousarray(self.states.checksums[rows], "<u4").data)
        return digest.hexdigest()

    def wrong_headers(self) -> list[Array]:
        """Arrays whose .npy header is not the one their shape asks for. Raises OSError."""
        there = [array for array in self._headed if self.layout.array(array.name).exists()]
        return [array for array in there if self._header(array) != header(array.shape, array.dtype)]

    def due_headers(self) -> list[Array]:
        """Arrays whose .npy header is still the one from before a `grow`. Raises OSError."""
        former = [era.rows for era in self.eras[:-1]]
        return [array for array in self._headed if self._headed_rows(array) in former]

    @property
    def _headed(self) -> list[Array]:
        return [*self.arrays.values(), self.flags]

    def _header(self, array: Array) -> bytes:
        with open(self.layout.array(array.name), "rb") as file:
            return file.read(HEADER_BYTES)

    def write_headers(self, arrays: Sequence[Array]) -> None:
        """Put the headers that the manifest asks for in place, unless it has been replaced. Raises OSError."""
        if not arrays:
            return
        with store_lock(self.layout.lock):
            if read_manifest(self.layout.manifest) != self.manifest:
                return
            for array in arrays:
                write_header(self.layout.array(array.name), array.shape, array.dtype)

    def restore_flags(self) -> None:
        """Make `_completed` again where it is missing or was cut short. Raises OSError."""
        if self.whole_rows(self.flags) == self.rows:
            return
        with store_lock(self.layout.lock):
            if read_manifest(self.layout.manifest) == self.manifest:
                new_file(self.layout.completed, self.flags.shape, self.flags.dtype)

    def sync_flags(self) -> None:
        """Bring `_completed` in line with the journals, except for groups that a live writer holds.

        A store that cannot be written is left as it is. Raises WorkError.
        """
        stale = self._stale_flags()
        if not len(stale):
            return
        try:
            flags, lock = self._open(self.flags, writable=True), LockFile(self.layout.lock)
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
            for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
                if len(run):
                    flags.write(int(run[0]), done[run])
            flags.sync(int(stale[0]))
            self.mended_flags = np.concatenate([self.mended_flags, rows])
        finally:
            lock.close()
            flags.close()

    def _stale_flags(self) -> NDArray[np.int64]:
        if self.whole_rows(self.flags) < self.rows:
            return np.empty(0, np.int64)  # missing, where nothing can be written
        flags = self._open(self.flags)
        try:
            return np.flatnonzero(flags.read(0, self.rows).view(np.uint8) != self.completed())
        finally:
            flags.close()


def open_store(layout: Layout, setting: Setting, explicit_models: bool = False) -> ReadableStore:
    """Open whatever a root holds for a setting. Raises UserError where it holds nothing, or another setting."""
    layout.refuse_links()
    if layout.manifest.exists():
        return open_own(layout, setting)
    refuse_orphans(layout)
    found = layout.arrays
    if not found:
        raise UserError(f"{layout.manifest} does not exist: `datamodels init` creates the store")
    for name in ("train_masks", "test_margins"):
        if name not in found:
            beside = next(iter(found.values()))
            raise UserError(f"{layout.array(name)} does not exist beside {beside}: reading published files takes both")
    return PublishedStore(layout, setting, explicit_models)


def open_own(layout: Layout, setting: Setting) -> Store:
    """Open a store of ours, and finish what an interrupted `grow` left. Raises UserError, WorkError."""
    layout.refuse_links()
    if not layout.manifest.exists():
        refuse_orphans(layout)
    store = _consistent(layout, setting)
    try:
        store.restore_flags()
        store.write_headers(store.due_headers())
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise WorkError(f"cannot write the header of {error.filename}: {error.strerror}") from None
    store.sync_flags()
    return store


def _consistent(layout: Layout, setting: Setting) -> Store:
    """The store of a manifest that is not replaced (by `grow`) while the other files are looked at."""
    while True:
        manifest = read_manifest(layout.manifest)
        check_identity(manifest, setting, layout.manifest)
        try:
            return Store(layout, setting, manifest)
        except (UserError, WorkError):
            if read_manifest(layout.manifest) == manifest:
                raise


def refuse_orphans(layout: Layout) -> None:
    """Raises UserError for parts of a store without its manifest."""
    for path in layout.intents:
        raise UserError(f"{path} is an `init` that was interrupted: run `datamodels init` again")
    for path in (layout.completed, layout.journals):
        if path.exists():
            raise UserError(f"{path} lies there without {layout.manifest.name}: restore the manifest from a copy")


def refuse_published(layout: Layout) -> None:
    """Raises UserError for arrays that are no store's: no row is trained into them."""
    for path in layout.arrays.values():
        raise UserError(f"{path} exists without a manifest: published files are never overwritten, use another --root")
