"""Rows back from a data set that `datamodels export --to huggingface` wrote: docs/export.md."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Setting, from_dict
from datamodels.train.errors import UserError
from datamodels.train.exchange.importer import Progress
from datamodels.train.exchange.new_root import CONFIG, new_root, refuse_other_files
from datamodels.train.npy_file import RowFile, new_file, runs
from datamodels.train.outputs import is_output
from datamodels.train.store import Array, Layout, Store, check_space, verify


def import_huggingface(source: Path, root: Path, progress: Progress) -> tuple[Layout, Path]:
    """Write the rows of an exported folder to a new root; returns where they lie then, and a config for them.

    Of a store, with its manifest and journals, every row is checked against its checksums; published files come back as
    such. Raises UserError, WorkError, OSError.
    """
    try:
        import pyarrow
    except ImportError:
        raise UserError("--format huggingface needs PyArrow: run `pip install pyarrow`") from None
    setting, arrays, completed = _about(source / "export.json")
    refuse_other_files(source, root)
    check_space(root, sum(array.bytes // array.shape[0] * completed for array in arrays))
    layout, keys = Layout(root, setting.dataset, setting.file_tag), setting.to_dict()
    if setting.own_masks:
        keys["mask"] = str(layout.array("train_masks").absolute())
    if setting.groups:
        keys["groups"] = str(layout.groups.absolute())
    with new_root(source, layout, keys) as staged:
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
        parts = sorted(path.name for path in kept.glob("*") if path.name.startswith(("store_", "_journal_")))
        if parts and not staged.manifest.exists():
            raise UserError(f"{kept} holds {parts[0]}, but no {staged.manifest.name}")
        if staged.manifest.exists():
            shutil.copytree(kept / staged.journals.name, staged.journals)
            store = Store.open(staged, setting)
            if (recorded := int(store.completed().sum())) != completed:
                raise UserError(f"journals in {kept} record {recorded} rows as done, expected {completed}")
            if (checked := verify(store, lambda count: None)).bad or checked.files:
                rows = [f"row {row}: {reason}" for row, reason in checked.reasons.items()]
                raise UserError(f"{source} is damaged: {(rows + checked.files)[0]}")
    return layout, root / CONFIG


def _about(path: Path) -> tuple[Setting, list[Array], int]:
    """Return setting, arrays and number of completed rows. Raises UserError."""
    try:
        about = json.loads(path.read_bytes())
        if about["to"] != "huggingface":
            raise ValueError(f"it is of --to {about['to']}")
        arrays = [Array(name, tuple(shape), np.dtype(kind)) for name, (shape, kind) in about["arrays"].items()]
        rows, completed = arrays[0].shape[0], about["completed"]
        if not (isinstance(completed, int) and 0 < completed <= rows):
            raise ValueError(f"completed is {completed}, expected 1 to {rows}")
        for array in arrays:
            whole = all(isinstance(size, int) and size > 0 for size in array.shape)
            fits = whole and array.shape[0] == rows and len(array.shape) > 1
            if not (fits and is_output(array.name) and array.dtype.kind in "bf" and arrays[0].name == "train_masks"):
                raise ValueError(f"it has an array {array}")
        return from_dict(about["config"]), arrays, completed
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
                if numbers.dtype.kind not in "iu":
                    raise ValueError(f"{path.name}: row holds {numbers.dtype}, expected whole numbers")
                if not (numbers.min() >= 0 and numbers.max() < rows and (np.diff(numbers) > 0).all()):
                    raise ValueError(f"{path.name}: rows do not ascend within 0 to {rows - 1}")
                if done[numbers].any():
                    raise ValueError(f"{path.name}: row {numbers[done[numbers]][0]} is there a second time")
                for array in arrays:
                    values = list_values(parquet.read_row_group(group, [array.name]), array)
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


def list_values(table: Any, array: Array) -> NDArray[Any]:
    """Return a column of (nested) lists as [n, ...], of the type and, from the second on, the sizes of an array.

    Raises ValueError where it is of another type or shape, ArrowException where it holds no lists.
    """
    from pyarrow import compute

    flat = table[array.name].combine_chunks()
    for size in array.shape[1:]:
        lengths = compute.list_value_length(flat).to_numpy(zero_copy_only=False)  # nan where there is no list
        if not (lengths == size).all():
            raise ValueError(f"{array.name} holds lists of other lengths, expected {size}")
        flat = flat.flatten()
    values: NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    if values.dtype != array.dtype:
        raise ValueError(f"{array.name} holds {values.dtype}, expected {array.dtype}")
    return values.reshape(len(table), *array.shape[1:])
