"""A new root that an import makes: its files lie in a folder of their own until all are there."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from datamodels.train.errors import UserError
from datamodels.train.npy_file import sync_folder, write_file
from datamodels.train.store import Layout, LockFile

_FOLDER, _LOCK, CONFIG = ".importing", "lock", "import.yaml"
"""The folder that is being made, a locked file in it that says of which source, and the config."""


@contextlib.contextmanager
def new_root(source: Path, layout: Layout, keys: dict[str, Any]) -> Iterator[Layout]:
    """Yield where to write the files of a layout, which no other import writes to; put them and a config in place then.

    Until then its root holds nothing that can be opened. Where writing fails nothing stays, and what a killed import of
    the same source left there is removed. keys: of the config, as they are at the end. Raises UserError, OSError.
    """
    root, told = layout.root, _told(source)
    folder, config = root / _FOLDER, root / CONFIG
    folder.mkdir(parents=True, exist_ok=True)
    lock = LockFile(folder / _LOCK)
    if not lock.acquire(0):
        raise UserError(f"{folder} is being written by another `datamodels import`")
    refuse_other_files(source, root)  # such as those of an import that has come to an end since
    try:
        os.pwrite(lock.fd, told.encode(), 0)
        for path in folder.iterdir():
            if path.name != _LOCK:
                shutil.rmtree(path)
        staged = Layout(folder, layout.dataset, layout.tag)
        staged.data.mkdir(parents=True)
        yield staged
        write_file(config, (told + yaml.safe_dump(keys, sort_keys=False)).encode())
        sync_folder(staged.data)
        sync_folder(staged.folder)
        staged.folder.rename(layout.folder)
        sync_folder(root)
    except BaseException:
        config.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def refuse_other_files(source: Path, root: Path) -> None:
    """Raises UserError where a root holds other files than a killed import of the same source left."""
    try:
        found = list(root.iterdir()) if root.exists() else []
    except OSError as error:
        raise UserError(f"--root is {root}: {error.strerror}") from None
    folder, told = root / _FOLDER, _told(source)
    for path in found:
        try:
            if path == folder:
                own = {each.name for each in path.iterdir()} <= {_LOCK} or (path / _LOCK).read_text("utf-8") == told
            else:
                own = path.name == CONFIG and folder in found and path.read_text("utf-8").startswith(told)
        except (OSError, UnicodeDecodeError):
            own = False
        if not own:
            raise UserError(f"{path} exists, expected a new or empty folder for --root")


def _told(source: Path) -> str:
    """What the config of an import begins with."""
    return f"# {str(source)!r}, by `datamodels import`\n"
