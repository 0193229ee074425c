"""Rows back from a data set that `datamodels export --to huggingface` wrote: docs/export.md."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from datamodels.train.config import Setting, from_dict
from datamodels.train.errors import UserError
from datamodels.train.npy_file import RowFile, new_file, runs, sync_folder, write_file
from datamodels.train.outputs import is_output
from datamodels.train.store import Array, Layout, Store, check_space, verify

Progress = Callable[[str, int, int], None]


def import_huggingface(source: Path, root: Path, progress: Progress) -> tuple[Layout, Path]:
    """Write the rows of an exported folder to a new root; returns where they lie then, and a config for them.

    Of a store, with its manifest and journals, every row is checked against its checksums; published files come back as
    such. Until all is there, the root holds nothing that can be opened. Raises UserError, WorkError, OSError.
    """
    try:
        import pyarrow
    except ImportError:
        raise UserError("--format huggingface needs PyArrow: run `pip install pyarrow`") from None
    setting, arrays, completed = _about(source / "export.json")
    if root.exists() and (found := next(root.iterdir(), None)):
        raise UserError(f"{found} exists, expected a new or empty folder for --root")
    check_space(root, sum(array.bytes // array.shape[0] * completed for array in arrays))
    staged, layout = (Layout(each, setting.dataset, setting.file_tag) for each in (root / ".importing", root))
    config = root / "import.yaml"
    staged.data.mkdir(parents=True)
    try:
        try:
            done = _copy_rows(source, staged, arrays, progress)
        except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
            raise UserError(f"{source / 'rows'} cannot be read: {' '.join(str(error).split())}") from None
        if done.sum() != completed:
            raise UserError(f"{source / 'rows'} holds {done.sum()} rows, expected {completed}: a file is missing")
        kept = source / "store"
        for path in (staged.manifest, staged.groups, staged.names("train"), staged.names("test")):
            if (kept / path.name).exists():
                shutil.copyfile(kept / path.name, path)
        if staged.manifest.exists():
            shutil.copytree(kept / staged.journals.name, staged.journals)
            store = Store.open(staged)
            if (checked := verify(store, lambda count: None)).bad or checked.files:
                rows = [f"row {row}: {reason}" for row, reason in checked.reasons.items()]
                raise UserError(f"{source} is damaged: {(rows + checked.files)[0]}")
        keys = setting.to_dict()
        if setting.own_masks:
            keys["mask"] = str(layout.array("train_masks").absolute())
        if setting.groups:
            keys["groups"] = str(layout.groups.absolute())
        told = f"# {str(source)!r}, by `datamodels import`\n"
        write_file(config, (told + yaml.safe_dump(keys, sort_keys=False)).encode())
        sync_folder(staged.data)
        staged.folder.rename(layout.folder)
        staged.root.rmdir()
        sync_folder(root)
    except BaseException:
        shutil.rmtree(staged.root, ignore_errors=True)
        config.unlink(missing_ok=True)
        raise
    return layout, config


def _about(path: Path) -> tuple[Setting, list[Array], int]:
    """Return setting, arrays and number of completed rows. Raises UserError."""
    try:
        about = json.loads(path.read_bytes())
        if about["to"] != "huggingface":
            raise ValueError(f"it is of --to {about['to']}")
        arrays = [Array(name, tuple(shape), np.dtype(kind)) for name, (shape, kind) in about["arrays"].items()]
        for array in arrays:
            fits = array.shape[0] == arrays[0].shape[0] and min(array.shape) > 0 and len(array.shape) > 1
            if not (fits and is_output(array.name) and array.dtype.kind in "bf" and arrays[0].name == "train_masks"):
                raise ValueError(f"it has an array {array}")
        return from_dict(about["config"]), arrays, int(about["completed"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is not of `datamodels export --to huggingface`: {error}") from None


def _copy_rows(source: Path, staged: Layout, arrays: list[Array], progress: Progress) -> NDArray[np.bool_]:
    """Write the arrays and `_completed`; returns which rows there are, bool [M]."""
    from pyarrow.parquet import ParquetFile

    rows = arrays[0].shape[0]
    flags = Array("_completed", (rows,), np.dtype(bool))
    files = {}
    for array in (flags, *arrays):
        new_file(staged.array(array.name), array.shape, array.dtype)
        files[array.name] = RowFile(staged.array(array.name), array.shape, array.dtype, writable=True)
    done = np.zeros(rows, bool)
    for path in sorted((source / "rows").glob("*.parquet")):
        with ParquetFile(path, page_checksum_verification=True) as parquet:
            for group in range(parquet.num_row_groups):
                numbers = parquet.read_row_group(group, ["row"])["row"].to_numpy()
                if not (numbers.min() >= 0 and numbers.max() < rows and (np.diff(numbers) > 0).all()):
                    raise ValueError(f"{path.name}: rows do not ascend within 0 to {rows - 1}")
                for array in arrays:
                    values = _values(parquet.read_row_group(group, [array.name])[array.name], array)
                    for run in runs(numbers):
                        first = int(np.searchsorted(numbers, run[0]))
                        files[array.name].write(int(run[0]), values[first : first + len(run)])
                done[numbers] = True
                progress("rows", int(done.sum()), rows)
    files["_completed"].write(0, done)
    for file in files.values():
        file.sync(rows - 1)
        file.close()
    return done


def _values(column: Any, array: Array) -> NDArray[Any]:
    """Return a column of (nested) lists as [n, ...]. Raises ValueError where it is of another type or shape."""
    flat = column.combine_chunks()
    while hasattr(flat, "flatten"):
        flat = flat.flatten()
    values: NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    if values.dtype != array.dtype:
        raise ValueError(f"{array.name} holds {values.dtype}, expected {array.dtype}")
    return values.reshape(len(column), *array.shape[1:])
