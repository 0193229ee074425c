"""Writing rows: leases, the commit of a group, and invalidation.

To commit a row: set its flag to False and sync; write its bytes, fdatasync; append its record to the attempt's journal,
fdatasync; set its flag to True, unless the row was invalidated meanwhile. After any number of these steps the row is
either missing, or done and right. An attempt is one `Writer`: a process that writes rows, with a journal of its own.
"""

import contextlib
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.train.errors import UserError, WorkError
from datamodels.train.npy_file import RowFile, runs, sync_all
from datamodels.train.store.journal import REASON_BYTES, JournalWriter, Kind
from datamodels.train.store.locks import LockFile
from datamodels.train.store.row_state import RowState
from datamodels.train.store.store import Store

BATCH = 1024
"""Groups that are invalidated at once."""


@dataclass(frozen=True)
class RowResult:
    """One trained row, ready for the store."""

    row: int
    arrays: Mapping[str, NDArray]
    """By array name, each of one row's shape and dtype."""
    seconds: float
    """Seconds of the device: the group's time, divided among its rows and the groups trained at the same time."""
    accuracy: float
    """Share of the test examples that are classified correctly, from 0 to 1; nan where it is not known."""
    train_accuracy: float
    """The same of the row's own training subset."""
    time: float = 0.0
    """When it was made, in seconds since 1970; 0 for now."""


@dataclass(frozen=True)
class RowFailure:
    """One row that could not be trained."""

    row: int
    reason: str
    seconds: float
    time: float = 0.0


