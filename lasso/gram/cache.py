"""The sums of a store's estimation rows, kept on disk: ROOT/{dataset}/datamodels/statistics_{pct}pct/.

Rows are divided into parts, each with its own files, which every later fit, split and piece uses again. A part is known
by its rows, the times they were made and which of them are held out; rows that are added later make new parts, so that
the old ones are not read again. Its files are named {first}-{last}.{key}.* (datamodels.lasso.gram.shard).
"""

import fcntl
import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import files
from datamodels.lasso.design import GramCounts
from datamodels.lasso.gram.matrices import Matrices, is_small
from datamodels.lasso.gram.moments import TILE, Cross, Gram
from datamodels.lasso.gram.on_disk import StoredCounts
from datamodels.lasso.gram.shard import Part, add_file, check, read, sorts_margins
from datamodels.lasso.rows import Progress, Split, silent
from datamodels.train import UserError
from datamodels.train.store import ReadableStore as Store

if TYPE_CHECKING:
    import torch

_POINTS, _SMALLEST = 10, 1 / 32
"""Parts that the first rows are divided into where disk space allows, and the share of the smallest."""
_DIVIDED_BYTES = 2**28
"""Disk space up to which rows are divided."""
_SLAB_BYTES = 2**28
"""Sums of one group of rows with the margins that are held at a time."""
_PACKED_ROWS = 4096
"""Held-out rows that are gathered before they are packed, which fills them up to 512."""
_COLUMNS, _TOGETHER = 8 * TILE, 256
"""Targets to a file at most, and how many a GPU takes at a time (datamodels.lasso.solver.fista.TILE), which files best do not cut."""


def folder_of(store: Store) -> Path:
    return store.derived / "datamodels" / f"statistics_{store.setting.pct}pct"


