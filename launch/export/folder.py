"""The folder of an export: written under a temporary name, then put in place as a whole, over an earlier export."""

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
"""What an export is made of, and the names of its files. A folder that holds it was written by `datamodels export`."""


@contextlib.contextmanager
def new_folder(path: Path, about: dict[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder to write files into; then make it durable, with `about`, and rename it to `path`.

    An earlier export there is replaced by two renames. If the process is killed between them, the next call brings the
    earlier export back. Raises UserError if `path` is no export or nothing can be written there, WorkError.
    """
    former = path.with_name(f".{path.name}.former")
    try:
        _settle(path, former)
        _refuse_foreign(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = temporary_beside(path)
        folder.mkdir()
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}; --out names another folder") from None
    try:
        with writing(path):
            yield folder
            names = sorted(str(file.relative_to(folder)) for file in _files(folder))
            (folder / ABOUT).write_text(json.dumps({**about, "files": names}, indent=1) + "\n", "utf-8")
            for entry in (*folder.rglob("*"), folder):
                sync(entry)
            if path.exists():
                path.rename(former)
            folder.rename(path)
            sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            _settle(path, former)


def _settle(path: Path, former: Path) -> None:
    """Remove the former export if another is in its place, or else bring it back."""
    if not former.exists():
        return
    if os.path.lexists(path):
        shutil.rmtree(former)
    else:
        former.rename(path)


def _refuse_foreign(path: Path) -> None:
    """Raises UserError unless nothing is at `path`, or an export with no file added to it."""
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


def write_npy(path: Path, shape: tuple[int, ...], dtype: DTypeLike, blocks: Iterable[NDArray[Any]]) -> None:
    """Write an .npy file from blocks of its rows; not through a memory map, where a full disk ends the process."""
    with open(path, "xb") as file:
        write_array(file, shape, dtype, blocks)


def write_array(file: Any, shape: tuple[int, ...], dtype: DTypeLike, blocks: Iterable[NDArray[Any]]) -> None:
    """Write the content of an .npy file to an open file."""
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    append(file, dtype, blocks, int(np.prod(shape)))


def append(file: Any, dtype: DTypeLike, blocks: Iterable[NDArray[Any]], values: int) -> None:
    """Write blocks one after the other. Raises WorkError unless they hold `values` values in all."""
    written = 0
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype).data)
        written += block.size
    if written != values:
        raise WorkError(f"{file.name}: {written} values were written, expected {values}")
