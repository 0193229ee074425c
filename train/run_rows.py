"""Train the rows of a store that are missing, by any trainer: the one loop that every launcher runs."""

import contextlib
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datamodels.train.errors import Interrupted
from datamodels.train.store import RowFailure, RowResult, RowState, Store, Writer

POLL_SECONDS = 0.5

PATIENCE_SECONDS = 30.0
"""Seconds of waiting for rows that another process holds, after which a notice names them."""

Results = list[RowResult | RowFailure]


class Pending(Protocol):
    """A group of rows whose training has been started."""

    def result(self) -> Results:
        """Return its rows, once they are trained. Raises Interrupted."""


class RowTrainer(Protocol):
    """What trains the rows of a store: the image trainer, or a user's file."""

    @property
    def ahead(self) -> int:
        """Groups to have under way while the next one is started."""

    def start(self, group: int, stop: Callable[[], bool]) -> Pending:
        """Start training a group. Raises Interrupted, UserError, WorkError."""

    def environment(self) -> dict[str, Any]:
        """Return what byte equality depends on: rows made with equal environments are equal."""

    def close(self) -> None:
        """Give up what it holds."""


def train_rows(
    store: Store,
    writer: Writer,
    trainer: RowTrainer,
    rows: range,
    stop: Callable[[], bool],
    finished: Callable[[Results], None],
) -> None:
    """Train every missing row in `rows`, group by group; groups that another process holds are left to it.

    A group is committed while the next one trains. A row that failed once is tried once more, so that a failure counts
    only when it happens again. Returns when no row is missing. Raises Interrupted, WorkError; what was trained by then
    is committed first.
    """
    store.check_arrays()
    waiting = _Waiting(store)
    with _Commits(writer, trainer.ahead, finished) as commits:
        while len(groups := np.unique(store.missing(rows.start, rows.stop) // store.group)):
            worked = False
            for group in groups.tolist():
                if stop():
                    raise Interrupted
                worked |= _train_group(store, writer, trainer, group, rows, stop, commits)
            commits.wait()
            waiting.note(worked, groups)
            if not worked:
                time.sleep(POLL_SECONDS)
                store.refresh()


def _train_group(
    store: Store,
    writer: Writer,
    trainer: RowTrainer,
    group: int,
    rows: range,
    stop: Callable[[], bool],
    commits: "_Commits",
) -> bool:
    """Start training a group, and its commit, unless another process holds it; whether there was something to do."""

    def missing() -> set[int]:
        start = max(group * store.group, rows.start)
        return set(store.missing(start, min((group + 1) * store.group, rows.stop)).tolist())

    if not missing() or not writer.lease(group):
        return False
    started = False
    try:
        if wanted := missing():  # another process may have done some before the lease
            conflicting = [row for row in wanted if store.states.state[row] == RowState.CONFLICT]
            if conflicting:
                commits.wait()
                writer.invalidate(conflicting)
            pending = trainer.start(group, stop)
            started = True
            commits.begin(group, wanted, pending)
    finally:
        if not started:
            writer.release(group)
    return True


class _Commits:
    """Commits of leased groups in the order in which they were started, on a thread of its own."""

    def __init__(self, writer: Writer, ahead: int, finished: Callable[[Results], None]) -> None:
        self._writer, self._ahead, self._finished = writer, ahead, finished
        self._pool = ThreadPoolExecutor(1)
        self._under_way: deque[tuple[int, Future[Results]]] = deque()

    def begin(self, group: int, wanted: set[int], trained: Pending) -> None:
        """Have a group's wanted rows committed once they are trained; the lease is given back in the end.

        Waits until no more than `ahead` groups are under way. Raises WorkError where the commit of one before failed;
        this one is taken on nevertheless: what has been trained is not thrown away.
        """

        def commit() -> Results:
            results = [result for result in trained.result() if result.row in wanted]
            self._writer.commit(results)
            return results

        self._under_way.append((group, self._pool.submit(commit)))
        self.wait(self._ahead)

    def wait(self, left: int = 0) -> None:
        """Wait until at most `left` groups are under way.

        Raises WorkError where a commit failed, Interrupted where training ended.
        """
        while len(self._under_way) > left:
            group, commit = self._under_way.popleft()
            try:
                results = commit.result()
            finally:
                self._writer.release(group)
            self._finished(results)

    def __enter__(self) -> "_Commits":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as every:  # each of them, whatever the others raise
            for _commit in self._under_way:
                every.callback(self.wait)
            every.callback(self._pool.shutdown)


class _Waiting:
    """Prints once who holds the rows that are left, after some time in which there was nothing else to do."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._since = time.monotonic()
        self._told = False

    def note(self, worked: bool, groups: NDArray[np.int64]) -> None:
        if worked:
            self._since = time.monotonic()
        elif not self._told and time.monotonic() - self._since > PATIENCE_SECONDS:
            self._told = True
            starts = self._store.group * groups[:5]
            stops = np.minimum(starts + self._store.group, self._store.rows)
            rows = ", ".join(f"{start} to {stop - 1}" for start, stop in zip(starts, stops, strict=True))
            rows += ", ..." if len(groups) > 5 else ""
            told = f"waiting for rows {rows}, which are held by {_holders(self._store)}: if it hangs, end it"
            print(told, file=sys.stderr, flush=True)


def _holders(store: Store) -> str:
    """Other processes at work on a store, as far as they have recorded something and who they are."""
    here = socket.gethostname(), os.getpid()
    made = [reader.provenance for reader in store.states.readers if reader.is_live()]
    made = [each.get("merged", each) for each in made]  # a journal of `merge` says on what its rows were made
    known = [(each.get("host"), each["pid"]) for each in made if "pid" in each]
    named = [f"process {pid} on {host}" for host, pid in known if (host, pid) != here]
    return " or ".join(named[:5]) or "a process that has recorded nothing yet"


def retry_failed(store: Store, writer: Writer, rows: range) -> int:
    """Have the rows that failed for good count as missing again; returns how many."""
    failed = np.flatnonzero(store.failed()[rows.start : rows.stop]) + rows.start
    writer.invalidate(failed)
    store.refresh()
    return len(failed)
