import errno
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from datamodels.train.errors import UserError
from datamodels.train.store.locks import LockFile, store_lock
from tests.conftest import PROJECT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_a_byte_is_locked_by_one_at_a_time(path: Path) -> None:
    first, second = LockFile(path), LockFile(path)
    assert first.acquire(7)
    assert first.acquire(7), "locking again is fine"
    assert not second.acquire(7)
    assert second.acquire(8)
    first.release(7)
    assert second.acquire(7)


def test_a_lock_ends_with_its_file(path: Path) -> None:
    first, second = LockFile(path), LockFile(path)
    first.acquire(7)
    first.close()
    assert second.acquire(7)


def test_a_lock_holds_between_processes(path: Path) -> None:
    lock = LockFile(path)
    lock.acquire(7)
    code = (
        "import sys; from pathlib import Path; from datamodels.train.store.locks import LockFile; "
        "print(LockFile(Path(sys.argv[1])).acquire(7))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_work_goes_on(path: Path, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch("fcntl.fcntl", side_effect=OSError(code, "no locks")):
        for _ in range(2):
            lock = LockFile(path)
            assert not lock.works
            assert lock.acquire(7)
            lock.release(7)
    assert capsys.readouterr().err == f"{path.parent} has no file locks: processes there may do the same rows\n"


def test_locks_that_have_run_out_are_not_held(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = LockFile(path)
    with mock.patch("fcntl.fcntl", side_effect=OSError(errno.ENOLCK, "none left")):
        assert not lock.acquire(7)
        assert not lock.acquire(8)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert lock.works
    assert lock.acquire(7)


def test_other_errors_are_not_swallowed(path: Path) -> None:
    with mock.patch("fcntl.fcntl", side_effect=OSError(errno.EIO, "broken")), pytest.raises(OSError, match="broken"):
        LockFile(path).acquire(7)


def test_a_lock_file_that_was_replaced_is_noticed(path: Path) -> None:
    lock = LockFile(path)
    assert lock.is_current()
    path.unlink()
    assert not lock.is_current()
    path.touch()
    assert not lock.is_current()


def test_a_store_is_held_as_a_whole_without_holding_its_groups(path: Path) -> None:
    with store_lock(path):
        assert LockFile(path).acquire(0)
        with pytest.raises(UserError, match="held by another process"), store_lock(path, patience=0):
            raise AssertionError("two processes hold a store")
    with store_lock(path, patience=0):
        pass