class Writer:
    """One attempt at writing rows of a store. Raises UserError where the store cannot be written."""

    def __init__(self, store: Store, provenance: dict[str, Any]) -> None:
        """provenance: what the attempt's rows are made with (device, versions, threads), kept in its journal.

        Its `kernels`, if given, have to be those of all rows that have any.
        """
        self.store, self._kernels = store, provenance.get("kernels")
        layout = store.layout
        try:
            self._files = {
                name: RowFile(layout.array(name), array.shape, array.dtype, writable=True)
                for name, array in store.arrays.items()
            }
            self._flags = RowFile(layout.completed, store.flags.shape, store.flags.dtype, writable=True)
            self._lock = LockFile(layout.lock)
        except OSError as error:
            raise UserError(f"cannot write to {error.filename}: {error.strerror}") from None
        self._journal = JournalWriter(layout.journals, {**provenance, "store": store.manifest.id})
        self._leased: dict[int, NDArray[np.uint32]] = {}
        """By leased group, the generations that its rows are written for."""

    def lease(self, group: int) -> bool:
        """Try to become the only writer of a group, and read what others did to it before. Raises WorkError."""
        return bool(self.lease_free([group]))

    def lease_free(self, groups: Iterable[int]) -> list[int]:
        """Lease those of several groups that no other process holds, and return them. Raises WorkError."""
        free = [group for group in groups if self._acquire(group)]
        if free:
            self.store.refresh()
        for group in free:
            self._remember(group)
        return free

    def _acquire(self, group: int) -> bool:
        try:
            return self._lock.acquire(group)
        except OSError as error:
            raise WorkError(f"cannot lock {self._lock.path}: {error.strerror}") from error

    def _remember(self, group: int) -> None:
        first = group * self.store.group
        self._leased[group] = self.store.states.generation[first : first + self.store.group].copy()

    def release(self, group: int) -> None:
        del self._leased[group]
        self._lock.release(group)

    @contextlib.contextmanager
    def leased(self, group: int) -> Iterator[bool]:
        """Lease a group while the context lasts; yields False where another process holds it."""
        held = self.lease(group)
        try:
            yield held
        finally:
            if held:
                self.release(group)

    def commit(self, results: Sequence[RowResult | RowFailure]) -> None:
        """Write rows of leased groups and record them: here a row becomes durable.

        Rows that others did or invalidated meanwhile are left out. Raises WorkError that names file and row; rows
        without a durable record stay missing.
        """
        size, generation_of = self.store.group, dict[int, int]()
        for group in sorted({result.row // size for result in results}):
            if not (self._lock.is_current() and self._acquire(group)):
                raise WorkError(
                    f"the lease on row {group * size} was lost ({self._lock.path} was replaced, or the file system "
                    "gave it to another process): nothing was written"
                )
            generation_of |= enumerate(self._leased[group].tolist(), group * size)
        self.store.refresh()
        states = self.store.states
        if self._kernels and (others := states.made_with("kernels") - {self._kernels}):
            raise WorkError(
                f"rows of {self.store.layout.data} were trained with the kernels {others.pop()}, these with "
                f"{self._kernels} (recipe.kernels): nothing was written"
            )

        def wanted(row: int, state: RowState) -> bool:
            return states.generation[row] == generation_of[row] and states.state[row] == state

        results = sorted((each for each in results if wanted(each.row, RowState.MISSING)), key=lambda each: each.row)
        done = {result.row: result for result in results if isinstance(result, RowResult)}
        if done:
            self._lower(list(done))
            for name, file in self._files.items():
                for run in runs(np.array(list(done))):
                    file.write(int(run[0]), np.stack([done[row].arrays[name] for row in run.tolist()]))
            sync_all(list(self._files.values()), next(iter(done)))
        if results:
            self._journal.append(np.concatenate([self._record(each, generation_of[each.row]) for each in results]))
        if done:
            self.store.refresh()
            self._set_flags([row for row in done if wanted(row, RowState.DONE)], True)
            self._flags.dirty = False  # durable is only what the journals say; flags are rebuilt from them

    def _record(self, result: RowResult | RowFailure, generation: int) -> NDArray[np.void]:
        record = np.zeros(1, self.store.states.record)
        record["row"], record["time"], record["seconds"] = result.row, result.time or time.time(), result.seconds
        record["generation"] = generation
        if isinstance(result, RowFailure):
            record["kind"] = Kind.FAILED
            record["reason"] = result.reason.encode(errors="backslashreplace")[:REASON_BYTES]
        else:
            record["kind"] = Kind.DONE
            record["accuracy"], record["train_accuracy"] = result.accuracy, result.train_accuracy
            for column, name in enumerate(self._files):
                array = np.ascontiguousarray(result.arrays[name], dtype=self._files[name].dtype)
                record["checksums"][0, column] = zlib.crc32(array.data)
        return record

    def invalidate(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Make rows missing, for good: a durable record of the next generation, before any of their bytes change.

        Raises WorkError where another process holds one of their groups.
        """
        wanted = np.unique(np.asarray(rows, np.int64))
        groups = np.unique(wanted // self.store.group)
        for start in range(0, len(groups), BATCH):
            batch = groups[start : start + BATCH]
            held: list[int] = []
            try:
                for group in sorted(set(batch.tolist()) - self._leased.keys()):
                    if not self._acquire(group):
                        raise WorkError(f"rows of group {group} are being written by another process: try again later")
                    held.append(group)
                self._invalidate(wanted[np.isin(wanted // self.store.group, batch)])
            finally:
                for group in held:
                    self._lock.release(group)

    def _invalidate(self, rows: NDArray[np.int64]) -> None:
        self.store.refresh()
        states = self.store.states
        records = np.zeros(len(rows), self.store.states.record)
        records["row"], records["kind"] = rows, Kind.INVALID
        # No earlier than any record so far, whatever the clocks: what is recorded later than this is suspect.
        records["time"] = np.maximum(time.time(), np.maximum(states.time[rows], states.late[rows]))
        records["generation"] = states.generation[rows] + 1
        self._journal.append(records, twice=True)
        self._lower(rows.tolist())
        self.store.refresh()
        for group in self._leased.keys() & set((rows // self.store.group).tolist()):
            self._remember(group)

    def _lower(self, rows: list[int]) -> None:
        """Set the flags of ascending rows to False, durably; those that are False already cost nothing."""
        flags = self._flags.read(rows[0], rows[-1] + 1)
        self._set_flags([row for row in rows if flags[row - rows[0]]], False)
        self._flags.sync(rows[0])

    def _set_flags(self, rows: list[int], value: bool) -> None:
        for run in runs(np.array(rows)):
            self._flags.write(int(run[0]), np.full(len(run), value))

    def close(self) -> None:
        """Make flags durable, and give up all leases."""
        with contextlib.suppress(OSError):
            os.fdatasync(self._flags.fd)
        for file in (*self._files.values(), self._flags):
            file.close()
        self._journal.close()
        self._lock.close()
