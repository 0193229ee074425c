"""The loop that trains what is missing: commits beside the training, waiting, and what an interruption leaves."""

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from datamodels.train.errors import Interrupted, WorkError
from datamodels.train.npy_file import HEADER_BYTES
from datamodels.train.run_rows import train_rows
from datamodels.train.store.store import Store
from datamodels.train.store.writer import RowResult, Writer
from tests.faults.stores import check, create, filled, first_salt, layout, result, setting, writing


class MadeUp:
    """A trainer of made-up rows; `look` is called as each group begins."""

    ahead = 1

    def __init__(self, store: Store, look: Callable[[int], None] = lambda group: None) -> None:
        self.store = store
        self.look = look
        self.groups: list[int] = []

    def start(self, group: int, stop: Callable[[], bool]) -> Any:
        self.groups.append(group)
        self.look(group)
        if stop():
            raise Interrupted
        results = [self.result(row) for row in range(4 * group, 4 * group + 4)]
        return mock.Mock(result=lambda: results)

    def result(self, row: int) -> RowResult:
        first = row < self.store.rows and self.store.states.generation[row] == 0
        return result(self.store, row, first_salt(row) if first else 0)


def never() -> bool:
    return False


def train(store: Store, trainer: Any, stop: Callable[[], bool] = never) -> list[int]:
    """Rows in the order in which they were told as finished."""
    told: list[int] = []
    with writing(store) as writer:
        train_rows(store, writer, trainer, range(store.rows), stop, lambda done: told.extend(r.row for r in done))
    return told


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create(tmp_path)


def test_every_missing_row_is_done_once_and_in_order(store: Store) -> None:
    trainer = MadeUp(store)
    assert train(store, trainer) == list(range(14))
    assert trainer.groups == [0, 1, 2, 3]
    assert check(store.layout.root) == 14


def test_a_group_is_committed_while_the_next_one_trains(store: Store) -> None:
    training, committed = threading.Event(), threading.Event()
    real = Writer.commit

    def commit(writer: Writer, results: Any) -> None:
        if results[0].row // store.group == 0:
            assert training.wait(60), "the next group begins only once this one is committed"
        real(writer, results)
        committed.set()

    def look(group: int) -> None:
        if group == 1:
            training.set()
            assert committed.wait(60)

    with mock.patch.object(Writer, "commit", commit):
        train(store, MadeUp(store, look))
    assert check(store.layout.root) == 14


def test_an_error_of_a_commit_surfaces_and_leases_are_given_back(store: Store) -> None:
    real = Writer.commit

    def commit(writer: Writer, results: Any) -> None:
        if results[0].row // store.group == 1:
            raise WorkError("cannot write row 4 of x")
        real(writer, results)

    trainer = MadeUp(store)
    with mock.patch.object(Writer, "commit", commit), pytest.raises(WorkError, match="cannot write row 4"):
        train(store, trainer)
    assert trainer.groups[:3] == [0, 1, 2]
    found = Store.open(layout(store.layout.root), setting())
    assert np.flatnonzero(found.completed()).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    with writing(found) as writer:
        assert all(writer.lease(group) for group in range(4))


def test_an_interruption_leaves_what_was_trained_committed(store: Store) -> None:
    stopped = threading.Event()
    with pytest.raises(Interrupted):
        train(store, MadeUp(store, lambda group: stopped.set() if group == 2 else None), stopped.is_set)
    assert check(store.layout.root) == 8


def test_a_row_in_conflict_is_invalidated_and_redone(tmp_path: Path) -> None:
    create(tmp_path)
    other = shutil.copytree(tmp_path, tmp_path.with_name("other"))  # as if neither saw what the other had written
    for root, salt in ((other, 7), (tmp_path, 0)):
        store = Store.open(layout(root), setting())
        with writing(store) as writer:
            assert writer.lease(1)
            writer.commit([result(store, 5, salt)])
    shutil.copytree(layout(other).journals, layout(tmp_path).journals, dirs_exist_ok=True)
    store = Store.open(layout(tmp_path), setting())
    assert store.missing(4, 8).tolist() == [4, 5, 6, 7]
    train(store, MadeUp(store))
    assert check(tmp_path) == 14
    assert store.states.generation[5] == 1


