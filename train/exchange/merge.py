"""Bring the completed rows of other stores of a setting into one: docs/cloud.md.

A row comes with its record: on what it was made, when, in how many seconds. So there is a journal here for each journal
of a source that has something to bring.
"""

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Setting
from datamodels.train.errors import UserError, WorkError
from datamodels.train.exchange.importer import Progress
from datamodels.train.npy_file import Notice, runs
from datamodels.train.outputs import Declared, Output
from datamodels.train.store import (
    Layout,
    Manifest,
    RowFailure,
    RowResult,
    RowState,
    Store,
    Writer,
    check_declared,
    check_identity,
    create_store,
    read_manifest,
    wrong_rows,
)

_BATCH_BYTES, _BATCH_ROWS = 2**25, 2**10
"""What is read, and then committed, at a time, at most; one row may be larger."""


@dataclass
class Merged:
    """What became of the rows of one source."""

    source: Path
    merged: int = 0
    present: int = 0
    """Rows that were here already, with the same checksums."""
    failed: int = 0
    """Rows that failed for good in the source, were missing here, and now count as failed here too."""
    differ: list[int] = field(default_factory=list)
    """Rows that are here with other checksums; they stay."""
    bad: dict[int, str] = field(default_factory=dict)
    """Rows whose bytes in the source are not what was recorded or what the seed gives, and what is wrong with each."""
    held: list[int] = field(default_factory=list)
    """Rows that another process was writing here."""


def merge(
    layout: Layout, setting: Setting, roots: Sequence[Path], merger: dict[str, Any], progress: Progress, notice: Notice
) -> tuple[Store, list[Merged]]:
    """Bring rows of the stores in some roots into that of a layout; returns it, and what became of each root's rows.

    It is created if it does not exist, as long as the longest of the others. A row that is done in several is that of
    the first. What failed for good, or came out in two ways, gives way to a row that is done. Sources are only read.
    merger: what journals of the rows say of this process. progress: called with a root, rows of it that were looked at,
    and how many there are to look at.

    Raises UserError, before anything is written, for a source of another setting, data set or history; WorkError where
    one has a damaged journal.
    """
    sources = [_find(root, setting) for root in roots]
    store = Store.open(layout, setting) if layout.manifest.exists() else None
    longest, manifest, declared = max(sources, key=lambda source: source[1].rows)
    path, expected = (layout.manifest, store.manifest) if store else (longest.manifest, manifest)
    for place, manifest, found in sources:
        if store and os.path.samefile(place.data, layout.data):
            raise UserError(f"{place.root} is both a source and what to merge into, expected another --root")
        check_declared(expected, setting, found)
        if manifest.rows > expected.rows:
            raise UserError(
                f"{place.manifest} has {manifest.models} models, but {path} {expected.models}: "
                f"`datamodels grow --models {manifest.models}` lengthens it"
            )
        same = manifest.eras == expected.eras[: len(manifest.eras)]
        if setting.runs_per_mask > 1 and not same:  # or else a row's mask follows from its number alone
            histories = [[era.models for era in each.eras] for each in (manifest, expected)]
            raise UserError(
                f"models of {place.manifest} grew as in {histories[0]}, but of {path} as in {histories[1]}: with "
                "runs_per_mask, rows have other masks then"
            )
    if not store:
        check_identity(expected, setting, path)  # of `models`, which may be any that the history has
        setting = replace(setting, models=expected.models)
        store = create_store(layout, setting, declared, notice, expected.eras)
    return store, [_merge(store, place, merger, progress, notice) for place, *_ in sources]


def _find(root: Path, setting: Setting) -> tuple[Layout, Manifest, Declared]:
    """Return where a setting's store lies in a root, its manifest, and what its data set or trainer declared.

    Raises UserError, also where the store is of another setting; WorkError.
    """
    layout = Layout(root, setting.dataset, setting.file_tag)
    others = [] if layout.manifest.exists() else sorted(root.glob("*/data/store_*.json"))
    path = others[0] if others else layout.manifest
    if not path.exists():
        raise UserError(f"{path} does not exist: expected the root of a store")
    manifest = read_manifest(path)
    check_identity(manifest, replace(setting, models=manifest.models), path)
    store = Store.open(layout, mend=False)
    for index, told in store.states.damaged().items():  # a row that they made missing may look done
        raise WorkError(f"{store.states.readers[index].path}: {told}: run `datamodels repair` there")
    outputs = tuple(Output(array.name, array.shape[1:], array.dtype) for array in list(store.arrays.values())[1:])
    names = {split: found for split in ("train", "test") if (found := store.names(split))}
    sizes = manifest.n_train, manifest.n_test, manifest.classes
    return layout, manifest, Declared(*sizes, outputs, manifest.data_sha256, str(layout.manifest), names)


