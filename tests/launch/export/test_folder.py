"""The folder of an export: whole or not there, and nothing else lost."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodels.launch.export.folder import new_folder
from datamodels.train import UserError, WorkError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "export" / "trak_test_50pct"


def write(path: Path, text: str, error: BaseException | None = None) -> None:
    with new_folder(path, {"made": text}) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "values").write_text(text)
        if error:
            raise error


def fail(path: Path) -> None:
    """An export that ends with an error of its own."""
    with pytest.raises(WorkError, match="damaged"):
        write(path, "half", WorkError("row 8 is damaged"))


def content(path: Path) -> str:
    """What the export says that it holds, having checked that it does."""
    about = json.loads((path / "export.json").read_text())
    assert about["files"] == ["sub/values"]
    assert (path / "sub" / "values").read_text() == about["made"]
    return about["made"]


def test_an_export_replaces_an_earlier_one_unless_it_fails(path: Path) -> None:
    fail(path)
    assert not path.exists()
    for text in ("first", "second"):
        write(path, text)
        fail(path)
        assert content(path) == text
        assert list(path.parent.iterdir()) == [path]


def test_what_is_no_export_is_never_replaced(path: Path) -> None:
    write(path, "first")
    (path / "sub" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt is no part of the export"):
        write(path, "second")
    (path / "export.json").unlink()
    with pytest.raises(UserError, match="was not written by `datamodels export`"):
        write(path, "second")
    assert (path / "sub" / "notes.txt").read_text() == "mine"


def test_what_a_killed_export_left_is_removed_by_the_next(path: Path) -> None:
    with new_folder(path, {}) as folder:
        name = folder.name
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = path.parent / name.replace(f".{os.getpid()}.", f".{ended.pid}.")
    left.mkdir()
    write(path, "next")
    assert list(path.parent.iterdir()) == [path]


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_an_earlier_export_outlives_a_kill_at_every_step_of_its_replacement(
    path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Killed in the rename (or removal of the former) with this number, and then once more by an export that fails."""
    write(path, "first")
    steps = iter(range(calls))

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(steps, None) is None:
                raise Killed
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dying(Path.rename))
        patched.setattr(shutil, "rmtree", dying(shutil.rmtree))
        with pytest.raises(Killed):
            write(path, "second")
    fail(path)
    assert content(path) == ("first" if calls < 2 else "second")
    assert [left for left in path.parent.iterdir() if not left.name.endswith(".tmp")] == [path]


def test_a_replacement_that_fails_half_way_brings_the_former_back_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, "first")
    rename, failed = Path.rename, list[Path]()

    def once(source: Path, target: Path) -> Path:
        if target == path and not failed:
            failed.append(source)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(WorkError, match="Input/output error"):
        write(path, "second")
    assert content(path) == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_one_error_and_leaves_nothing(path: Path) -> None:
    with pytest.raises(WorkError, match=f"cannot write {path}: No space left"):
        write(path, "half", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(UserError, match="--out names another folder"):
        write(Path("/proc/nowhere/trak_test_50pct"), "first")
