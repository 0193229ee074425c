"""The state of every row of a store, merged from all journals. Takes 50 bytes a row."""

import os
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.errors import WorkError
from train.journal import JournalReader, Kind

ARRAYS_MAX = 5

_BATCH = 2**15
"""Records merged at a time."""

_COLUMNS = ("row", "generation", "kind", "checksums", "accuracy", "time", "seconds")


class RowState(IntEnum):
    MISSING = 0
    DONE = 1
    FAILED = 2
    """Failed in the same way twice, or three times in any way."""
    CONFLICT = 3
    """Two attempts recorded different bytes: which of them lie in the arrays is unknown."""


class RowStates:
    """Per-row state arrays [M], kept up to date by `refresh`.

    A row counts at its highest generation alone, so a record that was delayed (by a process that lost its lease) never
    brings back what has been invalidated. The order in which records are found makes no difference.
    """

    def __init__(self, folder: Path, rows: int, store_id: str) -> None:
        self.folder = folder
        self.store_id = store_id
        self.state = np.zeros(rows, np.uint8)
        self.failures = np.zeros(rows, np.uint8)
        self.generation = np.zeros(rows, np.uint32)
        self.checksums = np.zeros((rows, ARRAYS_MAX), np.uint32)
        self.accuracy = np.full(rows, np.nan, np.float32)
        self.time = np.zeros(rows, np.float64)
        self.seconds = np.zeros(rows, np.float32)
        self.journal = np.full(rows, -1, np.int32)
        self.number = np.zeros(rows, np.int32)
        self.readers: list[JournalReader] = []
        self._index: dict[str, int] = {}

    def refresh(self) -> None:
        """Take in what was appended to any journal since the last call. Raises WorkError."""
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
            status = entry.stat()
        except FileNotFoundError:
            return None  # an attempt that could not write its header has taken its journal away again
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

    def _take(self, batch: Sequence[tuple[NDArray[np.void], NDArray[np.int64], int]]) -> None:
        if not batch:
            return
        found = {name: np.concatenate([records[name] for records, _, _ in batch]) for name in _COLUMNS}
        found["number"] = np.concatenate([numbers for _, numbers, _ in batch])
        found["journal"] = np.repeat([index for _, _, index in batch], [len(records) for records, _, _ in batch])
        found = _select(found, found["row"] < len(self.state))
        self._raise_generations(found["row"], found["generation"])
        found = _select(found, found["generation"] == self.generation[found["row"]])
        self._take_done(_select(found, found["kind"] == Kind.DONE))
        failed = _select(found, found["kind"] == Kind.FAILED)
        for row, journal, number in zip(failed["row"], failed["journal"], failed["number"], strict=True):
            self._take_failure(int(row), int(journal), int(number))

    def _raise_generations(self, rows: NDArray[np.uint64], generations: NDArray[np.uint32]) -> None:
        newer = generations > self.generation[rows]
        rows = rows[newer]
        np.maximum.at(self.generation, rows, generations[newer])
        self.state[rows] = RowState.MISSING
        self.failures[rows] = 0

    def _take_done(self, found: dict[str, NDArray]) -> None:
        state = self.state[found["row"]]
        fresh = _select(found, (state == RowState.MISSING) | (state == RowState.FAILED))
        self.state[fresh["row"]] = RowState.DONE
        for name in ("checksums", "accuracy", "time", "seconds", "journal", "number"):
            getattr(self, name)[fresh["row"]] = fresh[name]
        differs = (self.checksums[found["row"]] != found["checksums"]).any(axis=1)
        self.state[found["row"][differs]] = RowState.CONFLICT

    def _take_failure(self, row: int, journal: int, number: int) -> None:
        if self.state[row] not in (RowState.MISSING, RowState.FAILED):
            return
        before = self.reason(row) if self.failures[row] else None
        self.failures[row] = min(int(self.failures[row]) + 1, 255)
        self.journal[row], self.number[row] = journal, number
        if self.reason(row) == before or self.failures[row] >= 3:
            self.state[row] = RowState.FAILED

    def reason(self, row: int) -> str:
        """Why a row failed last; empty where it never did. Raises WorkError."""
        if self.failures[row] == 0:
            return ""
        reader = self.readers[self.journal[row]]
        try:
            return reader.record(int(self.number[row]))["reason"].decode(errors="replace")
        except OSError as error:
            raise WorkError(f"cannot read {reader.path}: {error.strerror}") from None

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


def _select(found: dict[str, NDArray], which: NDArray[np.bool_]) -> dict[str, NDArray]:
    """The same columns with some of their entries; as they are where that is all of them."""
    return found if which.all() else {name: column[which] for name, column in found.items()}
