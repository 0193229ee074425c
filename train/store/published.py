"""Roots that hold nothing but published files, opened for reading."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Setting
from datamodels.train.errors import UserError
from datamodels.train.masks import Era
from datamodels.train.npy_file import HEADER_BYTES, UNREADABLE
from datamodels.train.store.base_store import BaseStore, Records
from datamodels.train.store.layout import Layout
from datamodels.train.store.manifest import Array


class PublishedStore(BaseStore):
    """Published files without a manifest: M, N_train, N_test come from the arrays, and every row counts as done.

    Nothing is recorded of a row, and there are no checksums to compare it with.
    """

    def __init__(self, layout: Layout, setting: Setting, explicit_models: bool) -> None:
        """explicit_models: whether the setting's `models` must be what the files hold. Raises UserError."""
        arrays = _read_arrays(layout)
        rows = arrays[0].shape[0]
        models = rows - setting.eval_models
        if models < 1:
            raise UserError(f"eval_models is {setting.eval_models}, but {layout.data} holds {rows} rows in all")
        if explicit_models and setting.models != models:
            raise UserError(
                f"models is {setting.models}, but {layout.data} holds {rows} rows, {models} without the evaluation rows"
            )
        eras = (Era(models, setting.eval_models),)
        super().__init__(layout, replace(setting, models=models, seed=0), arrays, eras)

    def _offset(self, path: Path) -> int:
        return _read_header(path)[2]

    def completed(self) -> NDArray[np.bool_]:
        return np.ones(self.rows, bool)

    def failed(self) -> NDArray[np.bool_]:
        return np.zeros(self.rows, bool)

    def records(self) -> Records:
        unknown = np.full(self.rows, np.nan, np.float32)
        return Records(unknown, unknown.copy(), np.full(self.rows, ""))

    def bad_rows(self, names: Sequence[str], start: int, stop: int) -> NDArray[np.bool_]:
        return np.zeros(stop - start, bool)

    def bad_masks(self, start: int, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.zeros(len(masks), bool)

    def check_files(self) -> None:
        pass

    def row_stamp(self, rows: NDArray[np.int64]) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(rows, "<i8").data)
        for name in self.arrays:
            status = self.layout.array(name).stat()
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()


def _read_header(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return shape, type and the byte at which the rows begin. Raises UserError."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if fortran:
                raise UserError(f"{path} is in Fortran order, expected C order")
            return shape, dtype, file.tell()
    except UNREADABLE as error:
        raise UserError(f"{path} is not a readable .npy file: {error}") from None


def _read_arrays(layout: Layout) -> list[Array]:
    """Return the arrays as their files describe them. Raises UserError where they do not fit together."""
    arrays: list[Array] = []
    firsts: dict[str, Array] = {}
    for name, path in layout.arrays.items():
        shape, dtype, offset = _read_header(path)
        kind, dimensions = (bool, 2) if name == "train_masks" else (np.float16, 3 if name.endswith("logits") else 2)
        if dtype != kind or len(shape) != dimensions or min(shape) < 1:
            raise UserError(
                f"{path} holds {dtype} of shape {shape}, expected {np.dtype(kind)} with {dimensions} dimensions above 0"
            )
        array = Array(name, shape, np.dtype(dtype))
        if path.stat().st_size < offset + array.bytes - HEADER_BYTES:
            raise UserError(f"{path} is shorter than its shape {shape} says: it was cut short")
        arrays.append(array)
        same_split = firsts.setdefault(name.partition("_")[0], array)
        for axis, what, other in ((0, "rows", arrays[0]), (1, "columns", same_split)):
            if shape[axis] != other.shape[axis]:
                raise UserError(f"{path} has {shape[axis]} {what}, but {layout.array(other.name)} {other.shape[axis]}")
    return arrays
