"""Checking a store: every completed row against its checksums, its mask against the seed; and mending it."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from train.errors import WorkError
from train.masks import Masks
from train.store import Store
from train.writer import Writer

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
    row_bytes = sum(array.bytes // store.rows for array in store.arrays.values())
    block = max(1, BLOCK_BYTES // row_bytes)
    done = store.completed()
    stretches = [range(store.rows)[at : at + BLOCKS * block] for at in range(0, store.rows, BLOCKS * block)]
    masks = Masks(store.setting, store.n_train, list(store.eras))

    def check(rows: range) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for start in rows[::block]:
            reasons |= _check(store, masks, done, start, min(start + block, rows.stop))
        return reasons

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        for rows, reasons in zip(stretches, pool.map(check, stretches), strict=True):
            finding.reasons |= reasons
            finding.checked += int(np.count_nonzero(done[rows.start : rows.stop]))
            progress(len(rows))
    finally:
        pool.shutdown(cancel_futures=True)
    _look_again(store, masks, finding)
    return finding


def _damaged_files(store: Store) -> list[str]:
    try:
        wrong = store.wrong_headers()
    except OSError as error:
        raise WorkError(f"cannot read {error.filename or store.layout.data}: {error.strerror}") from None
    found = [f"{store.layout.array(array.name)}: its header does not match the manifest" for array in wrong]
    return found + [f"{store.states.readers[index].path}: {what}" for index, what in store.states.damaged().items()]


def _look_again(store: Store, masks: Masks, finding: Finding) -> None:
    """Drop the bad rows that another process was just making anew."""
    store.refresh()
    done = store.completed()
    for row in finding.bad:
        reasons = _check(store, masks, done, row, row + 1)
        if not reasons:
            del finding.reasons[row]
        finding.reasons.update(reasons)


def _check(store: Store, masks: Masks, done: NDArray[np.bool_], start: int, stop: int) -> dict[int, str]:
    """What is wrong with the rows of [start, stop) that are done."""
    reasons: dict[int, str] = {}
    rows = start + np.flatnonzero(done[start:stop])
    for name in store.arrays if len(rows) else ():
        try:
            content = store.read(name, start, stop)
        except WorkError as error:
            if stop - start == 1:
                return {int(row): str(error) for row in rows}
            return {row: text for at in rows.tolist() for row, text in _check(store, masks, done, at, at + 1).items()}
        bad = store.mismatches(name, start, content)
        for row in rows.tolist():
            if bad[row - start]:
                reasons.setdefault(row, f"{name} does not match its checksum")
            elif wrong := _implausible(name, content[row - start], masks, row):
                reasons.setdefault(row, f"{name} {wrong}")
    return reasons


def _implausible(name: str, content: NDArray, masks: Masks, row: int) -> str:
    """What is wrong with a row's values; empty where they may be right."""
    if name != "train_masks":
        return "" if is_finite(content) else "has a value that is not finite"
    if np.array_equal(content, masks[row]):
        return ""
    return f"is not the mask that the seed gives ({np.count_nonzero(content)} of {content.size} examples)"


def is_finite(values: NDArray[np.float16]) -> bool:
    """Whether no value is an infinity or NaN: float16 has those where all exponent bits are set."""
    return int((values.view(np.uint16) & 0x7FFF).max()) < 0x7C00


def repair(store: Store, writer: Writer, finding: Finding) -> list[str]:
    """Make the bad rows missing, put headers right, and set damaged journals aside; returns what was done to files.

    Raises WorkError.
    """
    writer.invalidate(finding.bad)
    try:
        told = _mend_headers(store) + _mend_journals(store)
    except OSError as error:
        raise WorkError(f"cannot mend {error.filename or store.layout.data}: {error.strerror}") from None
    store.refresh()
    store.sync_flags()
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
