"""Roots that hold nothing but published files, opened for reading: docs/format.md, "Published files"."""

import contextlib
import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Setting
from datamodels.train.errors import UserError, WorkError
from datamodels.train.masks import Era
from datamodels.train.npy_file import Notice, finite_rows, mapped, write_file
from datamodels.train.store.base_store import BaseStore, Records
from datamodels.train.store.layout import Layout
from datamodels.train.store.manifest import Array
from datamodels.train.values import expanded

_UNREAD, _WRITTEN, _EMPTY, _NOT_FINITE = range(4)
"""What is known of a row; the last two are left out."""

_REASONS = {_EMPTY: "empty mask", _NOT_FINITE: "value not finite"}

_BLOCK_BYTES = 2**25
"""Bytes that are read at a time."""


class PublishedStore(BaseStore):
    """Published files without a manifest: M, N_train, N_test come from the arrays.

    The rows that `_completed` marks count, or all if there is none, except those with an empty mask or a value that is
    not finite. Rows are read to find these when they are first asked for; once all are known, that is kept in the
    folder of the datamodels, if there is one. Nothing is recorded of a row, and there are no checksums.
    """

    def __init__(
        self, layout: Layout, setting: Setting, explicit_models: bool, out: str | Path | None, notice: Notice
    ) -> None:
        """The parameters are those of `open_store`. Raises UserError."""
        self.notice, self._sources = notice, layout.published
        folder = None if out is None else expanded(out, "--out") / layout.dataset / "data"
        self._files = {name: _unpacked(path, folder, notice) for name, path in self._sources.items()}
        arrays = self._read_arrays()
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
        if out is not None:
            self.derive_below(out)
        self._flags = next((path for path in (layout.completed, layout.other_flags) if path.exists()), None)
        self._marked = np.ones(rows, bool) if self._flags is None else read_flags(self._flags, rows)
        self._state = np.full(rows, _UNREAD, np.uint8)
        self._told = np.zeros(rows, bool)

    def _read_arrays(self) -> list[Array]:
        """Return the arrays as their files describe them. Raises UserError where they do not fit together."""
        arrays: list[Array] = []
        firsts: dict[str, Array] = {}
        for name, path in self._sources.items():
            values = mapped(self._files[name])
            kinds, expected = ("bui", "bool or integers") if name == "train_masks" else ("f", "floating-point numbers")
            known = name == "train_masks" or name.endswith(("_margins", "_logits"))
            dimensions = 3 if name.endswith("_logits") else 2 if known else max(2, values.ndim)
            if not known and values.dtype.kind != "f":
                continue  # no output
            if values.dtype.kind not in kinds or values.ndim != dimensions or not values.size:
                raise UserError(
                    f"{path} holds {values.dtype} of shape {values.shape}, expected {expected} with {dimensions} "
                    "dimensions above 0"
                )
            array = Array(name, values.shape, values.dtype)
            arrays.append(array)
            same_split = firsts.setdefault(name.partition("_")[0], array)
            for axis, what, other in ((0, "rows", arrays[0]), (1, "columns", same_split)):
                if array.shape[axis] != other.shape[axis] and (known or axis == 0):
                    beside = f"{self._sources[other.name]} {other.shape[axis]}"
                    raise UserError(f"{path} has {array.shape[axis]} {what}, but {beside}")
        return arrays

    def array(self, name: str) -> np.memmap:
        values = mapped(self._files[name])
        values.flags.writeable = False
        if name != "train_masks" or values.dtype == bool:
            return values
        self._examined(0, None)  # so that all are known to be 0 or 1
        return _as_bool(values)

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        values = self._read(name, start, stop)
        if name == "train_masks":
            self._examined(start, stop)
            values = _as_bool(values)
        return np.ascontiguousarray(values, values.dtype.newbyteorder("="))

    def _read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows as the file holds them; not through its map, where a failing disk ends the process."""
        path, array = self._files[name], self.arrays[name]
        values = mapped(path)
        if not values.flags.c_contiguous:  # Fortran order: a row is all over the file
            return values[start:stop]
        shape = (stop - start, *array.shape[1:])
        offset = values.offset + start * (values.nbytes // len(values))
        try:
            return np.fromfile(path, array.dtype, math.prod(shape), offset=offset).reshape(shape)
        except (OSError, ValueError) as error:
            raise WorkError(f"cannot read rows {start} to {stop - 1} of {path}: {error}") from None

    def completed(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        return self._examined(start, stop) == _WRITTEN

    def failed(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        return self._examined(start, stop) > _WRITTEN

    def reasons(self) -> dict[str, int]:
        """Return how many rows failed, by reason."""
        counts = {text: int(np.count_nonzero(self._examined(0, None) == state)) for state, text in _REASONS.items()}
        return {text: count for text, count in counts.items() if count}

    def leave_out(self, start: int, stop: int) -> None:
        """Tell which of the rows [start, stop) are left out. Raises UserError where more failed than may."""
        state, span, allowed = self._examined(start, stop), slice(start, stop), self.setting.fit.max_failed
        failed = start + np.flatnonzero(state > _WRITTEN)
        if len(failed) > allowed * self.rows:
            raise UserError(
                f"{self._sources['train_masks']}: {len(failed)} of {self.rows} rows have an empty mask or a value that "
                f"is not finite (first: {failed[0]}), expected at most {allowed:g} of them (fit.max_failed): raise it, "
                f"or say in {self.layout.completed}, a bool for each row, which of them count"
            )
        fresh = ~self._told[span]
        self._told[span] = True
        if count := np.count_nonzero(fresh & ~self._marked[span]):
            self.notice(f"{count} of {self.rows} rows are left out: {self._flags} does not mark them")
        for reason, text in _REASONS.items():
            if len(rows := start + np.flatnonzero(fresh & (state == reason))):
                self.notice(f"{len(rows)} of {self.rows} rows are left out: {text} (first: {rows[0]})")

    def _examined(self, start: int, stop: int | None) -> NDArray[np.uint8]:
        """Return the states of rows [start, stop); those that are not known yet are read. Raises UserError."""
        if len(self._unread(start, stop)):
            self._recall()
        if len(unread := self._unread(start, stop)):
            widest = max(array.bytes // self.rows for array in self._examinable())
            height = max(1, _BLOCK_BYTES // widest)
            if (size := sum(array.bytes for array in self._examinable()) / self.rows * len(unread)) > 2**32:
                self.notice(f"reading {size / 1e9:.0f} GB to find rows that were never written or are not finite")
            for block in np.split(unread, np.flatnonzero(np.diff(unread // height)) + 1):
                self._examine(block)
            if not len(self._unread(0, None)):
                self._remember()
        return self._state[start:stop]

    def _unread(self, start: int, stop: int | None) -> NDArray[np.int64]:
        span = slice(start, stop)
        return start + np.flatnonzero(self._marked[span] & (self._state[span] == _UNREAD))

    def _examinable(self) -> list[Array]:
        """Return masks and margins. Logits are many times as large; margins are not finite where logits are not."""
        return [array for name, array in self.arrays.items() if not name.endswith("logits")]

    def _examine(self, rows: NDArray[np.int64]) -> None:
        """Read rows that lie close together, masks first, and set their states. Raises UserError."""
        for array in self._examinable():
            values = self._read(array.name, int(rows[0]), int(rows[-1]) + 1)
            if len(values) > len(rows):
                values = values[rows - rows[0]]
            if array.name == "train_masks":
                numbers = values.view(np.uint8) if values.dtype == bool else values  # a bool's byte may be anything
                largest = numbers.max(axis=1)
                if largest.max() > 1 or (numbers.dtype.kind == "i" and numbers.min() < 0):
                    row, column = (int(found[0]) for found in np.nonzero((numbers != 0) & (numbers != 1)))
                    raise UserError(
                        f"{self._sources[array.name]}: row {rows[row]} holds {numbers[row, column]}, expected 0 and 1, "
                        "which say for each training example whether the model was trained on it"
                    )
                self._state[rows] = np.where(largest > 0, _WRITTEN, _EMPTY)
            else:
                self._state[rows[~finite_rows(values) & (self._state[rows] == _WRITTEN)]] = _NOT_FINITE

    def _kept(self, folder: Path) -> Path:
        """Return the file that keeps the states of all rows."""
        return folder / "datamodels" / f"rows_{self.setting.file_tag}.json"

    def _recall(self) -> None:
        """Take the states from a file of the same arrays, if there is one."""
        for folder in (self.derived, self.layout.folder):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
                content = json.loads(self._kept(folder).read_bytes())
                state = np.where(self._marked, _WRITTEN, _UNREAD).astype(np.uint8)
                for reason, text in _REASONS.items():
                    state[np.array(content[text], np.int64)] = reason
                if content["stamp"] == self._stamp():
                    self._state = state
                    return

    def _remember(self) -> None:
        content = {text: np.flatnonzero(self._state == reason).tolist() for reason, text in _REASONS.items()}
        if (path := self._kept(self.derived)).parent.is_dir():
            with contextlib.suppress(OSError):
                write_file(path, (json.dumps({"stamp": self._stamp(), **content}) + "\n").encode())

    def _stamp(self) -> str:
        """Return a digest of the arrays' files and of the rows that `_completed` marks."""
        digest = hashlib.sha256(np.packbits(self._marked).data)
        self._add_files(digest)
        return digest.hexdigest()

    def _add_files(self, digest: "hashlib._Hash") -> None:
        for name, path in self._sources.items():
            status = path.stat()
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}".encode())

    def row_stamp(self, rows: NDArray[np.int64]) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(rows, "<i8").data)
        self._add_files(digest)
        return digest.hexdigest()

    def records(self) -> Records:
        unknown = np.full(self.rows, np.nan, np.float32)
        return Records(unknown, unknown.copy(), np.full(self.rows, ""))

    def bad_rows(self, names: Sequence[str], start: int, stop: int) -> NDArray[np.bool_]:
        return np.zeros(stop - start, bool)

    def bad_masks(self, start: int, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.zeros(len(masks), bool)

    def check_files(self) -> None:
        pass

    def _told_completed(self) -> str:
        return f"{self._marked.sum():,} published"  # not read for this alone


def _as_bool(masks: NDArray[Any]) -> Any:
    """View integers [M, N] that are 0 or 1 as bools, by their lowest bytes."""
    size = masks.dtype.itemsize
    lowest = size - 1 if masks.dtype.byteorder == ">" else 0
    if masks.flags.c_contiguous:
        return masks.view(bool)[:, lowest::size]
    return masks.T.view(bool)[:, lowest::size].T  # Fortran order


def read_flags(path: Path, rows: int) -> NDArray[np.bool_]:
    flags = mapped(path)
    if flags.shape != (rows,) or flags.dtype.kind not in "bui" or flags.min() < 0 or flags.max() > 1:
        raise UserError(f"{path} holds {flags.dtype} of shape {flags.shape}, expected a bool for each of {rows} rows")
    return np.array(flags, bool)


def _unpacked(path: Path, folder: Path | None, notice: Notice) -> Path:
    """Return the .npy file of an array: of an archive a copy in the folder, which is made where there is none yet.

    Raises UserError for a damaged archive, or one with several arrays; WorkError where the copy cannot be written.
    """
    if path.suffix != ".npz":
        return path
    if folder is None:
        raise UserError(f"{path} is an archive, which cannot be mapped: --out DIR names a folder for its array")
    try:
        status = path.stat()
        copy = folder / f"{path.stem}.{status.st_size:x}-{status.st_mtime_ns:x}.npy"
        if copy.exists():
            return copy
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(names) != 1:
                raise UserError(f"{path} holds {', '.join(names) or 'nothing'}, expected one array")
            notice(f"{path} is unpacked once, to {copy}")
            folder.mkdir(parents=True, exist_ok=True)
            write_file(copy, _pieces(archive, names[0]))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is not a whole .npz file ({error})") from None
    except OSError as error:
        raise WorkError(f"cannot unpack {path}: {error.filename or copy}: {error.strerror}") from None
    for former in folder.glob(f"{path.stem}.*.npy"):
        if former != copy:
            former.unlink(missing_ok=True)
    return copy


def _pieces(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    with archive.open(name) as file:
        while piece := file.read(_BLOCK_BYTES):
            yield piece
