"""The folder of an export: written aside and put in place as a whole, in place of an earlier export alone."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from datamodels.lasso import sync, temporary_beside, writing
from datamodels.train import UserError, WorkError

ABOUT = "export.json"
"""What an export is made of and which files it consists of; what carries it was written by `datamodels export`."""


@contextlib.contextmanager
def new_folder(path: Path, about: dict[str, Any]) -> Iterator[Path]:
    """A folder to write files into, which takes its place at `path` once they are durable, with `about` beside them.

    Raises UserError where something that is no export lies there or nothing can be written, WorkError.
    """
    try:
        _settle(path)
        _refuse_foreign(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = temporary_beside(path)
        folder.mkdir()
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}; --out names another folder") from None
    try:
        with writing(path):
            yield folder
            names = [str(file.relative_to(folder)) for file in _files(folder)]
            (folder / ABOUT).write_text(json.dumps({**about, "files": sorted(names)}, indent=1) + "\n")
            _put_in_place(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            _settle(path)


def _refuse_foreign(path: Path) -> None:
    """Raises UserError unless nothing lies at `path`, or an export with nothing added to it."""
    if not os.path.lexists(path):
        return
    try:
        known = {*json.loads((path / ABOUT).read_bytes())["files"], ABOUT}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} was not written by `datamodels export`, which would replace it: move it away"
        ) from None
    for file in _files(path):
        if str(file.relative_to(path)) not in known:
            raise UserError(f"{file} is no part of the export there, which would be replaced: move it away")


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]


def _put_in_place(folder: Path, path: Path) -> None:
    for entry in (*folder.rglob("*"), folder):
        sync(entry)
    if path.exists():
        path.rename(_former(path))
    folder.rename(path)
    sync(path.parent)


def _former(path: Path) -> Path:
    """Where a former export lies while another takes its place."""
    return path.with_name(f".{path.name}.former")


def _settle(path: Path) -> None:
    """Remove a former export that was replaced, or bring it back where the one to replace it failed or was killed."""
    former = _former(path)
    if not former.exists():
        return
    if os.path.lexists(path):
        shutil.rmtree(former)
    else:
        former.rename(path)


def write_npy(path: Path, shape: tuple[int, ...], dtype: DTypeLike, blocks: Iterable[NDArray[Any]]) -> None:
    """Write an .npy file from blocks of its rows.

    Not through a memory map: there a full disk ends the process.
    """
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with open(path, "xb") as file:
        np.lib.format.write_array_header_1_0(file, described)
        append(file, dtype, blocks, int(np.prod(shape)))


def append(file: Any, dtype: DTypeLike, blocks: Iterable[NDArray[Any]], values: int) -> None:
    """Write blocks one after the other. Raises WorkError unless they have so many values in all."""
    written = 0
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype).data)
        written += block.size
    if written != values:
        raise WorkError(f"{file.name}: {written} values were written, expected {values}")
