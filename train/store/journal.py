"""Journals: what happened to each row, one append-only file an attempt, each record with its own checksum.

A journal is 4,096 bytes of JSON (what the attempt's rows were made with) and then records of 128 bytes, or more where a
store has more than five arrays. Nobody writes
to another attempt's journal, and its attempt holds a lock on it. A record that is all zeros was never written: a power
cut may leave some where a batch of records was on its way to the disk.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import time
import zlib
from collections.abc import Container, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.train.errors import WorkError
from datamodels.train.npy_file import HEADER_BYTES, runs, sync_folder, write_all, write_file
from datamodels.train.store.locks import LockFile

_TRIES = 3
"""How often an append begins a new journal where the last one was replaced or removed."""


class Kind(IntEnum):
    DONE = 1
    """The row's bytes are durable; `checksums` are those of its arrays."""
    FAILED = 2
    """The row could not be trained; `reason` says why."""
    INVALID = 3
    """The row is to be redone: from here on only records of this generation count. Written twice, because the loss of
    such a record would bring the row back."""


REASON_BYTES = 64


def record_type(arrays: int) -> np.dtype:
    """Return the type of the records of a store with so many arrays: 128 bytes for up to 5, and 8 more for 2 more."""
    return np.dtype(
        [
            ("row", "<u8"),
            ("time", "<f8"),  # seconds since 1970
            ("generation", "<u4"),
            ("kind", "<u4"),
            ("seconds", "<f4"),  # of this row, in training and evaluation
            ("accuracy", "<f4"),  # on the test examples; nan where it is not known
            ("train_accuracy", "<f4"),  # on the row's own training subset
            ("checksums", "<u4", (max(5, arrays | 1),)),  # CRC-32 of the row in each array, in the manifest's order
            ("reason", f"S{REASON_BYTES}"),
            ("check", "<u8"),  # checksum of the bytes before it
        ]
    )


RECORD = record_type(5)
RECORD_BYTES = RECORD.itemsize
assert RECORD_BYTES == 128

MAX_GENERATION = 2**31

_FACTORS = np.random.Philox(key=0).random_raw(32) | np.uint64(1)
_CHUNK = 2**15
"""Records read at a time."""


