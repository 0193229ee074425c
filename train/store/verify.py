"""Checking a store: every completed row against its checksums, its mask against the seed; and mending it."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from datamodels.train.errors import WorkError
from datamodels.train.npy_file import new_file
from datamodels.train.store.row_state import RowState
from datamodels.train.store.store import Store
from datamodels.train.store.writer import Writer

BLOCK_BYTES = 4 << 20
"""Read at a time by each thread: small enough to stay in a core's cache from one check to the next."""

BLOCKS = 16
"""Blocks that a thread checks before it takes others."""


@dataclass
class Finding:
    checked: int = 0
    """Completed rows that were read."""
    reasons: dict[int, str] = field(default_factory=dict)
    """What is wrong with the completed rows whose bytes are not what was recorded, or not what the seed says."""
    files: list[str] = field(default_factory=list)
    """Damaged files, each with what is wrong with it."""

    @property
    def bad(self) -> list[int]:
        return sorted(self.reasons)

    @property
    def fine(self) -> bool:
        return not self.reasons and not self.files


def verify(store: Store, progress: Callable[[int], None] = lambda rows: None) -> Finding:
    """Read every completed row of a store, on all cores, in bounded memory. Raises WorkError where it cannot."""
    finding = Finding(files=_damaged_files(store))
    check = _Check(store)
    done = np.flatnonzero(store.completed())
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        at = 0
        for start, reasons in _bad_in(pool, check, done, store.rows):
            finding.reasons |= reasons
            progress(min(start, store.rows) - at)
            at = min(start, store.rows)
        finding.checked = len(done)
        finding.reasons = _look_again(pool, check, store, finding.bad)
    finally:
        pool.shutdown(cancel_futures=True)
    return finding


def _look_again(pool: ThreadPoolExecutor, check: "_Check", store: Store, bad: list[int]) -> dict[int, str]:
    """What is wrong with the bad rows now: another process may just have been making some of them anew."""
    if not bad:
        return {}
    store.refresh()
    rows = np.array(bad)
    reasons: dict[int, str] = {}
    for _, found in _bad_in(pool, check, rows[store.completed()[rows]], store.rows):
        reasons |= found
    return reasons


def _bad_in(
    pool: ThreadPoolExecutor, check: "_Check", rows: NDArray[np.int64], stop: int
) -> Iterator[tuple[int, dict[int, str]]]:
    """Check rows, stretch by stretch: where each stretch ends, and what is wrong in it."""
    stretch = BLOCKS * check.block
    ends = range(stretch, stop + stretch, stretch)
    pieces = np.split(rows, np.searchsorted(rows, ends[:-1]))
    yield from zip(ends, pool.map(check, pieces), strict=True)


def _damaged_files(store: Store) -> list[str]:
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
    """What is wrong with rows that are done. Texts are shared between rows: a store may be bad as a whole."""

    def __init__(self, store: Store) -> None:
        self.store = store
        row_bytes = sum(array.bytes // store.rows for array in store.arrays.values())
        self.block = max(1, BLOCK_BYTES // row_bytes)
        self.whole = dict.fromkeys(store.arrays, store.rows) | store.cut_arrays()

    def __call__(self, rows: NDArray[np.int64]) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for piece in np.split(rows, np.flatnonzero(np.diff(rows // self.block)) + 1):
            for name in self.store.arrays if len(piece) else ():
                for row, text in self._look(name, piece):
                    reasons.setdefault(row, sys.intern(text))
        return reasons

    def _look(self, name: str, rows: NDArray[np.int64]) -> Iterator[tuple[int, str]]:
        """What is wrong with some rows, close together, of one array."""
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
        bad = self.store.mismatches(name, start, content)
        for row in there.tolist():
            if bad[row - start]:
                yield row, f"{name} does not match its checksum"
            elif wrong := self._implausible(name, content[row - start], row):
                yield row, f"{name} {wrong}"

    def _implausible(self, name: str, content: NDArray, row: int) -> str:
        """What is wrong with a row's values; empty where they may be right."""
        if name != "train_masks":
            return "" if is_finite(content) else "has a value that is not finite"
        if np.array_equal(content, self.store.seeded_masks[row]):
            return ""
        return f"is not the mask that the seed gives ({np.count_nonzero(content)} of {content.size} examples)"


def is_finite(values: NDArray[np.float16]) -> bool:
    """Whether no value is an infinity or NaN: float16 has those where all exponent bits are set."""
    return int((values.view(np.uint16) & 0x7FFF).max()) < 0x7C00


def repair(store: Store, writer: Writer, finding: Finding) -> list[str]:
    """Make the bad rows missing, put headers and lengths right, and set damaged journals aside.

    Returns what was done to files. Raises WorkError.
    """
    try:
        writer.invalidate([*finding.bad, *_named_by_damage(store)])
        told = _lengthen(store) + _mend_headers(store) + _mend_journals(store)
    except OSError as error:
        raise WorkError(f"cannot mend {error.filename or store.layout.data}: {error.strerror}") from None
    store.refresh()
    store.sync_flags()
    return told


def _named_by_damage(store: Store) -> list[int]:
    """Rows that are done, but that a damaged record names: it may have been one that made the row missing."""
    journals = [store.states.readers[index] for index in store.states.damaged()]
    rows = {row for reader in journals if not store.states.is_foreign(reader) for row in reader.damaged_rows()}
    return [row for row in rows if row < store.rows and store.states.state[row] == RowState.DONE]


def _lengthen(store: Store) -> list[str]:
    """Give arrays that were cut short their length again, with zeros."""
    told = []
    for name in store.cut_arrays():
        array = store.arrays[name]
        new_file(store.layout.array(name), array.shape, array.dtype)
        told.append(f"{store.layout.array(name)}: lengthened to its {store.rows} rows")
    return told


def _mend_headers(store: Store) -> list[str]:
    wrong = store.wrong_headers()
    store.write_headers(wrong)
    return [f"{store.layout.array(array.name)}: header written anew" for array in wrong]


def _mend_journals(store: Store) -> list[str]:
    told = []
    for index in store.states.damaged():
        reader = store.states.readers[index]
        if store.states.is_foreign(reader):
            os.rename(reader.path, reader.path.with_suffix(".bin.damaged"))
            told.append(f"{reader.path}: set aside as *.damaged")
        elif reader.mend(store.manifest.id):
            told.append(f"{reader.path}: its intact records were kept, a copy lies beside it as *.damaged")
        else:
            raise WorkError(
                f"{reader.path} is damaged, but its process is still at work: repair again once it has ended"
            )
    return told
