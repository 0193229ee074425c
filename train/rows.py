"""Doing the rows of a store that are missing: the one loop that every launcher runs."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from train.errors import Interrupted
from train.state import RowState
from train.store import Store
from train.writer import RowFailure, RowResult, Writer

if TYPE_CHECKING:
    from train.loop import Trainer

POLL_SECONDS = 0.5


def train_rows(
    store: Store,
    writer: Writer,
    trainer: "Trainer",
    rows: range,
    stop: Callable[[], bool],
    finished: Callable[[list[RowResult | RowFailure]], None],
) -> None:
    """Train every missing row in `rows`, group by group; groups that another process holds are left to it.

    A row that failed once is tried once more, so that a failure counts only when it happens again. Returns when no row
    is missing. Raises Interrupted, WorkError.
    """
    while len(groups := np.unique(store.missing(rows.start, rows.stop) // store.group)):
        worked = False
        for group in groups.tolist():
            if stop():
                raise Interrupted
            if not _wanted(store, group, rows):
                continue  # done by another process since the groups were listed
            with writer.leased(group) as held:
                worked |= held
                if held:
                    _train_group(store, writer, trainer, group, rows, stop, finished)
        if not worked:
            time.sleep(POLL_SECONDS)
            store.refresh()


def _train_group(
    store: Store,
    writer: Writer,
    trainer: "Trainer",
    group: int,
    rows: range,
    stop: Callable[[], bool],
    finished: Callable[[list[RowResult | RowFailure]], None],
) -> None:
    wanted = _wanted(store, group, rows)
    if not wanted:
        return
    conflicting = [row for row in wanted if store.states.state[row] == RowState.CONFLICT]
    if conflicting:
        writer.invalidate(conflicting)
    results = [result for result in trainer(group, stop) if result.row in wanted]
    writer.commit(group, results)
    finished(results)


def _wanted(store: Store, group: int, rows: range) -> set[int]:
    start = group * store.group
    return set(store.missing(max(start, rows.start), min(start + store.group, rows.stop)).tolist())


def retry_failed(store: Store, writer: Writer, rows: range) -> int:
    """Make the rows that failed for good missing again; returns how many."""
    failed = np.flatnonzero(store.failed()[rows.start : rows.stop]) + rows.start
    writer.invalidate(failed.tolist())
    store.refresh()
    return len(failed)
