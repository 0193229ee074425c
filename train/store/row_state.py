"""The state of every row of a store, merged from all journals. Takes 70 bytes a row."""

import os
import stat
import threading
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.train.errors import UserError, WorkError
from datamodels.train.store.journal import JournalReader, Kind, reason_hashes

ARRAYS_MAX = 5

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
    """Per-row state arrays [M], kept up to date by `refresh`.

    A row counts at its highest generation alone, so a record that was delayed (by a process that lost its lease) never
    brings back what has been invalidated. The order in which records are found makes no difference.
    """

    def __init__(self, folder: Path, rows: int, store_id: str) -> None:
        """Raises UserError where there is no memory for so many rows."""
        self.folder = folder
        self.store_id = store_id
        try:
            self.state = np.zeros(rows, np.uint8)
            self.failures = np.zeros(rows, np.uint8)
            self.generation = np.zeros(rows, np.uint32)
            self.checksums = np.zeros((rows, ARRAYS_MAX), np.uint32)
            self.accuracy = np.full(rows, np.nan, np.float32)
            self.time = np.zeros(rows, np.float64)
            self.since = np.zeros(rows, np.float64)
            """When a row was invalidated last; 0 for never."""
            self.late = np.zeros(rows, np.float64)
            """When an attempt of a former generation last recorded a row as done; 0 for never."""
            self.seconds = np.zeros(rows, np.float32)
            self.journal = np.full(rows, -1, np.int32)
            self.number = np.zeros(rows, np.int32)
            self._reasons = np.zeros(rows, np.uint32)
        except (MemoryError, ValueError):
            raise UserError(
                f"{rows:,} rows take more memory than there is here: their state is 70 bytes each"
            ) from None
        self.readers: list[JournalReader] = []
        self.beyond: tuple[int, Path] | None = None
        """A row that a journal records, but the store does not have."""
        self._index: dict[str, int] = {}
        self._refreshing = threading.Lock()

    def refresh(self) -> None:
        """Take in what was appended to any journal since the last call. Threads may call it. Raises WorkError."""
        with self._refreshing:
            self._refresh()

    def _refresh(self) -> None:
        batch: list[tuple[NDArray[np.void], NDArray[np.int64], int]] = []
        size = 0
        for index in self._changed():
            for records, numbers in self._news(index):
                batch.append((records, numbers, index))
                size += len(records)
                if size >= _BATCH:
                    self._take(batch)
                    batch, size = [], 0
        self._take(batch)

    def _changed(self) -> list[int]:
        """Numbers of the readers whose journals are new or have changed; unchanged ones are not even opened."""
        try:
            with os.scandir(self.folder) as entries:
                return [index for entry in entries if (index := self._look_at(entry)) is not None]
        except OSError as error:
            raise WorkError(f"cannot read {error.filename or self.folder}: {error.strerror}") from None

    def _look_at(self, entry: os.DirEntry[str]) -> int | None:
        if not entry.name.endswith(".bin"):
            return None
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None  # an attempt that could not write its header has taken its journal away again
        if not stat.S_ISREG(status.st_mode):
            raise WorkError(f"{self.folder / entry.name} is not a plain file, as a journal is: take it away")
        index = self._index.setdefault(entry.name, len(self.readers))
        if index == len(self.readers):
            self.readers.append(JournalReader(self.folder / entry.name))
        return index if self.readers[index].changed(status) else None

    def _news(self, index: int) -> Iterator[tuple[NDArray[np.void], NDArray[np.int64]]]:
        reader = self.readers[index]
        try:
            for news in reader.news():
                if not self.is_foreign(reader):
                    yield news
        except FileNotFoundError:
            return
        except OSError as error:
            raise WorkError(f"cannot read {reader.path}: {error.strerror}") from None

    def is_foreign(self, reader: JournalReader) -> bool:
        """Whether a journal belongs to another store."""
        return reader.provenance.get("store", self.store_id) != self.store_id

    def refuse_foreign(self, manifest: Path) -> None:
        """Raises UserError where there are journals, but none of this store: then the manifest is not theirs."""
        foreign = [reader for reader in self.readers if self.is_foreign(reader)]
        if foreign and not any(reader.provenance.get("store") == self.store_id for reader in self.readers):
            theirs = str(foreign[0].provenance["store"])[:40]
            raise UserError(
                f"{foreign[0].path} belongs to the store {theirs}, as all journals there, but {manifest} is that of "
                f"{self.store_id}: restore the manifest of {theirs} from a copy"
            )

    def _take(self, batch: Sequence[tuple[NDArray[np.void], NDArray[np.int64], int]]) -> None:
        if not batch:
            return
        found = {name: np.concatenate([records[name] for records, _, _ in batch]) for name in _COLUMNS}
        found["number"] = np.concatenate([numbers for _, numbers, _ in batch])
        found["journal"] = np.repeat([index for _, _, index in batch], [len(records) for records, _, _ in batch])
        if (found["kind"] == Kind.FAILED).any():
            found["reason"] = np.concatenate([reason_hashes(records) for records, _, _ in batch])
        self._take_columns(self._within(found))

    def _within(self, found: _Columns) -> _Columns:
        inside = found["row"] < len(self.state)
        if not inside.all():
            first = int(np.argmin(inside))
            self.beyond = int(found["row"][first]), self.readers[found["journal"][first]].path
        return _select(found, inside)

    def _take_columns(self, found: _Columns) -> None:
        rows = found["row"]
        self._raise_generations(rows, found["generation"])
        current, done = found["generation"] == self.generation[rows], found["kind"] == Kind.DONE
        np.maximum.at(self.late, rows[~current & done], found["time"][~current & done])
        self._take_invalid(_select(found, current & (found["kind"] == Kind.INVALID)))
        self._take_done(_select(found, current & done))
        if "reason" in found:
            self._take_failures(_select(found, current & (found["kind"] == Kind.FAILED)))
        self._take_suspects(rows)

    def _raise_generations(self, rows: NDArray[np.uint64], generations: NDArray[np.uint32]) -> None:
        newer = generations > self.generation[rows]
        rows = rows[newer]
        np.maximum.at(self.generation, rows, generations[newer])
        self.late[rows] = np.maximum(self.late[rows], self.time[rows])
        self.state[rows] = RowState.MISSING
        for column in (self.failures, self.time, self.since):
            column[rows] = 0

    def _take_invalid(self, found: _Columns) -> None:
        rows = found["row"]
        self.since[rows] = np.where(self.since[rows] == 0, np.inf, self.since[rows])
        np.minimum.at(self.since, rows, found["time"])

    def _take_done(self, found: _Columns) -> None:
        rows = found["row"]
        state = self.state[rows]
        fresh = _select(found, (state == RowState.MISSING) | (state == RowState.FAILED))
        self.state[fresh["row"]] = RowState.DONE
        for name in ("checksums", "accuracy", "seconds", "journal", "number"):
            getattr(self, name)[fresh["row"]] = fresh[name]
        np.maximum.at(self.time, rows, found["time"])
        differs = (self.checksums[rows] != found["checksums"]).any(axis=1)
        self.state[rows[differs]] = RowState.CONFLICT

    def _take_suspects(self, rows: NDArray[np.uint64]) -> None:
        """Rows that an attempt of a former generation recorded after they had been invalidated."""
        suspect = (self.since[rows] > 0) & (self.late[rows] > self.since[rows]) & (self.state[rows] == RowState.DONE)
        self.state[rows[suspect]] = RowState.CONFLICT

    def _take_failures(self, found: _Columns) -> None:
        state = self.state[found["row"]]
        found = _select(found, (state == RowState.MISSING) | (state == RowState.FAILED))
        for once in _rounds(found["row"]):
            self._count_failures({name: column[once] for name, column in found.items()})

    def _count_failures(self, found: _Columns) -> None:
        rows = found["row"]
        same = (self.failures[rows] > 0) & (self._reasons[rows] == found["reason"])
        self.failures[rows] = np.minimum(self.failures[rows], 254) + 1
        for column, name in ((self._reasons, "reason"), (self.journal, "journal"), (self.number, "number")):
            column[rows] = found[name]
        self.state[rows[same | (self.failures[rows] >= 3)]] = RowState.FAILED

    def reason(self, row: int) -> str:
        """Why a row failed last; empty where it never did. Raises WorkError."""
        if self.failures[row] == 0:
            return ""
        reader = self.readers[self.journal[row]]
        try:
            return reader.record(int(self.number[row]))["reason"].decode(errors="replace")
        except OSError as error:
            raise WorkError(f"cannot read {reader.path}: {error.strerror}") from None

    def reasons(self) -> dict[str, int]:
        """Why rows failed for good, and how many for each reason; reads one record a reason. Raises WorkError."""
        rows = np.flatnonzero(self.state == RowState.FAILED)
        _, first, counts = np.unique(self._reasons[rows], return_index=True, return_counts=True)
        return {self.reason(int(rows[at])): int(count) for at, count in zip(first, counts, strict=True)}

    def damaged(self) -> dict[int, str]:
        """What is wrong with journals, by the number of their reader."""
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
    """The same columns with some of their entries; as they are where that is all of them."""
    return found if which.all() else {name: column[which] for name, column in found.items()}


def _rounds(rows: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Positions of each row's first entry, of each one's second and third: a fourth failure makes no difference."""
    order = np.argsort(rows, kind="stable")
    _, counts = np.unique(rows, return_counts=True)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    yield from (order[nth == number] for number in range(min(3, max(counts, default=0))))
