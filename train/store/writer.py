"""Writing rows: leases, the commit of a group, and invalidation.

The commit of a row is: its flag down and durable; its bytes; fdatasync; its record in the attempt's journal; fdatasync;
its flag up, unless it was invalidated meanwhile. Any prefix of that leaves the row either missing or done and right.
"""

import contextlib
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.train.errors import UserError, WorkError
from datamodels.train.npy_file import RowFile, sync_all
from datamodels.train.store.journal import REASON_BYTES, RECORD, JournalWriter, Kind
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
    """What the row took of its device: its group's time, shared among the group's rows and the groups beside it."""
    accuracy: float
    train_accuracy: float


@dataclass(frozen=True)
class RowFailure:
    row: int
    reason: str
    seconds: float


class Writer:
    """One attempt at writing rows of a store. Raises UserError where the store cannot be written."""

    def __init__(self, store: Store, provenance: dict[str, Any]) -> None:
        self.store = store
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

    def lease(self, group: int) -> bool:
        """Try to become the only writer of a group, and see what others did to it before. Raises WorkError."""
        if not self._acquire(group):
            return False
        self.store.refresh()
        self._remember(group)
        return True

    def _remember(self, group: int) -> None:
        """Keep the generations that a leased group's rows are written for."""
        rows = self._rows_of(group)
        self._leased[group] = self.store.states.generation[rows.start : rows.stop].copy()

    def _acquire(self, group: int) -> bool:
        try:
            return self._lock.acquire(group)
        except OSError as error:
            raise WorkError(f"cannot lock {self._lock.path}: {error.strerror}") from error

    def release(self, group: int) -> None:
        del self._leased[group]
        self._lock.release(group)

    @contextlib.contextmanager
    def leased(self, group: int) -> Iterator[bool]:
        held = self.lease(group)
        try:
            yield held
        finally:
            if held:
                self.release(group)

    def _rows_of(self, group: int) -> range:
        start = group * self.store.group
        return range(start, min(start + self.store.group, self.store.rows))

    def commit(self, group: int, results: Sequence[RowResult | RowFailure]) -> None:
        """Write rows of a leased group and record them. Rows that others did or invalidated meanwhile are left out.

        Raises WorkError that names file and row; rows without a durable record stay missing.
        """
        results = self._still_wanted(group, results)
        done = [result for result in results if isinstance(result, RowResult)]
        if done:
            self._lower([result.row for result in done])
            self._write(done)
        if results:
            self._journal.append(np.concatenate([self._record(group, result) for result in results]))
        self._raise_flags(group, [result.row for result in done])

    def _still_wanted(self, group: int, results: Sequence[RowResult | RowFailure]) -> list[RowResult | RowFailure]:
        if not (self._lock.is_current() and self._acquire(group)):
            raise WorkError(
                f"the lease on row {group * self.store.group} was lost ({self._lock.path} was replaced, or the file "
                "system gave it to another process): nothing was written"
            )
        self.store.refresh()
        states = self.store.states
        first = group * self.store.group
        return [
            result
            for result in results
            if states.generation[result.row] == self._leased[group][result.row - first]
            and states.state[result.row] == RowState.MISSING
        ]

    def _write(self, results: Sequence[RowResult]) -> None:
        for name, file in self._files.items():
            for run in _consecutive(results):
                file.write(run[0].row, np.stack([result.arrays[name] for result in run]))
        sync_all(list(self._files.values()), results[0].row)

    def _record(self, group: int, result: RowResult | RowFailure) -> NDArray[np.void]:
        record = np.zeros(1, RECORD)
        record["row"], record["time"], record["seconds"] = result.row, time.time(), result.seconds
        record["generation"] = self._leased[group][result.row - group * self.store.group]
        if isinstance(result, RowFailure):
            record["kind"] = Kind.FAILED
            record["reason"] = result.reason.encode()[:REASON_BYTES]
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
            with self._all_leased(batch.tolist()):
                self._invalidate(wanted[np.isin(wanted // self.store.group, batch)])

    @contextlib.contextmanager
    def _all_leased(self, groups: Sequence[int]) -> Iterator[None]:
        """Hold groups that are not held already."""
        held = []
        try:
            for group in groups:
                if group in self._leased:
                    continue
                if not self._acquire(group):
                    raise WorkError(f"rows of group {group} are being written by another process: try again later")
                held.append(group)
            yield
        finally:
            for group in held:
                self._lock.release(group)

    def _invalidate(self, rows: NDArray[np.int64]) -> None:
        self.store.refresh()
        states = self.store.states
        records = np.zeros(len(rows), RECORD)
        records["row"], records["kind"] = rows, Kind.INVALID
        # No earlier than any record so far, whatever the clocks: what is recorded later than this is suspect.
        records["time"] = np.maximum(time.time(), np.maximum(states.time[rows], states.late[rows]))
        records["generation"] = states.generation[rows] + 1
        self._journal.append(records, twice=True)
        self._lower(rows)
        self.store.refresh()
        for group in np.unique(rows // self.store.group).tolist():
            if group in self._leased:
                self._remember(group)

    def _lower(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Flags down, durable; those that are down already cost nothing."""
        first = int(min(rows))
        flags = self._flags.read(first, int(max(rows)) + 1)
        self._set_flags([row for row in rows if flags[row - first]], False)
        self._flags.sync(first)

    def _raise_flags(self, group: int, rows: Sequence[int]) -> None:
        if not rows:
            return
        self.store.refresh()
        states = self.store.states
        first = group * self.store.group
        done = [row for row in rows if states.state[row] == RowState.DONE]
        self._set_flags([row for row in done if states.generation[row] == self._leased[group][row - first]], True)
        self._flags.dirty = False  # durable is only what the journals say; flags are rebuilt from them

    def _set_flags(self, rows: Sequence[int], value: bool) -> None:
        for run in np.split(np.array(sorted(rows)), np.flatnonzero(np.diff(sorted(rows)) > 1) + 1):
            if len(run):
                self._flags.write(int(run[0]), np.full(len(run), value))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.fdatasync(self._flags.fd)
        for file in (*self._files.values(), self._flags):
            file.close()
        self._journal.close()
        self._lock.close()


def _consecutive(results: Sequence[RowResult]) -> Iterator[list[RowResult]]:
    """Runs of neighbouring rows, to be written at once."""
    run: list[RowResult] = []
    for result in sorted(results, key=lambda result: result.row):
        if run and result.row != run[-1].row + 1:
            yield run
            run = []
        run.append(result)
    if run:
        yield run
