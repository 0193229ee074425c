"""Check a store: every completed row against its checksums, its mask against the seed; and repair it."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from datamodels.train.errors import WorkError
from datamodels.train.npy_file import new_file, sync_folder
from datamodels.train.store.row_state import RowState
from datamodels.train.store.store import Store
from datamodels.train.store.writer import Writer

BLOCK_BYTES = 4 << 20
"""Read at a time by each thread: small enough to stay in a core's cache from one check to the next."""

BLOCKS = 16
"""Blocks that a thread checks before it takes others."""


@dataclass
class Finding:
    """What is wrong with a store."""

    checked: int = 0
    """Completed rows that were read."""
    reasons: dict[int, str] = field(default_factory=dict)
    """What is wrong with each completed row whose bytes are not what was recorded, or not what the seed says."""
    files: list[str] = field(default_factory=list)
    """Damaged files, each with what is wrong with it."""

    @property
    def bad(self) -> list[int]:
        """Numbers of the bad rows, ascending."""
        return sorted(self.reasons)

    @property
    def fine(self) -> bool:
        return not self.reasons and not self.files


def verify(store: Store, progress: Callable[[int], None] = lambda rows: None) -> Finding:
    """Read every completed row of a store, on all cores, in bounded memory. Raises WorkError where it cannot.

    progress: called with the number of rows that were checked since its last call.
    """
    finding = Finding(files=_damaged_files(store))
    check = _Check(store)
    rows = np.flatnonzero(store.completed())
    finding.checked = len(rows)
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        # A row that is bad is looked at again: another process may just have been making it anew.
        for report in (progress, lambda rows: None):
            found: dict[int, str] = {}
            ends = range(BLOCKS * check.block, store.rows + BLOCKS * check.block, BLOCKS * check.block)
            pieces = np.split(rows, np.searchsorted(rows, ends[:-1]))
            at = 0
            for end, reasons in zip(ends, pool.map(check, pieces), strict=True):
                found |= reasons
                report(min(end, store.rows) - at)
                at = min(end, store.rows)
            if not found:
                break
            store.refresh()
            rows = np.array(sorted(found))
            rows = rows[store.completed()[rows]]
        finding.reasons = found
    finally:
        pool.shutdown(cancel_futures=True)
    return finding


def _damaged_files(store: Store) -> list[str]:
    """Return what is wrong with headers, lengths and journals. Raises WorkError."""
    try:
        wrong = store.wrong_headers()
    except OSError as error:
        raise WorkError(f"cannot read {error.filename or store.layout.data}: {error.strerror}") from None
    found = [f"{store.layout.array(array.name)}: its header does not match the manifest" for array in wrong]
    for name, rows in store.cut_arrays().items():
        there = "it is missing: restore it from a copy, or put an empty file there, for `repair` to begin it anew"
        cut = f"it holds {rows} of {store.rows} rows, since it was cut short"
        found.append(f"{store.layout.array(name)}: {cut if store.layout.array(name).exists() else there}")
    return found + [f"{store.states.readers[index].path}: {what}" for index, what in store.states.damaged().items()]


class _Check:
    """Checks rows that are done. Texts are shared between rows: a store may be bad as a whole."""

    def __init__(self, store: Store) -> None:
        self.store = store
        row_bytes = sum(array.bytes // store.rows for array in store.arrays.values())
        self.block = max(1, BLOCK_BYTES // row_bytes)
        self.whole = dict.fromkeys(store.arrays, store.rows) | store.cut_arrays()

    def __call__(self, rows: NDArray[np.int64]) -> dict[int, str]:
        """Return what is wrong with each bad row among some, by its number."""
        reasons: dict[int, str] = {}
        for piece in np.split(rows, np.flatnonzero(np.diff(rows // self.block)) + 1):
            for name in self.store.arrays if len(piece) else ():
                for row, text in self._look(name, piece):
                    reasons.setdefault(row, sys.intern(text))
        return reasons

    def _look(self, name: str, rows: NDArray[np.int64]) -> Iterator[tuple[int, str]]:
        """Yield the bad rows among some, close together, of one array, and what is wrong with each."""
        there = rows[rows < self.whole[name]]
        yield from ((row, f"{name} was cut short before it") for row in rows[len(there) :].tolist())
        if not len(there):
            return
        start = int(there[0])
        try:
            content = self.store.read(name, start, int(there[-1]) + 1)
        except WorkError as error:
            if len(there) == 1:
                yield start, str(error)
            else:
                for row in there:
                    yield from self._look(name, row[None])
            return
        yield from wrong_rows(self.store, name, there, content)


def wrong_rows(store: Store, name: str, rows: NDArray[np.int64], content: NDArray) -> Iterator[tuple[int, str]]:
    """Yield those of some ascending, completed rows that are bad in one array, and what is wrong with each.

    content: [n, ...], as read from the first of the rows to the last.
    """
    start = int(rows[0])
    bad = store.mismatches(name, start, content)
    for row in rows.tolist():
        values = content[row - start]
        if bad[row - start]:
            yield row, f"{name} does not match its checksum"
        elif name == "train_masks":
            if not store.is_seeded(row, values):
                count = f"{np.count_nonzero(values)} of {values.size} examples"
                yield row, f"{name} is not the mask that the seed gives ({count})"
        elif not is_finite(values):
            yield row, f"{name} has a value that is not finite"


def is_finite(values: NDArray[np.floating]) -> bool:
    """Return whether no value is an infinity or NaN: float16 has those where all exponent bits are set."""
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    return int((values.view(np.uint16) & 0x7FFF).max()) < 0x7C00


def repair(store: Store, writer: Writer, finding: Finding) -> list[str]:
    """Make the bad rows missing, put headers and lengths right, and set damaged journals aside.

    Returns what was done to files. Raises WorkError.
    """
    told = []
    try:
        damaged = [store.states.readers[index] for index in store.states.damaged()]
        own = [reader for reader in damaged if not store.states.is_foreign(reader)]
        # A damaged record may have been one that made the row missing that it names.
        named = {int(reader.record(number)["row"]) for reader in own for number in reader.damaged}
        suspects = [row for row in named if row < store.rows and store.states.state[row] == RowState.DONE]
        writer.invalidate([*finding.bad, *suspects])
        for name in store.cut_arrays():
            new_file(store.layout.array(name), store.arrays[name].shape, store.arrays[name].dtype)
            sync_folder(store.layout.data)
            told.append(f"{store.layout.array(name)}: lengthened to its {store.rows} rows")
        wrong = store.wrong_headers()
        store.write_headers(wrong)
        told += [f"{store.layout.array(array.name)}: header written anew" for array in wrong]
        for index in store.states.damaged():
            reader = store.states.readers[index]
            if store.states.is_foreign(reader):
                os.rename(reader.path, reader.path.with_suffix(".bin.damaged"))
                told.append(f"{reader.path}: set aside as *.damaged")
            elif reader.mend(store.manifest.id):
                told.append(f"{reader.path}: its intact records were kept, a copy lies beside it as *.damaged")
            else:
                raise WorkError(f"{reader.path} is damaged, but its process still runs: repair again once it has ended")
    except OSError as error:
        raise WorkError(f"cannot mend {error.filename or store.layout.data}: {error.strerror}") from None
    store.refresh()
    store.sync_flags()
    return told
