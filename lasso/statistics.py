"""The sums of a store's estimation rows, kept on disk: ROOT/{dataset}/datamodels/statistics_{pct}pct/.

Rows are divided into parts, each with its own files, which every later fit, split and piece uses again. A part is known
by its rows, the times they were made and which of them are held out; rows that are added later make new parts, so that
the old ones are not read again. A part is made in one pass over its rows, whose checksums are verified on the way.

    {first}-{last}.{key}.gram.npy                   int32 [2, N, N]      counts of training and of held-out rows
    {first}-{last}.{key}.{split}.{A}-{B}.npy        float64 [2, B-A, N+2]  X'y, sum of y, sum of y^2 of targets [A, B)
"""

import fcntl
import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lasso import files
from lasso.moments import TILE, Cross, Gram
from lasso.rows import Progress, Split, read_margins, read_masks, silent
from train.errors import UserError, WorkError
from train.store import ReadableStore as Store

_POINTS, _SMALLEST = 10, 1 / 32
"""Parts that the first rows are divided into where disk space allows, and the share of the smallest."""
_DIVIDED_BYTES = 2**28
"""Disk space up to which rows are divided."""
_SLAB_BYTES = 2**28
"""Sums of one group of rows with the margins that are held at a time."""
_COLUMNS = 8 * TILE
"""Targets to a file at most."""


def folder_of(store: Store) -> Path:
    return files.folder_of(store) / f"statistics_{store.setting.pct}pct"


@dataclass(frozen=True)
class Part:
    """Rows [first, last) of a store, as far as they are used, and where their sums lie."""

    first: int
    last: int
    split: Split
    stem: Path
    """Beginning of the names of its files."""

    @property
    def gram(self) -> Path:
        return self.stem.with_name(self.stem.name + ".gram.npy")

    def cross(self, split: str, first: int, last: int) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{split}.{first}-{last}.npy")


class Statistics:
    """The sums of the estimation rows of a store, made where they are missing.

    Raises UserError for files of another store, or files cut short; WorkError for damaged rows.
    """

    def __init__(self, store: Store, rows: Split, progress: Progress = silent) -> None:
        self.store, self.rows, self.progress = store, rows, progress
        self.folder = folder_of(store)
        self._claim()
        cuts = row_cuts(store)
        spans = ((first, last, rows.between(first, last)) for first, last in itertools.pairwise(cuts))
        self.parts = [Part(a, b, split, self.folder / f"{a}-{b}.{self._key(split)}") for a, b, split in spans]
        self.parts = [part for part in self.parts if len(part.split.rows)]

    def _claim(self) -> None:
        """Create the folder, or check whose it is."""
        owner = {"store": _identity(self.store), "n_train": self.store.n_train}
        path = self.folder / "store.json"
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            with files.writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                with files.replacing(path) as temporary:
                    temporary.write_text(json.dumps(owner))
            return
        except ValueError:
            found = None
        if found != owner:
            raise UserError(f"{self.folder} holds statistics of another store: remove it")

    def _key(self, split: Split) -> str:
        digest = hashlib.sha256(self.store.row_stamp(split.rows).encode())
        digest.update(np.packbits(split.heldout).tobytes())
        return digest.hexdigest()[:16]

    def grams(self, parts: slice = slice(None)) -> tuple[Gram, Gram]:
        """Finished Grams of the training and of the held-out rows."""
        n_train = self.store.n_train
        found = Gram(n_train), Gram(n_train)
        for part in self.parts[parts]:
            rows = np.bincount(part.split.heldout, minlength=2)
            self._check(part.gram, (2, n_train, n_train), np.dtype(np.int32))
            for group in (0, 1):
                found[group].rows += int(rows[group])
                for at in range(0, n_train, 512):
                    strip = found[group].counts[at : at + 512]
                    strip += _read(part.gram, np.int32, (group * n_train + at) * n_train, strip.shape)
        return found

    def crosses(self, split: str, first: int, last: int, parts: slice = slice(None)) -> tuple[Cross, Cross]:
        """Sums with the margins of targets [first, last), of the training and of the held-out rows."""
        n_train = self.store.n_train
        found = Cross(n_train, last - first, first), Cross(n_train, last - first, first)
        for part in self.parts[parts]:
            for start, stop in file_ranges(self.store, split, first, last):
                path, a, b = self._file(part, split, start, stop)
                self._check(path, (2, b - a, n_train + 2), np.dtype(np.float64))
                for group in (0, 1):
                    offset = (group * (b - a) + start - a) * (n_train + 2)
                    sums = _read(path, np.float64, offset, (stop - start, n_train + 2))
                    found[group].absorb(start - first, sums[:, :-2], sums[:, -2], sums[:, -1])
        return found

    def _file(self, part: Part, split: str, start: int, stop: int) -> tuple[Path, int, int]:
        """The file with the targets [start, stop), perhaps among others: its path and range."""
        a, b = _whole_range(self.store, split, start)
        whole = part.cross(split, a, b)
        return (whole, a, b) if whole.exists() else (part.cross(split, start, stop), start, stop)

    def make(self, split: str, first: int, last: int, parts: slice = slice(None)) -> None:
        """See to it that every part has its Grams and the sums of targets [first, last), in one pass over its rows."""
        for part in self.parts[parts]:
            missing = [
                (start, stop)
                for start, stop in file_ranges(self.store, split, first, last)
                if not self._file(part, split, start, stop)[0].exists()
            ]
            if not part.gram.exists():
                with self._locked(part):  # another process may have made them meanwhile
                    self._stream(part, split, missing, not part.gram.exists())
                self._tidy()
            elif missing:
                self._stream(part, split, missing, False)

    def _stream(self, part: Part, split: str, ranges: list[tuple[int, int]], with_grams: bool) -> None:
        """One pass over the rows of a part; the sums of `ranges` of targets, which follow each other, and the Grams."""
        n_train = self.store.n_train
        grams = (Gram(n_train), Gram(n_train)) if with_grams else None
        first, last = (ranges[0][0], ranges[-1][1]) if ranges else (0, 0)
        crosses = Cross(n_train, last - first, first), Cross(n_train, last - first, first)
        done = 0
        for block in part.split.blocks(self.store):
            masks = read_masks(self.store, block.rows)
            groups = ~block.heldout, block.heldout
            if grams:
                for gram, group in zip(grams, groups, strict=True):
                    gram.add(masks[group])
            if ranges:
                margins = read_margins(self.store, split, block.rows, slice(first, last))
                for cross, group in zip(crosses, groups, strict=True):
                    cross.add(masks[group].astype(np.float64), margins[group])
            done += len(block.rows)
            self.progress("rows", int(part.first + done), int(self.parts[-1].last))
        for start, stop in ranges:
            targets = slice(start - first, stop - first)
            sums = np.empty((2, stop - start, n_train + 2))
            for page, cross in zip(sums, crosses, strict=True):
                page[:, :-2] = cross.cross[targets]
                page[:, -2], page[:, -1] = cross.sums[targets], cross.squares[targets]
            _write(part.cross(split, start, stop), [sums])
        if grams:
            _write(part.gram, [gram.finish().counts[None] for gram in grams])

    @contextmanager
    def _locked(self, part: Part) -> Iterator[None]:
        """Hold the lock of a part, so that of several processes one makes the Grams."""
        with files.writing(self.folder), open(self.folder / f"{part.first}-{part.last}.lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _tidy(self) -> None:
        """Remove the files of parts that are not today's."""
        stems = {part.stem.name for part in self.parts}
        for file in self.folder.glob("*.npy"):
            if ".".join(file.name.split(".")[:2]) not in stems:
                file.unlink(missing_ok=True)

    def _check(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        expected = _HEADER + int(np.prod(shape)) * dtype.itemsize
        size = path.stat().st_size if path.exists() else 0
        if size != expected:
            raise UserError(f"{path} has {size} bytes, expected {expected}: it was cut short; remove it")


_HEADER = 128
"""Bytes before the values of an .npy file of ours."""


def _write(path: Path, arrays: list[NDArray]) -> None:
    """Write arrays, one after the other along their first axis, as one .npy file that appears when it is whole."""
    shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:])
    described = {"descr": arrays[0].dtype.str, "fortran_order": False, "shape": shape}
    text = repr(described).encode().ljust(_HEADER - 11) + b"\n"
    with files.writing(path), files.replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + text)
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)


