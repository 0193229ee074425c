"""The state of every row of a store, merged from all journals. Takes 70 bytes a row, of 11 arrays 94."""

import os
import stat
import threading
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.train.errors import UserError, WorkError
from datamodels.train.store.journal import JournalReader, Kind, reason_hashes, record_type

_BATCH = 2**15
"""Records merged at a time."""

_COLUMNS = ("row", "generation", "kind", "checksums", "accuracy", "time", "seconds")

_Columns = dict[str, NDArray]


class RowState(IntEnum):
    MISSING = 0
    DONE = 1
    FAILED = 2
    """Failed in the same way twice, or three times in any way."""
    CONFLICT = 3
    """Which bytes lie in the arrays is unknown: two attempts recorded different ones, or one of a former generation
    recorded the row after it was invalidated, and may have written over it."""


class RowStates:
    """The state of each row [M], kept up to date by `refresh`.

    A row counts at its highest generation alone, so a record that was delayed (by a process that lost its lease) never
    brings back what has been invalidated. The order in which records are found makes no difference.
    """

    def __init__(self, folder: Path, rows: int, store_id: str, arrays: int = 5) -> None:
        """Raises UserError where there is no memory for so many rows, of so many arrays."""
        self.folder = folder
        self.record = record_type(arrays)
        self.store_id = store_id
        try:
            self.state = np.zeros(rows, np.uint8)
            self.failures = np.zeros(rows, np.uint8)
            self.generation = np.zeros(rows, np.uint32)
            self.checksums = np.zeros((rows, *self.record["checksums"].shape), np.uint32)
            self.accuracy = np.full(rows, np.nan, np.float32)
            self.time = np.zeros(rows, np.float64)
            """When a row was last recorded as done, in seconds since 1970; 0 for never."""
            self.since = np.zeros(rows, np.float64)
            """When a row was invalidated last; 0 for never."""
            self.late = np.zeros(rows, np.float64)
            """When an attempt of a former generation last recorded a row as done; 0 for never."""
            self.seconds = np.zeros(rows, np.float32)
            self.journal = np.full(rows, -1, np.int32)
            """Number of the reader whose journal has the record that counts; -1 for none."""
            self.number = np.zeros(rows, np.int32)
            """Number of that record in the journal."""
            self._reasons = np.zeros(rows, np.uint32)
        except (MemoryError, ValueError):
            raise UserError(
                f"{rows:,} rows take more memory than there is here: their state is 70 bytes each or more"
            ) from None
        self.readers: list[JournalReader] = []
        self.beyond: tuple[int, Path] | None = None
        """A row that a journal records, but the store does not have."""
        self._index: dict[str, int] = {}
        self._refreshing = threading.Lock()

    def refresh(self) -> None:
        """Take in what was appended to any journal since the last call. Threads may call it. Raises WorkError."""
        with self._refreshing:
            batch: list[tuple[NDArray[np.void], NDArray[np.int64], int]] = []
            size = 0
            for index in self._changed():
                for records, numbers in self._new_records(index):
                    batch.append((records, numbers, index))
                    size += len(records)
                    if size >= _BATCH:
                        self._merge(batch)
                        batch, size = [], 0
            if batch:
                self._merge(batch)

    def _changed(self) -> list[int]:
        """Return the numbers of the readers whose journals are new or have changed; the others are not even opened."""
        changed = []
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if not entry.name.endswith(".bin"):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # an attempt that could not write its header has taken its journal away again
                    path = self.folder / entry.name
                    if not stat.S_ISREG(status.st_mode):
                        raise WorkError(f"{path} is not a plain file, expected a journal: remove it")
                    index = self._index.setdefault(entry.name, len(self.readers))
                    if index == len(self.readers):
                        self.readers.append(JournalReader(path, self.record))
                    if self.readers[index].changed(status):
                        changed.append(index)
        except OSError as error:
            raise WorkError(f"cannot read {error.filename or self.folder}: {error.strerror}") from None
        return changed

    def _new_records(self, index: int) -> Iterator[tuple[NDArray[np.void], NDArray[np.int64]]]:
        reader = self.readers[index]
        try:
            for found in reader.new_records():
                if not self.is_foreign(reader):
                    yield found
        except FileNotFoundError:
            return
        except OSError as error:
            raise WorkError(f"cannot read {reader.path}: {error.strerror}") from None

    def is_foreign(self, reader: JournalReader) -> bool:
        """Return whether a journal belongs to another store."""
        return reader.provenance.get("store", self.store_id) != self.store_id

    def made_with(self, key: str) -> set[Any]:
        """Return the values of a key in the provenance of the rows that are done, where it is there."""
        done = [self.readers[index].provenance for index in np.unique(self.journal[self.state == RowState.DONE])]
        return {made[key] for made in done if key in made}

    def refuse_foreign(self, manifest: Path) -> None:
        """Raises UserError where there are journals, but none of this store: then the manifest is not theirs."""
        foreign = [reader for reader in self.readers if self.is_foreign(reader)]
        if foreign and not any(reader.provenance.get("store") == self.store_id for reader in self.readers):
            theirs = str(foreign[0].provenance["store"])[:40]
            raise UserError(
                f"{foreign[0].path} belongs to the store {theirs}, as do all journals there, but {manifest} is that of "
                f"{self.store_id}: restore the manifest of {theirs} from a copy"
            )

    def _merge(self, batch: list[tuple[NDArray[np.void], NDArray[np.int64], int]]) -> None:
        """Merge records, each with its number in its journal and the number of that journal's reader."""
        found = {name: np.concatenate([records[name] for records, _, _ in batch]) for name in _COLUMNS}
        found["number"] = np.concatenate([numbers for _, numbers, _ in batch])
        found["journal"] = np.repeat([index for _, _, index in batch], [len(records) for records, _, _ in batch])
        failed = (found["kind"] == Kind.FAILED).any()
        if failed:
            found["reason"] = np.concatenate([reason_hashes(records) for records, _, _ in batch])
        inside = found["row"] < len(self.state)
        if not inside.all():
            first = int(np.argmin(inside))
            self.beyond = int(found["row"][first]), self.readers[found["journal"][first]].path
        found = _select(found, inside)

        # A newer generation begins anew; what the former one did last may be late.
        rows = found["row"]
        newer = found["generation"] > self.generation[rows]
        begun = rows[newer]
        np.maximum.at(self.generation, begun, found["generation"][newer])
        self.late[begun] = np.maximum(self.late[begun], self.time[begun])
        self.state[begun] = RowState.MISSING
        for column in (self.failures, self.time, self.since):
            column[begun] = 0
        current, done = found["generation"] == self.generation[rows], found["kind"] == Kind.DONE
        np.maximum.at(self.late, rows[~current & done], found["time"][~current & done])

        invalid = _select(found, current & (found["kind"] == Kind.INVALID))
        self.since[invalid["row"]] = np.where(self.since[invalid["row"]] == 0, np.inf, self.since[invalid["row"]])
        np.minimum.at(self.since, invalid["row"], invalid["time"])

        self._take_done(_select(found, current & done))
        if failed:
            self._take_failures(_select(found, current & (found["kind"] == Kind.FAILED)))

        # An attempt of a former generation may have written over a row that it recorded after the invalidation.
        suspect = (self.since[rows] > 0) & (self.late[rows] > self.since[rows]) & (self.state[rows] == RowState.DONE)
        self.state[rows[suspect]] = RowState.CONFLICT

    def _take_done(self, found: _Columns) -> None:
        rows = found["row"]
        fresh = _select(found, np.isin(self.state[rows], (RowState.MISSING, RowState.FAILED)))
        self.state[fresh["row"]] = RowState.DONE
        for name in ("checksums", "accuracy", "seconds", "journal", "number"):
            getattr(self, name)[fresh["row"]] = fresh[name]
        np.maximum.at(self.time, rows, found["time"])
        differs = (self.checksums[rows] != found["checksums"]).any(axis=1)
        self.state[rows[differs]] = RowState.CONFLICT

    def _take_failures(self, found: _Columns) -> None:
        """Count each row's failures, in three rounds of one a row: a fourth makes no difference."""
        found = _select(found, np.isin(self.state[found["row"]], (RowState.MISSING, RowState.FAILED)))
        order = np.argsort(found["row"], kind="stable")
        _, counts = np.unique(found["row"], return_counts=True)
        nth = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        for number in range(min(3, max(counts, default=0))):
            once = {name: column[order[nth == number]] for name, column in found.items()}
            rows = once["row"]
            same = (self.failures[rows] > 0) & (self._reasons[rows] == once["reason"])
            self.failures[rows] = np.minimum(self.failures[rows], 254) + 1
            for column, name in ((self._reasons, "reason"), (self.journal, "journal"), (self.number, "number")):
                column[rows] = once[name]
            self.state[rows[same | (self.failures[rows] >= 3)]] = RowState.FAILED

    def reason(self, row: int) -> str:
        """Return why a row failed last; empty where it never did. Raises WorkError."""
        return self.record_of(row)["reason"].decode(errors="replace") if self.failures[row] else ""

    def record_of(self, row: int) -> np.void:
        """Return the record that counts of a row that has one, read again. Raises WorkError."""
        reader = self.readers[self.journal[row]]
        try:
            return reader.record(int(self.number[row]))
        except OSError as error:
            raise WorkError(f"cannot read {reader.path}: {error.strerror}") from None

    def reasons(self) -> dict[str, int]:
        """Return why rows failed for good, and how many for each; reads one record a reason. Raises WorkError."""
        rows = np.flatnonzero(self.state == RowState.FAILED)
        _, first, counts = np.unique(self._reasons[rows], return_index=True, return_counts=True)
        return {self.reason(int(rows[at])): int(count) for at, count in zip(first, counts, strict=True)}

    def damaged(self) -> dict[int, str]:
        """Return what is wrong with journals, by the number of their reader."""
        found: dict[int, str] = {}
        for index, reader in enumerate(self.readers):
            if self.is_foreign(reader):
                found[index] = "it belongs to another store"
            elif reader.damaged:
                numbers = ", ".join(map(str, reader.damaged[:5])) + (", ..." if len(reader.damaged) > 5 else "")
                found[index] = f"records {numbers} do not match their checksum"
            elif reader.header_damaged:
                found[index] = "its header does not match its checksum"
        return found


def _select(found: _Columns, which: NDArray[np.bool_]) -> _Columns:
    """Return the same columns with some of their entries; as they are where that is all of them."""
    return found if which.all() else {name: column[which] for name, column in found.items()}
