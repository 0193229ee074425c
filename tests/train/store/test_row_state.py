"""The state of rows, against its definition, whatever the order in which records arrive."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels.train.errors import WorkError
from datamodels.train.store.journal import RECORD, RECORD_BYTES, JournalReader, Kind, encode_header, seal
from datamodels.train.store.row_state import RowState, RowStates
from tests.faults.stores import workplace

ROWS = 4
STORE = "this store"


@dataclass(frozen=True)
class Event:
    journal: int
    row: int
    generation: int
    kind: Kind
    time: int
    value: int
    """Stands for the checksums of a row that is done, and for the reason of one that failed."""

    def encode(self) -> bytes:
        record = np.zeros(1, RECORD)
        record["row"], record["generation"], record["kind"] = self.row, self.generation, self.kind
        record["time"] = self.time
        if self.kind == Kind.DONE:
            record["checksums"] = self.value
        if self.kind == Kind.FAILED:
            record["reason"] = str(self.value)
        seal(record)
        return record.tobytes()


EVENTS = st.lists(
    st.builds(
        Event,
        st.integers(0, 2),
        st.integers(0, ROWS),
        st.integers(0, 2),
        st.sampled_from(Kind),
        st.integers(1, 9),
        st.integers(0, 1),
    ),
    max_size=30,
)


def defined(events: Iterable[Event], row: int) -> tuple[RowState, int]:
    """State and generation of a row, from all that was ever recorded of it."""
    own = [event for event in events if event.row == row]
    generation = max((event.generation for event in own), default=0)
    current = [event for event in own if event.generation == generation]
    bytes_seen = {event.value for event in current if event.kind == Kind.DONE}
    failures = [event.value for event in current if event.kind == Kind.FAILED]
    late = max((event.time for event in own if event.generation < generation and event.kind == Kind.DONE), default=0)
    since = min((event.time for event in current if event.kind == Kind.INVALID), default=late)
    if bytes_seen:
        return RowState.DONE if len(bytes_seen) == 1 and late <= since else RowState.CONFLICT, generation
    twice = len(failures) > len(set(failures))
    return RowState.FAILED if twice or len(failures) >= 3 else RowState.MISSING, generation


class Folder:
    """Journals that grow record by record."""

    def __init__(self, path: Path, store: str = STORE) -> None:
        self.path = path
        self.header = encode_header({"store": store})

    def append(self, event: Event) -> None:
        with open(self.path / f"{event.journal}.bin", "ab") as file:
            if file.tell() == 0:
                file.write(self.header)
            file.write(event.encode())

    def states(self, rows: int = ROWS) -> RowStates:
        return RowStates(self.path, rows, STORE)


@settings(max_examples=200)
@given(EVENTS, st.lists(st.booleans(), min_size=30, max_size=30))
def test_every_order_of_arrival_gives_the_state_that_is_defined(events: list[Event], looks: list[bool]) -> None:
    with workplace() as path:
        folder = Folder(path)
        followed, opened = folder.states(), folder.states()
        for event, look in zip(events, looks, strict=False):
            folder.append(event)
            if look:
                followed.refresh()
        for states in (followed, opened):
            states.refresh()
            found = list(zip(states.state.tolist(), states.generation.tolist(), strict=True))
            assert found == [defined(events, row) for row in range(ROWS)]
        done = opened.state == RowState.DONE
        assert np.array_equal(followed.checksums[done], opened.checksums[done])


def test_the_reason_of_a_failure_is_told(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for _ in range(2):
        folder.append(Event(0, 2, 0, Kind.FAILED, 1, 5))
    states = folder.states()
    states.refresh()
    assert (states.state[2], states.reason(2), states.reason(0)) == (RowState.FAILED, "5", "")


def test_many_failures_are_merged_without_opening_journals(tmp_path: Path) -> None:
    rows = 20_000
    records = np.zeros(3 * rows, RECORD)
    records["row"], records["kind"] = np.tile(np.arange(rows), 3), Kind.FAILED
    records["reason"] = np.where(np.arange(3 * rows) < rows, b"first", b"second")
    records["reason"][records["row"] % 2 == 0] = [f"reason {index}" for index in range(3 * rows // 2)]
    seal(records[: 2 * rows])
    (tmp_path / "x.bin").write_bytes(encode_header({"store": STORE}) + records[: 2 * rows].tobytes())
    states = Folder(tmp_path).states(rows)
    with mock.patch.object(JournalReader, "record", side_effect=AssertionError("opened for a single record")):
        states.refresh()
    assert not (states.state == RowState.FAILED).any()
    seal(records)
    (tmp_path / "x.bin").write_bytes(encode_header({"store": STORE}) + records.tobytes())
    states.refresh()
    assert (states.state == RowState.FAILED).all(), "twice in the same way, or three times"
    assert states.reasons()["second"] == rows // 2


def test_a_pipe_among_the_journals_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.bin")
    with pytest.raises(WorkError, match=r"x\.bin is not a plain file"):
        Folder(tmp_path).states().refresh()


def test_a_journal_of_another_store_does_not_count(tmp_path: Path) -> None:
    Folder(tmp_path, "another store").append(Event(0, 1, 0, Kind.DONE, 1, 1))
    states = Folder(tmp_path).states()
    states.refresh()
    assert not states.state.any()
    assert list(states.damaged().values()) == ["it belongs to another store"]


def test_a_store_without_its_journals_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="journals: No such file"):
        RowStates(tmp_path / "journals", ROWS, STORE).refresh()


def test_unchanged_journals_are_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    for journal in range(50):
        folder.append(Event(journal, journal % ROWS, 0, Kind.INVALID, 1, 0))
    states = folder.states()
    states.refresh()
    opened: list[Path] = []
    real = JournalReader.new_records
    monkeypatch.setattr(JournalReader, "new_records", lambda self: opened.append(self.path) or real(self))
    states.refresh()
    assert opened == []
    folder.append(Event(7, 3, 0, Kind.DONE, 1, 1))
    states.refresh()
    assert [path.name for path in opened] == ["7.bin"]
    assert states.state[3] == RowState.DONE


def test_a_million_and_a_half_records_are_merged_in_about_a_second(tmp_path: Path) -> None:
    rows = 1_510_000
    records = np.zeros(rows, RECORD)
    records["row"], records["kind"] = np.arange(rows), Kind.DONE
    seal(records)
    with open(tmp_path / "x.bin", "wb") as file:
        file.write(encode_header({"store": STORE}))
        file.write(records.data)
    assert os.path.getsize(tmp_path / "x.bin") == 4096 + rows * RECORD_BYTES
    states = Folder(tmp_path).states(rows)
    started = time.process_time()
    states.refresh()
    assert time.process_time() - started < 2
    assert (states.state == RowState.DONE).all()
    held = sum(value.nbytes for value in vars(states).values() if isinstance(value, np.ndarray))
    assert held <= 100 * rows
