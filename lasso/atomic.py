"""Files that appear whole or not at all, and temporary files that do not outlive a killed process for long."""

import contextlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from datamodels.train import READ_ONLY, UserError, WorkError, write_file


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn OSError into a WorkError that names the path."""
    try:
        yield
    except OSError as error:
        raise WorkError(f"cannot write {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write, which replaces `path` once it is durable. Raises WorkError."""
    temporary = temporary_beside(path)
    with writing(path):
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_derived(path: Path, content: bytes | Iterator[bytes]) -> None:
    """Write a file, and create its folder. Raises UserError where that is read-only, WorkError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    except OSError as error:
        kind = UserError if error.errno in READ_ONLY else WorkError
        raise kind(f"cannot write {path}: {error.strerror}; --out names another folder") from None


def temporary_beside(path: Path) -> Path:
    """A new name beside a path, for a file or folder that is to replace it or is removed in the end.

    It holds the host and the number of this process. What ended processes of this host have left there is removed.
    """
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
    for left in path.parent.glob(f".*.{host}.*.tmp"):
        process = left.name.split(".")[-3]
        if process.isdigit() and not Path(f"/proc/{process}").exists() and Path("/proc/self").exists():
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{host}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
