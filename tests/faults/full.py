"""A disk that is full, and one that is read-only: small file systems, where mounting them is permitted."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


def can_mount(folder: Path) -> bool:
    probe = folder / "probe"
    probe.mkdir()
    if not mount("-t", "tmpfs", "none", str(probe)):
        return False
    _unmount(probe)
    return True


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes."""
    folder.mkdir()
    assert mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder))
    try:
        yield folder
    finally:
        _unmount(folder)


def resize(folder: Path, size: int) -> None:
    assert mount("-o", f"remount,size={size}", str(folder))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that nobody, not even root, can write to."""
    assert mount("--bind", str(folder), str(folder))
    try:
        assert mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        _unmount(folder)
