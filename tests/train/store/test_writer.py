"""Several writers, and writers that lose their lease."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from datamodels.train.errors import UserError, WorkError
from datamodels.train.npy_file import HEADER_BYTES, RowFile
from datamodels.train.run_rows import retry_failed
from datamodels.train.store.journal import JournalWriter, Kind
from datamodels.train.store.locks import LockFile
from datamodels.train.store.row_state import RowState
from datamodels.train.store.store import Store
from datamodels.train.store.writer import RowFailure, Writer
from tests.faults.stores import check, content, create, fill, filled, layout, result, setting, writing

GROUP = range(4, 8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create(tmp_path)


@pytest.fixture
def no_locks() -> Iterator[None]:
    """A file system that grants every lock to everyone."""
    with mock.patch.object(LockFile, "acquire", return_value=True):
        yield


def again(store: Store) -> Store:
    return Store.open(store.layout, store.setting)


def redo(store: Store) -> None:
    """What `train` does with conflicts and missing rows."""
    with writing(store) as writer:
        writer.invalidate(np.flatnonzero(store.states.state == RowState.CONFLICT).tolist())
        fill(store, writer)


def raw_flags(store: Store) -> list[int]:
    return np.fromfile(store.layout.completed, np.uint8, offset=HEADER_BYTES).tolist()


def test_a_committed_group_is_done_and_right(store: Store) -> None:
    with writing(store) as writer, writer.leased(1):
        writer.commit([result(store, row) for row in GROUP])
    assert raw_flags(store) == [int(row in GROUP) for row in range(store.rows)]
    store = again(store)
    assert np.flatnonzero(store.completed()).tolist() == list(GROUP)
    assert np.load(store.layout.array("test_margins"))[5].tolist() == content(store, 5)["test_margins"].tolist()
    assert check(store.layout.root) == 4


def test_a_group_is_leased_to_one_writer_until_that_lets_go_or_ends(store: Store) -> None:
    with writing(store) as second:
        with writing(again(store)) as first:
            assert first.lease(0)
            assert first.lease(2)
            assert not second.lease(0)
            assert second.lease(1)
            first.release(0)
            assert second.lease(0)
            assert not second.lease(2)
        assert second.lease(2)


def test_a_lost_lease_means_nothing_is_written(store: Store) -> None:
    with writing(store) as writer, writer.leased(1):
        store.layout.lock.unlink()
        with pytest.raises(WorkError, match="lease on row 4 was lost"):
            writer.commit([result(store, row) for row in GROUP])
    taken = mock.patch.object(LockFile, "acquire", return_value=False)
    with writing(store) as writer, writer.leased(1), taken, pytest.raises(WorkError, match="lease on row 4 was lost"):
        writer.commit([result(store, row) for row in GROUP])
    assert not any(raw_flags(store))
    assert not again(store).completed().any()


def test_rows_that_others_did_meanwhile_are_left_out(store: Store, no_locks: None) -> None:
    with writing(store) as zombie, zombie.leased(1):
        with writing(again(store)) as other:
            fill(other.store, other)
        zombie.commit([result(store, row, salt=9) for row in GROUP])
    assert check(store.layout.root) == store.rows


def test_rows_that_were_invalidated_meanwhile_are_left_out(store: Store, no_locks: None) -> None:
    with writing(store) as zombie, zombie.leased(1):
        with writing(again(store)) as other:
            other.invalidate([5])
        zombie.commit([result(store, row, salt=9) for row in GROUP])
    states = again(store).states
    assert states.state[list(GROUP)].tolist() == [1, 0, 1, 1]


def stalled(zombie: Writer, call: str, number: int, meanwhile: Callable[[], object]) -> None:
    """Let the zombie fall asleep before the given system call of its commit, and others go on."""
    real, calls = getattr(os, call), itertools.count()

    def sleep(*arguments: object) -> object:
        if next(calls) == number:
            with mock.patch.object(os, call, real):
                meanwhile()
        return real(*arguments)

    with mock.patch.object(os, call, sleep):
        zombie.commit([result(zombie.store, row, salt=9) for row in GROUP])


@pytest.mark.parametrize(
    ("call", "number"),
    [("preadv", 0), ("pwrite", 0), ("pwrite", 3), ("pwrite", 5)],
    ids=["before it reads the flags", "before its first array", "among its arrays", "before its journal"],
)
def test_a_zombie_that_wakes_among_its_writes_is_found_out(
    store: Store, no_locks: None, call: str, number: int
) -> None:
    def others() -> None:
        with writing(again(store)) as other:
            fill(other.store, other)

    with writing(store) as zombie, zombie.leased(1):
        stalled(zombie, call, number, others)
    store = again(store)
    assert set(np.flatnonzero(store.states.state == RowState.CONFLICT)) == set(GROUP)
    redo(store)
    assert check(store.layout.root) == store.rows


def test_a_zombie_that_wakes_after_its_rows_were_redone_is_found_out(store: Store, no_locks: None) -> None:
    def others() -> None:
        with writing(again(store)) as other:
            other.invalidate(list(GROUP))
            fill(other.store, other)

    with writing(store) as zombie, zombie.leased(1):
        stalled(zombie, "pwrite", 0, others)
    store = again(store)
    assert set(np.flatnonzero(store.states.state == RowState.CONFLICT)) == set(GROUP)
    assert not any(raw_flags(store)[row] for row in GROUP)
    redo(store)
    assert check(store.layout.root) == store.rows


def test_a_clock_that_is_ahead_makes_no_row_suspect(store: Store) -> None:
    with mock.patch("time.time", return_value=4e9), writing(store) as writer:
        fill(store, writer)
    with writing(again(store)) as writer:
        writer.invalidate([5])
        fill(writer.store, writer)
    assert again(store).completed().all()


def test_a_flag_stays_down_where_the_row_was_invalidated_meanwhile(store: Store, no_locks: None) -> None:
    def others() -> None:
        with writing(again(store)) as other:
            other.invalidate(list(GROUP))

    real = JournalWriter.append

    def recorded(*arguments: object, **options: object) -> None:
        real(*arguments, **options)
        with mock.patch.object(JournalWriter, "append", real):
            others()

    with writing(store) as zombie, zombie.leased(1), mock.patch.object(JournalWriter, "append", recorded):
        zombie.commit([result(store, row, salt=9) for row in GROUP])
    assert not any(raw_flags(store))


def test_many_rows_are_invalidated_at_once(tmp_path: Path) -> None:
    store = filled(tmp_path, setting(models=200))
    with writing(store) as writer, mock.patch("os.fdatasync", side_effect=os.fdatasync) as synced:
        writer.invalidate(range(2, 190))
        assert synced.call_count <= 3, "one of the records, one of the flags"
    found = Store.open(store.layout, setting(models=200))
    assert found.missing().tolist() == list(range(2, 190))
    assert np.flatnonzero(~np.load(store.layout.completed)).tolist() == list(range(2, 190))
    with writing(found) as writer, writer.leased(3), writing(again(found)) as other:
        with pytest.raises(WorkError, match="group 3 are being written"):
            other.invalidate(range(20))
        assert other.lease(0), "what was leased for it is given back"


def test_invalidation_is_recorded_before_the_flag_goes_down(store: Store) -> None:
    filled(store.layout.root)
    store = again(store)
    seen = []
    real = RowFile.write

    def look(file: RowFile, first: int, rows: np.ndarray) -> None:
        with mock.patch.object(RowFile, "write", real):
            seen.append((file.path, first, again(store).states.generation[3]))
        real(file, first, rows)

    with writing(store) as writer, mock.patch.object(RowFile, "write", look):
        writer.invalidate([3])
    assert seen == [(store.layout.completed, 3, 1)]


def test_failures_count_twice_and_can_be_retried(store: Store) -> None:
    with writing(store) as writer, writer.leased(1):
        for times in (1, 2):
            writer.commit([RowFailure(5, "test_margins not finite", 1.0)])
            store.refresh()
            assert bool(store.failed()[5]) == (times == 2)
        assert store.states.reason(5) == "test_margins not finite"
        writer.commit([RowFailure(5, "late", 1.0)])  # rows that failed for good are not wanted any more
    with writing(store) as writer:
        assert retry_failed(store, writer, range(store.rows)) == 1
    assert again(store).states.state[5] == RowState.MISSING
    assert again(store).states.generation[5] == 1


def test_an_error_in_the_middle_of_a_commit_leaves_rows_missing(store: Store) -> None:
    real = RowFile.sync
    for name in store.arrays:

        def fail(file: RowFile, row: int, name: str = name) -> None:
            if file.path.name.startswith(name):
                raise WorkError("no")
            real(file, row)

        failing = mock.patch.object(RowFile, "sync", fail)
        with writing(store) as writer, writer.leased(1), failing, pytest.raises(WorkError, match="no"):
            writer.commit([result(store, row) for row in GROUP])
        assert not any(raw_flags(store))
        assert not again(store).completed().any()


def test_flags_that_a_crash_left_wrong_are_put_right_on_opening(store: Store) -> None:
    filled(store.layout.root)
    with open(store.layout.completed, "r+b") as file:
        file.seek(HEADER_BYTES + 3)
        file.write(b"\0\3")
    store = again(store)
    assert store.mended_flags.tolist() == [3, 4]
    assert raw_flags(store) == [1] * store.rows


def test_flags_of_a_group_that_is_being_written_are_left_alone(store: Store) -> None:
    with writing(store) as writer, writer.leased(1):
        with open(store.layout.completed, "r+b") as file:
            file.seek(HEADER_BYTES + 3)
            file.write(b"\1\1")
        assert again(store).mended_flags.tolist() == [3]


def test_what_is_not_ours_to_write_is_refused(store: Store) -> None:
    denied = PermissionError(13, "Permission denied", "x.npy")
    with mock.patch("os.open", side_effect=denied), pytest.raises(UserError, match=r"to x\.npy: Permission denied"):
        Writer(store, {})


def test_records_keep_what_a_row_was_made_with(store: Store) -> None:
    with writing(store, threads=3) as writer, writer.leased(0):
        writer.commit([result(store, 0)])
    states = again(store).states
    record = states.readers[states.journal[0]].record(int(states.number[0]))
    assert (record["kind"], record["accuracy"], record["seconds"]) == (Kind.DONE, 0.5, 1.0)
    assert states.readers[states.journal[0]].provenance["threads"] == 3


def test_the_layout_is_the_published_one(store: Store) -> None:
    names = {path.name for path in layout(store.layout.root, setting()).data.iterdir()}
    arrays = {f"{name}_50pct.npy" for name in store.arrays}
    assert names == arrays | {"_completed_50pct.npy", "store_50pct.json", "_journal_50pct", "_lock_50pct"}
