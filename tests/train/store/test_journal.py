import errno
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels.train.errors import WorkError
from datamodels.train.npy_file import HEADER_BYTES
from datamodels.train.store.journal import (
    RECORD,
    RECORD_BYTES,
    JournalReader,
    JournalWriter,
    Kind,
    attempt_name,
    encode_header,
    intact,
    seal,
)
from datamodels.train.store.locks import LockFile
from tests.faults.stores import workplace


def records(*rows: int, **fields: Any) -> np.ndarray:
    made = np.zeros(len(rows), RECORD)
    made["row"], made["kind"] = rows, Kind.DONE
    for name, value in fields.items():
        made[name] = value
    return made


def taken(reader: JournalReader) -> list[int]:
    """Rows of the news of a journal."""
    return [row for found, _ in reader.new_records() for row in found["row"].tolist()]


def written(folder: Path, *batches: np.ndarray, **provenance: Any) -> Path:
    writer = JournalWriter(folder, {"device": "x", **provenance})
    for batch in batches:
        writer.append(batch)
    writer.close()
    (path,) = folder.glob("*.bin")
    return path


@given(st.integers(0, 8 * RECORD_BYTES - 1), st.binary(min_size=104, max_size=104))
def test_no_bit_of_a_record_flips_unseen(bit: int, body: bytes) -> None:
    record = records(5, time=1.5, seconds=2.0, generation=3)
    record["reason"] = body[:64]
    record["checksums"] = np.frombuffer(body[64:84], "<u4")
    seal(record)
    assert intact(record).all()
    content = bytearray(record.tobytes())
    content[bit // 8] ^= 1 << bit % 8
    assert not intact(np.frombuffer(bytes(content), RECORD)).any()


def test_the_checksum_is_the_same_for_ever() -> None:
    record = records(3, kind=0)
    seal(record)
    assert int(record["check"][0]) == 639000063605901778


@pytest.mark.parametrize(
    "fields", [{"kind": 0}, {"kind": 4}, {"time": np.nan}, {"seconds": np.inf}, {"generation": 2**31}]
)
def test_records_that_make_no_sense_are_not_taken(fields: dict[str, Any]) -> None:
    hostile = records(0, **fields)
    seal(hostile)
    assert not intact(hostile).any()


def test_records_come_back_as_they_were_appended(tmp_path: Path) -> None:
    reader = JournalReader(written(tmp_path, records(3, 1), records(4), threads=1))
    assert taken(reader) == [3, 1, 4]
    assert reader.provenance == {"device": "x", "threads": 1}
    assert reader.record(2)["row"] == 4
    assert (reader.damaged, reader.header_damaged) == ([], False)


def test_a_reader_follows_a_journal_as_it_grows(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, {"device": "x"})
    writer.append(records(0))
    (path,) = tmp_path.iterdir()
    reader = JournalReader(path)
    assert reader.changed(path.stat())
    assert taken(reader) == [0]
    assert not reader.changed(path.stat())
    writer.append(records(1, 2))
    assert reader.changed(path.stat())
    assert taken(reader) == [1, 2]
    assert taken(reader) == []
    writer.close()


@given(st.integers(0, 5 * RECORD_BYTES))
def test_a_torn_end_is_read_again_once_it_is_whole(cut: int) -> None:
    with workplace() as folder:
        path = written(folder, records(*range(5)))
        whole = path.read_bytes()
        path.write_bytes(whole[: HEADER_BYTES + cut])
        reader = JournalReader(path)
        before = taken(reader)
        assert before == list(range(cut // RECORD_BYTES))
        assert not reader.damaged
        path.write_bytes(whole)
        assert before + taken(reader) == list(range(5))


@given(st.sets(st.integers(0, 9)))
def test_holes_that_a_power_cut_left_are_no_damage(holes: set[int]) -> None:
    with workplace() as folder:
        path = written(folder, records(*range(10)))
        whole = path.read_bytes()
        content = bytearray(whole)
        for hole in holes:
            start = HEADER_BYTES + hole * RECORD_BYTES
            content[start : start + RECORD_BYTES] = bytes(RECORD_BYTES)
        path.write_bytes(content)
        reader = JournalReader(path)
        assert taken(reader) == [row for row in range(10) if row not in holes]
        assert not reader.damaged
        path.write_bytes(whole)
        assert taken(reader) == sorted(holes)


def test_a_damaged_record_is_numbered_and_the_others_count(tmp_path: Path) -> None:
    path = written(tmp_path, records(*range(4)))
    _spoil(path, HEADER_BYTES + 2 * RECORD_BYTES + 17)
    reader = JournalReader(path)
    assert taken(reader) == [0, 1, 3]
    assert reader.damaged == [2]


def _spoil(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x20
    path.write_bytes(content)


@pytest.mark.parametrize("at", [0, 8, 20, 4000])
def test_a_damaged_header_is_seen_and_its_records_count(tmp_path: Path, at: int) -> None:
    path = written(tmp_path, records(1))
    _spoil(path, at)
    reader = JournalReader(path)
    assert taken(reader) == [1]
    assert reader.header_damaged


@pytest.mark.parametrize("call", ["os.pwrite", "os.fdatasync"])
def test_after_an_error_records_go_to_a_new_journal(tmp_path: Path, call: str) -> None:
    writer = JournalWriter(tmp_path, {"device": "x"})
    writer.append(records(0))
    with mock.patch(call, side_effect=OSError(errno.EIO, "broken")), pytest.raises(WorkError, match="record row 7 in"):
        writer.append(records(7))
    writer.append(records(8))
    writer.close()
    found = [set(taken(JournalReader(path))) for path in sorted(tmp_path.iterdir())]
    assert found == [{0}, {8}]


def test_records_that_matter_twice_lie_on_two_pages(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, {"device": "x"})
    writer.append(records(1))
    writer.append(records(2, 3, kind=Kind.INVALID), twice=True)
    writer.append(records(4))
    writer.close()
    (path,) = tmp_path.iterdir()
    reader = JournalReader(path)
    assert taken(reader) == [1, 2, 3, 2, 3, 4]
    assert reader.damaged == []
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES : 2 * HEADER_BYTES] = bytes(HEADER_BYTES)
    path.write_bytes(content)
    assert taken(JournalReader(path)) == [2, 3, 4]


def test_records_go_to_a_new_journal_where_the_old_one_was_replaced(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, {"device": "x"})
    writer.append(records(1))
    (path,) = tmp_path.iterdir()
    path.with_suffix(".tmp").write_bytes(path.read_bytes())
    path.with_suffix(".tmp").rename(path)  # mended by another process, where locks do not keep it from that
    writer.append(records(2))
    writer.close()
    assert sorted(row for each in tmp_path.iterdir() for row in taken(JournalReader(each))) == [1, 2]


def test_a_folder_from_which_journals_vanish_is_told(tmp_path: Path) -> None:
    gone = mock.patch.object(LockFile, "is_current", return_value=False)
    with gone, pytest.raises(WorkError, match=r"cannot record row 7 in .*: something removes its journals"):
        JournalWriter(tmp_path, {}).append(records(7))


def test_a_journal_that_cannot_begin_leaves_nothing(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, {})
    with mock.patch("os.fsync", side_effect=OSError(errno.ENOSPC, "full")), pytest.raises(WorkError, match="full"):
        writer.append(records(1))
    assert list(tmp_path.iterdir()) == []


def test_attempts_have_names_of_their_own_that_stay_in_their_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "../../etc")
    names = {attempt_name() for _ in range(100)}
    assert len(names) == 100
    assert not any("/" in name for name in names)


@settings(max_examples=200)
@given(st.binary(max_size=600), st.binary(max_size=300))
def test_no_content_of_a_journal_breaks_its_reader(head: bytes, body: bytes) -> None:
    with workplace() as folder:
        path = folder / "x.bin"
        path.write_bytes(head.ljust(HEADER_BYTES, b"\0") + body)
        reader = JournalReader(path)
        assert taken(reader) == []
        assert reader.provenance == {}


HOSTILE = ["[" * 2000, "[1]", "1", "null", '{"versions": [1]}', '{"a": NaN', '"\\ud800"']


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_provenance_is_damage(tmp_path: Path, text: str) -> None:
    with mock.patch.object(json, "dumps", return_value=text):
        head = encode_header({})
    record = records(1)
    seal(record)
    (tmp_path / "x.bin").write_bytes(head + record.tobytes())
    reader = JournalReader(tmp_path / "x.bin")
    assert taken(reader) == [1]
    assert reader.header_damaged
