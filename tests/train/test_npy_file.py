import errno
import io
import os
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels.train.errors import WorkError
from datamodels.train.npy_file import (
    HEADER_BYTES,
    RowFile,
    file_bytes,
    header,
    new_file,
    reserve,
    sync_all,
    write_all,
    write_file,
)

DTYPES = st.sampled_from([np.dtype(bool), np.dtype(np.float16)])
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)
ROWS = np.arange(40, dtype=np.float16).reshape(10, 4)


@pytest.fixture
def file(tmp_path: Path) -> RowFile:
    path = tmp_path / "rows.npy"
    new_file(path, (10, 4), np.dtype(np.float16), preallocate=True)
    return RowFile(path, (10, 4), np.dtype(np.float16), writable=True)


@given(SHAPES, DTYPES)
def test_a_header_fills_a_page_and_numpy_reads_it(shape: tuple[int, ...], dtype: np.dtype) -> None:
    content = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    file = header(shape, dtype) + content.tobytes()
    assert len(header(shape, dtype)) == HEADER_BYTES
    assert len(file) == file_bytes(shape, dtype)
    found = np.load(io.BytesIO(file), allow_pickle=False)
    assert (found.shape, found.dtype) == (shape, dtype)
    assert np.array_equal(found, content)


def test_rows_are_written_where_numpy_looks_for_them(file: RowFile) -> None:
    file.write(3, ROWS[3:5])
    file.sync(3)
    found = np.load(file.path)
    assert np.array_equal(found[3:5], ROWS[3:5])
    assert not found[:3].any()
    assert np.array_equal(file.read(2, 6), found[2:6])


@pytest.mark.parametrize(("first", "rows"), [(9, ROWS[:2]), (-1, ROWS[:1]), (0, ROWS[:1, :3]), (0, ROWS[0])])
def test_rows_that_do_not_fit_are_refused(file: RowFile, first: int, rows: np.ndarray) -> None:
    before = file.path.read_bytes()
    with pytest.raises(ValueError, match=r"do not fit \(10, 4\), the shape of .*rows\.npy"):
        file.write(first, rows)
    assert file.path.read_bytes() == before


def test_files_are_synced_together_and_the_first_error_is_told(file: RowFile) -> None:
    other = RowFile(file.path, file.shape, file.dtype, writable=True)
    for each in (file, other):
        each.write(3, ROWS[3:4])
    with mock.patch.object(other, "sync", side_effect=WorkError("broken")), pytest.raises(WorkError, match="broken"):
        sync_all([file, other], 3)
    assert (file.dirty, other.dirty) == (False, True)


def test_space_is_never_taken_away(file: RowFile) -> None:
    size = file.path.stat().st_size
    reserve(file.fd, size // 2, True, print)
    assert file.path.stat().st_size == size


def test_without_fallocate_there_is_a_notice_and_the_size(tmp_path: Path) -> None:
    told: list[str] = []
    with open(tmp_path / "x", "xb") as new, mock.patch("datamodels.train.npy_file._fallocate", return_value=False):
        reserve(new.fileno(), 5000, True, told.append)
    assert (tmp_path / "x").stat().st_size == 5000
    assert len(told) == 1


@given(st.lists(st.integers(1, 5), min_size=30, max_size=30), st.binary(min_size=1, max_size=30))
def test_short_writes_are_carried_on(pieces: list[int], content: bytes) -> None:
    left, real = iter(pieces), os.pwrite
    with tempfile.TemporaryFile() as file:
        with mock.patch("os.pwrite", lambda fd, data, at: real(fd, data[: next(left)], at)):
            write_all(file.fileno(), content, 7)
        assert file.read() == bytes(7) + content


def test_a_write_that_never_happened_is_noticed(file: RowFile) -> None:
    with mock.patch("os.pwrite", lambda fd, data, at: len(data)), pytest.raises(WorkError) as told:
        file.write(3, ROWS[3:4])
    assert "row 3 of" in str(told.value)
    assert str(file.path) in str(told.value)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["os.pwrite", "os.fdatasync", "os.preadv"])
def test_errors_name_file_and_row(file: RowFile, call: str, code: int) -> None:
    def work() -> None:
        file.write(7, ROWS[7:8])
        file.sync(7)
        file.read(7, 8)

    with mock.patch(call, side_effect=OSError(code, os.strerror(code))), pytest.raises(WorkError) as told:
        work()
    assert str(file.path) in str(told.value)
    assert " 7 " in str(told.value)
    assert os.strerror(code) in str(told.value)


def test_a_failed_sync_is_tried_again(file: RowFile) -> None:
    file.write(0, ROWS[:1])
    with mock.patch("os.fdatasync", side_effect=OSError(errno.EIO, "x")), pytest.raises(WorkError):
        file.sync(0)
    assert file.dirty


def test_a_file_that_was_cut_short_is_told(file: RowFile) -> None:
    os.truncate(file.path, HEADER_BYTES + 3)
    with pytest.raises(WorkError, match="cut short"):
        file.read(0, 1)


def test_a_file_is_replaced_in_one_step_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_file(path, b"old")
    for call in ("os.pwrite", "os.fsync", "os.replace"):
        with mock.patch(call, side_effect=OSError(errno.ENOSPC, "full")), pytest.raises(OSError, match="full"):
            write_file(path, b"new")
        assert path.read_bytes() == b"old"
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