def _merge(store: Store, place: Layout, merger: dict[str, Any], progress: Progress, notice: Notice) -> Merged:
    found, source = Merged(place.root), Store.open(place, mend=False)
    stale = source.stale_flags()
    if len(lost := stale[~source.completed()[stale]]):
        notice(f"{place.completed} has {len(lost)} rows as done that no journal records: they are left out")
    theirs, here = source.states, store.states
    store.refresh()
    done, failed = np.flatnonzero(source.completed()), np.flatnonzero(source.failed())
    present = _same(store, source, done)
    found.present = int(present.sum())
    rows = np.concatenate([done[~present], failed[here.state[failed] == RowState.MISSING]])
    rows = rows[np.lexsort([rows, theirs.journal[rows]])]
    row_bytes = sum(array.bytes for array in source.arrays.values()) // source.rows
    height, looked = max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes)), 0
    for of_journal in np.split(rows, np.flatnonzero(np.diff(theirs.journal[rows])) + 1) if len(rows) else ():
        made = theirs.readers[theirs.journal[of_journal[0]]].provenance
        with closing(Writer(store, {**made, "merged": {**merger, "store": source.manifest.id}})) as writer:
            for start in range(0, len(of_journal), height):
                batch = of_journal[start : start + height]
                _take(writer, source, batch, found)
                looked += len(batch)
                progress(str(place.root), looked, len(rows))
    return found


def _same(store: Store, source: Store, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of some rows, done in the source, are done in the store with the same checksums."""
    same = (store.states.checksums[rows] == source.states.checksums[rows]).all(axis=1)
    return same & (store.states.state[rows] == RowState.DONE)


def _take(writer: Writer, source: Store, rows: NDArray[np.int64], found: Merged) -> None:
    """Commit those of some rows of a source that are good there and not done here. Raises WorkError."""
    store, state = writer.store, writer.store.states.state
    results = _read(source, rows, found)
    leased = writer.lease_free(sorted({result.row // store.group for result in results}))
    try:
        wanted: list[RowResult | RowFailure] = []
        free = set(leased)
        for result in results:
            if result.row // store.group not in free:
                found.held.append(result.row)
            elif state[result.row] != RowState.DONE:
                wanted.append(result)
            elif isinstance(result, RowResult):
                same = _same(store, source, np.array([result.row]))[0]
                found.present += int(same)
                found.differ += [] if same else [result.row]
        done = np.array([result.row for result in wanted if isinstance(result, RowResult)], np.int64)
        if len(former := done[state[done] != RowState.MISSING]):
            writer.invalidate(former)
        failures = [result for result in wanted if isinstance(result, RowFailure)]
        for each in (wanted, failures):  # a row fails for good at the second time
            writer.commit(each)
            store.refresh()
        came = _same(store, source, done)
        found.merged += int(came.sum())
        found.held += done[~came].tolist()
        found.failed += sum(state[failure.row] == RowState.FAILED for failure in failures)
    finally:
        for group in leased:
            writer.release(group)


def _read(source: Store, rows: NDArray[np.int64], found: Merged) -> list[RowResult | RowFailure]:
    """Return what the source has of some ascending rows; those that are bad are put down in `found` instead."""
    results: list[RowResult | RowFailure] = []
    done = source.completed()[rows]
    for row in rows[~done].tolist():
        record = source.states.record_of(row)
        results.append(RowFailure(row, source.states.reason(row), float(record["seconds"]), float(record["time"])))
    for run in runs(rows[done]):
        start, stop = int(run[0]), int(run[-1]) + 1
        try:
            content = {name: source.read(name, start, stop) for name in source.arrays}
        except WorkError as error:
            if len(run) == 1:
                found.bad[start] = str(error)
            else:
                for row in run:
                    results += _read(source, row[None], found)
            continue
        wrong = dict(told for name in content for told in wrong_rows(source, name, run, content[name]))
        found.bad |= wrong
        for row in set(run.tolist()) - wrong.keys():
            record = source.states.record_of(row)
            values = {name: array[row - start] for name, array in content.items()}
            made = [float(record[key]) for key in ("seconds", "accuracy", "train_accuracy", "time")]
            results.append(RowResult(row, values, *made))
    return results