def _read(path: Path, dtype: type, at: int, shape: tuple[int, ...]) -> NDArray:
    size = np.dtype(dtype).itemsize
    try:
        values: NDArray = np.fromfile(path, dtype, int(np.prod(shape)), offset=_HEADER + at * size)
    except OSError as error:
        raise WorkError(f"cannot read {path}: {error.strerror}") from None
    if len(values) != np.prod(shape):
        raise UserError(f"{path} was cut short: remove it")
    return values.reshape(shape)


def _identity(store: Store) -> str:
    manifest = getattr(store, "manifest", None)
    return manifest.id if manifest else f"{store.setting.dataset} {store.setting.pct}pct"


def row_cuts(store: Store) -> list[int]:
    """Row numbers at which parts begin and end: the lengths the setting has had and, where the files stay small,
    numbers between them that grow by a constant factor."""
    lengths = sorted({era.models for era in store.eras if era.models <= store.models} | {store.models})
    targets = store.n_test + store.n_train
    if 8 * _POINTS * store.n_train * (store.n_train + 2 * targets) > _DIVIDED_BYTES:
        return [0, *lengths]
    step = _SMALLEST ** (-1 / (_POINTS - 1))
    cuts = [0, *(round(lengths[0] * step ** (at + 1 - _POINTS)) for at in range(_POINTS))]
    for length in lengths[1:]:
        while cuts[-1] * step < length / step**0.5:
            cuts.append(round(cuts[-1] * step))
        cuts.append(length)
    return sorted(set(cuts))


def _columns(store: Store) -> int:
    """Targets to a file: a multiple of the tile that keeps within the slab."""
    return TILE * max(1, min(_COLUMNS, _SLAB_BYTES // (8 * store.n_train)) // TILE)


def _width(store: Store, split: str) -> int:
    return store.n_test if split == "test" else store.n_train


def _whole_range(store: Store, split: str, target: int) -> tuple[int, int]:
    """The targets of the file that holds `target` in a whole fit."""
    columns = _columns(store)
    first = target // columns * columns
    return first, min(first + columns, _width(store, split))


def file_ranges(store: Store, split: str, first: int, last: int) -> list[tuple[int, int]]:
    """Targets [first, last) cut where files end."""
    columns = _columns(store)
    cuts = [first, *range((first // columns + 1) * columns, last, columns), last]
    return list(itertools.pairwise(cuts))


def slabs(store: Store, split: str, first: int, last: int) -> list[tuple[int, int]]:
    """Targets [first, last) in lots whose sums fit into memory, cut where files end."""
    files_each = max(1, _SLAB_BYTES // (8 * store.n_train * _columns(store)))
    ranges = file_ranges(store, split, first, last)
    return [(ranges[at][0], ranges[at : at + files_each][-1][1]) for at in range(0, len(ranges), files_each)]