class Statistics:
    """The sums of the estimation rows of a store, made where they are missing.

    Raises UserError for files of another store, or files cut short; WorkError for damaged rows.
    """

    def __init__(
        self, store: Store, rows: Split, progress: Progress = silent, device: "torch.device | None" = None
    ) -> None:
        """device: where sums are made that are missing, if not on the CPU."""
        self.store, self.rows, self.progress = store, rows, progress
        self.folder = folder_of(store)
        self._claim()
        cuts = row_cuts(store)
        spans = ((first, last, rows.between(first, last)) for first, last in itertools.pairwise(cuts))
        stems = ((a, b, split, self.folder / f"{a}-{b}.{self._key(split)}") for a, b, split in spans)
        self.parts = [Part(store, *stem, device) for stem in stems]
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
        """Finished Grams of the training and of the held-out rows, in memory."""
        n_train = self.store.n_train
        found = Gram(n_train), Gram(n_train)
        for part in self.parts[parts]:
            for group in (0, 1):
                check(part.gram(group), (n_train, n_train), np.dtype(np.int32))
                found[group].rows += part.rows[group]
                add_file(found[group].counts, part.gram(group))
        return found

    def matrices(self, parts: slice = slice(None)) -> Matrices:
        """What the solver needs of the masks."""
        small = is_small(self.store.n_train)
        counts = GramCounts(*self.grams(parts)) if small else self.stored_counts(parts)
        return Matrices(counts, self.held_bits(parts))

    def stored_counts(self, parts: slice = slice(None)) -> StoredCounts:
        """Counts of both groups, left on the disk."""
        training, heldout = np.sum([part.rows for part in self.parts[parts]], axis=0)
        paths = [(part.gram(0), part.gram(1)) for part in self.parts[parts]]
        return StoredCounts(paths, self.store.n_train, (int(training), int(heldout)))

    def held_bits(self, parts: slice = slice(None)) -> NDArray[np.uint64]:
        """Masks of the held-out rows, [N, words] of 64 rows each."""
        from datamodels.lasso.gram.popcount import pack

        found, waiting = [], [np.zeros((0, self.store.n_train), bool)]
        for part in self.parts[parts]:
            for _, masks in part.masks_of(1):
                waiting.append(masks)
                if sum(map(len, waiting)) >= _PACKED_ROWS:
                    found.append(pack(np.concatenate(waiting).view(np.uint8)))
                    waiting = waiting[:1]
        return np.concatenate([*found, pack(np.concatenate(waiting).view(np.uint8))], axis=1)

    def crosses(self, split: str, first: int, last: int, parts: slice = slice(None)) -> tuple[Cross, Cross]:
        """Sums with the margins of targets [first, last), of the training and of the held-out rows."""
        n_train = self.store.n_train
        found = Cross(n_train, last - first, first), Cross(n_train, last - first, first)
        for part in self.parts[parts]:
            for start, stop in file_ranges(self.store, split, first, last):
                path, a, b = self._file(part, split, start, stop)
                check(path, (2, b - a, n_train + 2), np.dtype(np.float64))
                for group in (0, 1):
                    offset = (group * (b - a) + start - a) * (n_train + 2)
                    sums = read(path, np.float64, offset, (stop - start, n_train + 2))
                    found[group].absorb(start - first, sums[:, :-2], sums[:, -2], sums[:, -1])
        return found

    def _file(self, part: Part, split: str, start: int, stop: int) -> tuple[Path, int, int]:
        """The file with the targets [start, stop), perhaps among others: its path and range."""
        a, b = _whole_range(self.store, split, start)
        whole = part.cross(split, a, b)
        return (whole, a, b) if whole.exists() else (part.cross(split, start, stop), start, stop)

    def make(self, split: str, first: int, last: int, parts: slice = slice(None)) -> None:
        """See to it that every part has its masks, its counts and the sums of targets [first, last)."""
        for part in self.parts[parts]:
            if not part.masks.exists():
                with self._locked(part):
                    if not part.masks.exists():  # another process may have made them meanwhile
                        part.make_masks(self.progress)
                self._tidy()
            self._count(part, wait=False)
            ranges = file_ranges(self.store, split, first, last)
            lacking = [pair for pair in ranges if not self._file(part, split, *pair)[0].exists()]
            part.make_sums(split, ranges, lacking, self.progress)
            self._count(part, wait=True)

    def _count(self, part: Part, wait: bool) -> None:
        """Make the counts unless another process is at it, for which one may wait."""
        if part.has_counts():
            return
        with self._locked(part, wait) as mine:
            if mine and not part.has_counts():
                part.make_counts(self.progress)

    @contextmanager
    def _locked(self, part: Part, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of a part, so that of several processes one makes what all need; yields whether it is held."""
        with files.writing(self.folder), open(self.folder / f"{part.first}-{part.last}.lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def _tidy(self) -> None:
        """Remove the files of parts that are not today's, but none that another process is still writing aside."""
        stems = {part.stem.name for part in self.parts}
        for file in self.folder.glob("[0-9]*-*.*.*"):
            if ".".join(file.name.split(".")[:2]) not in stems:
                file.unlink(missing_ok=True)
        files.remove_orphans(self.folder)


def _identity(store: Store) -> str:
    manifest = getattr(store, "manifest", None)
    return manifest.id if manifest else f"{store.setting.dataset} {store.setting.pct}pct"


def row_cuts(store: Store) -> list[int]:
    """Row numbers at which parts begin and end: the lengths the setting has had and, where the files stay small,
    numbers between them that grow by a constant factor."""
    lengths = sorted({era.models for era in store.eras if era.models <= store.models} | {store.models})
    if not _is_divided(lengths[0], store.n_train, store.n_test):
        return [0, *lengths]
    step = _SMALLEST ** (-1 / (_POINTS - 1))
    cuts = [0, *(round(lengths[0] * step ** (at + 1 - _POINTS)) for at in range(_POINTS))]
    for length in lengths[1:]:
        while cuts[-1] * step < length / step**0.5:
            cuts.append(round(cuts[-1] * step))
        cuts.append(length)
    return sorted(set(cuts))


def _is_divided(models: int, n_train: int, n_test: int) -> bool:
    """Whether the sums of all parts stay small, or smaller than the store's masks and margins."""
    targets = n_test + n_train
    return 8 * _POINTS * n_train * (n_train + 2 * targets) <= max(_DIVIDED_BYTES, models * (n_train + 2 * targets))


def count_parts(models: int, n_train: int, n_test: int) -> int:
    """Parts that the statistics of a store are made in; a setting that grows later has more."""
    return _POINTS if _is_divided(models, n_train, n_test) else 1


def disk_bytes(models: int, n_train: int, n_test: int, targets: int) -> tuple[int, int]:
    """What the statistics of a store take on disk for a split with so many targets, and what its sorted margins take
    meanwhile; a setting that grows later takes more."""
    sums = count_parts(models, n_train, n_test) * (8 * n_train**2 + 16 * targets * (n_train + 2))
    return models * ((n_train + 7) // 8) + sums, 2 * models * targets if sorts_margins(targets, n_train, models) else 0


def _columns(store: Store) -> int:
    """Targets to a file: a multiple of what a GPU takes at a time that keeps within the slab, or one tile."""
    within = min(_COLUMNS, _SLAB_BYTES // (8 * store.n_train))
    return within // _TOGETHER * _TOGETHER or TILE


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