def _checks(records: NDArray[np.void]) -> NDArray[np.uint64]:
    """Return the multilinear checksum of each record (Carter and Wegman 1979): all at once, 25 times as fast as CRCs.

    Modulo 2**64 an odd factor maps no change of its word to zero, so damage within one word never goes unseen.
    """
    words = np.ascontiguousarray(records).view("<u8").reshape(-1, records.itemsize // 8)[:, :-1]
    return np.einsum("ij,j->i", words, _FACTORS[: words.shape[1]]) + np.uint64(1)


def seal(records: NDArray[np.void]) -> None:
    """Fill in each record's own checksum."""
    records["check"] = _checks(records)


def intact(records: NDArray[np.void]) -> NDArray[np.bool_]:
    """Return which records match their own checksum and make sense."""
    good = _checks(records) == records["check"]
    good &= (records["kind"] >= min(Kind)) & (records["kind"] <= max(Kind))
    good &= np.isfinite(records["time"]) & np.isfinite(records["seconds"])
    return good & (records["generation"] < MAX_GENERATION)


def reason_hashes(records: NDArray[np.void]) -> NDArray[np.uint32]:
    """Return a number for each record's reason, equal where the reasons are."""
    words = np.ascontiguousarray(records["reason"]).view("<u8").reshape(len(records), REASON_BYTES // 8)
    return (np.einsum("ij,j->i", words, _FACTORS[: REASON_BYTES // 8]) >> np.uint64(32)).astype(np.uint32)


def attempt_name() -> str:
    """Return a name that no other attempt has: time, host, process, and the job and its restarts under SLURM."""
    job = "_".join(filter(None, (os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID"))))
    job = job or os.environ.get("SLURM_JOB_ID", "local")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return re.sub(r"[^\w.-]", "_", f"{time.time_ns()}-{socket.gethostname()}-{os.getpid()}-{job}-{restart}")


class JournalWriter:
    """One attempt's journal; the file appears with the first record.

    After an error the next records go to a new file, so that none is ever written over another.
    """

    def __init__(self, folder: Path, provenance: dict[str, Any]) -> None:
        self.folder = folder
        self._header = encode_header(provenance)
        self._lock: LockFile | None = None
        self._end = HEADER_BYTES

    def append(self, records: NDArray[np.void], twice: bool = False) -> None:
        """Append records and make them durable, `twice` on pages of their own. Raises WorkError with file and row."""
        seal(records)
        row = int(records["row"][0])
        for _ in range(_TRIES):
            path = self._lock.path if self._lock else self.folder / f"{attempt_name()}.bin"
            try:
                if self._append(path, records.tobytes(), twice):
                    return
            except OSError as error:
                if self._lock is not None:
                    with contextlib.suppress(OSError):
                        os.ftruncate(self._lock.fd, self._end)  # what the failed append may have left
                self.close()
                raise WorkError(f"cannot record row {row} in {path}: {error.strerror}") from error
            self.close()  # where locks fail, someone replaced the file: nobody reads what went to it
        raise WorkError(f"cannot record row {row} in {self.folder}: something removes its journals")

    def _append(self, path: Path, content: bytes, twice: bool) -> bool:
        """Return whether the journal still lies at its path after it took the records. Raises OSError."""
        if self._lock is None:
            self._lock = self._create(path)
        second = -(-(self._end + len(content)) // HEADER_BYTES) * HEADER_BYTES if twice else self._end
        for offset in sorted({self._end, second}):
            write_all(self._lock.fd, content, offset)
        os.fdatasync(self._lock.fd)
        self._end = second + len(content)
        return self._lock.is_current()

    def _create(self, path: Path) -> LockFile:
        lock = LockFile(path, os.O_EXCL)
        try:
            lock.acquire(0)
            write_all(lock.fd, self._header, 0)
            os.fsync(lock.fd)
            sync_folder(self.folder)
        except BaseException:
            lock.close()
            path.unlink(missing_ok=True)
            raise
        return lock

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
        self._lock, self._end = None, HEADER_BYTES


def encode_header(provenance: dict[str, Any]) -> bytes:
    """Return the first page of a journal. Raises ValueError where the provenance is too long for it."""
    header = _header_of(json.dumps(provenance, sort_keys=True).encode())
    if len(header) > HEADER_BYTES:
        raise ValueError(f"the provenance of an attempt takes {len(header)} bytes, at most {HEADER_BYTES} fit")
    return header


def _header_of(text: bytes) -> bytes:
    """Return a page with the CRC-32 of a JSON text, the text, and zeros."""
    return (b"%08x\n%s\n" % (zlib.crc32(text), text)).ljust(HEADER_BYTES, b"\0")


class JournalReader:
    """Follows one journal as it grows."""

    def __init__(self, path: Path, record: np.dtype = RECORD) -> None:
        self.path = path
        self.type = record
        self.provenance: dict[str, Any] = {}
        """What the attempt's rows were made with; empty where the header is damaged."""
        self.damaged: list[int] = []
        """Numbers of the records that hold something, but do not match their checksum."""
        self.header_damaged = False
        self._header = b""
        self._seen: tuple[int, int] | None = None
        self._gaps: list[range] = []
        self._read = 0

    def changed(self, status: os.stat_result) -> bool:
        """Return whether the file has changed since the last call."""
        seen, self._seen = self._seen, (status.st_size, status.st_mtime_ns)
        return seen != self._seen

    def new_records(self) -> Iterator[tuple[NDArray[np.void], NDArray[np.int64]]]:
        """Yield the intact records that came since the last call, and their numbers in the journal, some at a time.

        Records that were not intact then are read again: a live attempt may have been writing them. Raises OSError.
        """
        with open(self.path, "rb", buffering=0) as file:
            count = (os.fstat(file.fileno()).st_size - HEADER_BYTES) // self.type.itemsize
            if count <= 0:
                return
            if self._read == 0:
                self._take_header(file.read(HEADER_BYTES))
            pieces, size = [*self._gaps, range(self._read, count)], self.type.itemsize
            self._gaps, self.damaged, self._read = [], [], max(self._read, count)
            for piece in pieces:
                for start in range(piece.start, piece.stop, _CHUNK):
                    file.seek(HEADER_BYTES + start * size)
                    content = file.read(min(_CHUNK, piece.stop - start) * size)
                    records = np.frombuffer(content, self.type, len(content) // size)
                    numbers, good = start + np.arange(len(records)), intact(records)
                    if not good.all():
                        self._gaps += [range(run[0], run[-1] + 1) for run in runs(numbers[~good])]
                        written = records[~good].view(np.uint8).reshape(-1, size).any(axis=1)
                        self.damaged += numbers[~good][written].tolist()
                    yield records[good], numbers[good]

    def _take_header(self, content: bytes) -> None:
        """Keep the provenance, and the page as it was written, if its text is intact."""
        crc, _, rest = content.partition(b"\n")
        text = rest.partition(b"\n")[0]
        found = None
        if crc == b"%08x" % zlib.crc32(text):
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(text)
        if isinstance(found, dict) and isinstance(found.get("versions", {}), dict):
            self.provenance = found
        self._header = _header_of(text) if self.provenance else b""
        self.header_damaged = content != self._header

    def record(self, number: int) -> np.void:
        """Return one record, read again. Raises OSError."""
        with open(self.path, "rb", buffering=0) as file:
            size = self.type.itemsize
            file.seek(HEADER_BYTES + number * size)
            return np.frombuffer(file.read(size).ljust(size, b"\0"), self.type)[0]

    def is_live(self) -> bool:
        """Return whether its attempt is still at work; False where the file cannot be locked."""
        try:
            lock = LockFile(self.path)
        except OSError:
            return False
        try:
            return not lock.acquire(0)
        finally:
            lock.close()

    def mend(self, store_id: str) -> bool:
        """Copy the journal to *.damaged beside it, and write zeros over its damaged records, in one step.

        The other records keep their numbers. Returns False, and does nothing, while its attempt is still at work.
        Raises OSError; WorkError where locks do not work, without which that is not known.
        """
        lock = LockFile(self.path)
        try:
            if not lock.works:
                raise WorkError(
                    f"{self.path} is damaged, but without file locks there is no way to know whether its process still "
                    "runs: repair it where locks work (on Lustre, with -o localflock on the one node in use)"
                )
            if not lock.acquire(0):
                return False
            write_file(self.path.with_suffix(".bin.damaged"), self._pieces())
            header = self._header or encode_header({"store": store_id})
            write_file(self.path, self._pieces(header, set(self.damaged)))
        finally:
            lock.close()
        return True

    def _pieces(self, header: bytes = b"", without: Container[int] = ()) -> Iterator[bytes]:
        """Yield the file's content, with `header` for its first page if given, and zeros for the records `without`."""
        size = self.type.itemsize
        with open(self.path, "rb") as file:
            found = file.read(HEADER_BYTES)
            yield header or found
            for start in itertools.count(0, _CHUNK):
                content = bytearray(file.read(_CHUNK * size))
                if not content:
                    return
                for index in range(len(content) // size):
                    if start + index in without:
                        content[index * size : (index + 1) * size] = bytes(size)
                yield bytes(content)