def test_an_array_that_was_cut_short_is_told_before_anything_is_trained(store: Store) -> None:
    with open(store.layout.array("test_margins"), "r+b") as file:
        file.truncate(HEADER_BYTES)
    trainer = MadeUp(store)
    with pytest.raises(WorkError, match=r"test_margins_50pct\.npy holds 0 of 14 rows"):
        train(store, trainer)
    assert trainer.groups == []


@pytest.mark.parametrize("recorded", [True, False])
def test_waiting_for_a_process_that_hangs_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recorded: bool
) -> None:
    hung = create(tmp_path)
    store = Store.open(layout(tmp_path), setting())
    polls = 0

    def wait(seconds: float) -> None:
        nonlocal polls
        polls += 1
        if polls == 3:
            writer.release(1)

    with writing(hung, host="far", pid=77) as writer:
        assert writer.lease(1)
        if recorded:
            writer.commit([result(hung, 5)])
        with mock.patch("time.sleep", wait), mock.patch("datamodels.train.run_rows.PATIENCE_SECONDS", -1.0):
            train(store, MadeUp(store))
    who = "process 77 on far" if recorded else "a process that has recorded nothing yet"
    assert capsys.readouterr().err == f"waiting for rows 4 to 7, which are held by {who}: if it hangs, end it\n"
    assert check(tmp_path) == 14


def test_a_store_that_is_complete_needs_no_training(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert train(store, MadeUp(store)) == []


class Ahead(MadeUp):
    """A trainer of made-up rows that has a group in flight while the next one is started."""

    def __init__(self, store: Store, trained: Callable[[int], None] = lambda group: None) -> None:
        super().__init__(store)
        self.trained = trained
        self.pool = ThreadPoolExecutor(1)

    def start(self, group: int, stop: Callable[[], bool]) -> Any:
        self.groups.append(group)
        return self.pool.submit(self.result_of, group, stop)

    def result_of(self, group: int, stop: Callable[[], bool]) -> list[Any]:
        self.trained(group)
        if stop():
            raise Interrupted
        return [self.result(row) for row in range(4 * group, 4 * group + 4)]


def test_the_next_group_is_started_before_the_one_before_is_trained(store: Store) -> None:
    def trained(group: int) -> None:
        deadline = time.monotonic() + 60
        while group == 0 and len(made_up.groups) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert group != 0 or made_up.groups == [0, 1]

    made_up = Ahead(store, trained)
    assert train(store, made_up) == list(range(14))
    assert made_up.groups == [0, 1, 2, 3]
    assert check(store.layout.root) == 14


def test_what_is_in_flight_when_a_commit_fails_is_committed(store: Store) -> None:
    real = Writer.commit

    def commit(writer: Writer, results: Any) -> None:
        if results[0].row // store.group == 0:
            raise WorkError("cannot write row 0 of x")
        real(writer, results)

    made_up = Ahead(store)
    with mock.patch.object(Writer, "commit", commit), pytest.raises(WorkError, match="cannot write row 0"):
        train(store, made_up)
    assert made_up.groups[:2] == [0, 1]
    store.refresh()
    done = set(np.flatnonzero(store.completed()).tolist())
    assert {4, 5, 6, 7} <= done
    assert not done & {0, 1, 2, 3}
    assert train(store, MadeUp(store)) == sorted(set(range(14)) - done)


def test_a_stop_commits_what_was_trained_by_then(store: Store) -> None:
    asked = threading.Event()
    made_up = Ahead(store, lambda group: asked.set() if group == 1 else None)
    with pytest.raises(Interrupted):
        train(store, made_up, asked.is_set)
    store.refresh()
    assert np.flatnonzero(store.completed()).tolist() == [0, 1, 2, 3]
