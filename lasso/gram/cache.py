"""The sums of a store's estimation rows, kept on disk between fits in ROOT/{dataset}/datamodels/gram_{pct}pct/.

The rows that a setting had when it was created, and those of every `grow`, are a shard, with its own files, which every
later fit, split and piece uses again: after `grow` only the new rows are read. A shard is identified by its rows, the
times they were made and which of them are validation rows. Its files are named {first}-{last}.{key}.* (see Shard).
"""

import fcntl
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.atomic import replacing, writing
from datamodels.lasso.gram.counts import Counts, DiskCounts, MemoryCounts, add_file, check, read
from datamodels.lasso.gram.matrices import MaskBits, Matrices, bits_of, has_few_rows, is_small
from datamodels.lasso.gram.shard import Range, Shard
from datamodels.lasso.gram.sums import Cross, Gram
from datamodels.lasso.rows import FitRows, Progress, silent, target_count
from datamodels.train import UserError
from datamodels.train.store import BaseStore as Store

TARGETS_PER_FILE = 512
BATCH_BYTES = 2**28
"""Sums of training rows with the margins of a target batch."""


def folder_of(store: Store) -> Path:
    return store.derived / "datamodels" / f"gram_{store.setting.file_tag}"


class GramCache:
    """The sums of the estimation rows of a store; `make` computes those that are missing.

    Raises UserError for files of another store, or files cut short; WorkError for damaged rows.
    """

    def __init__(self, store: Store, rows: FitRows, progress: Progress = silent) -> None:
        self.store, self.rows, self.progress = store, rows, progress
        self.folder = folder_of(store)
        self._claim()
        self.shards = []
        lengths = {era.models for era in store.eras if era.models <= store.models} | {store.models}
        for first, last in itertools.pairwise([0, *sorted(lengths)]):
            inside = rows.between(first, last)
            if len(inside.rows):
                stem = self.folder / f"{first}-{last}.{self._key(inside)}"
                self.shards.append(Shard(store, first, last, inside, stem))

    @property
    def has_few_rows(self) -> bool:
        """Whether the solver takes masks as bits, and no counts of all examples are made."""
        return has_few_rows(len(self.rows.rows), self.store.n_features)

    def _claim(self) -> None:
        """Create the folder, or refuse one that belongs to another store."""
        manifest, setting = getattr(self.store, "manifest", None), self.store.setting
        store = manifest.id if manifest else f"{setting.dataset} {setting.file_tag}"
        owner = {"store": store, "n_train": self.store.n_features}
        path = self.folder / "store.json"
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                with replacing(path) as temporary:
                    temporary.write_text(json.dumps(owner), "utf-8")
            shutil.rmtree(self.folder.with_name(f"statistics_{setting.file_tag}"), ignore_errors=True)  # of version 0.1
            return
        except ValueError:
            found = None
        if found != owner:
            raise UserError(f"{self.folder} holds sums of another store: remove it")

    def _key(self, rows: FitRows) -> str:
        digest = hashlib.sha256(self.store.row_stamp(rows.rows).encode())
        digest.update(np.packbits(rows.validation).tobytes())
        return digest.hexdigest()[:16]

    def make(self, split: str, first: int, last: int, shards: slice = slice(None)) -> None:
        """Compute what is missing of every shard: masks, sums with targets [first, last), and counts if they are used.

        Of several processes one makes masks and counts, while the others wait; each makes the sums of its targets.
        """
        for shard in self.shards[shards]:
            with self._locked(shard):
                if not shard.masks.exists():
                    shard.write_masks(self.progress)
                    self._remove_stale()
            ranges = file_ranges(target_count(self.store, split), first, last)
            missing = [targets for targets in ranges if not shard.cross(split, targets).exists()]
            if missing:
                shard.write_cross(split, missing, self.progress)
            with self._locked(shard):
                if not self.has_few_rows and not shard.has_counts():
                    shard.write_counts(self.progress)

    @contextmanager
    def _locked(self, shard: Shard) -> Iterator[None]:
        with writing(self.folder), open(self.folder / f"{shard.first}-{shard.last}.lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _remove_stale(self) -> None:
        """Remove the files of shards of other rows."""
        stems = {shard.stem.name for shard in self.shards}
        for file in self.folder.glob("[0-9]*-*.*.*"):
            if ".".join(file.name.split(".")[:2]) not in stems:
                file.unlink(missing_ok=True)

    def grams(self, shards: slice = slice(None)) -> tuple[Gram, Gram]:
        """Counts of the training and of the validation rows, in memory."""
        found = Gram(self.store.n_features), Gram(self.store.n_features)
        for shard in self.shards[shards]:
            for group in (0, 1):
                found[group].rows += shard.sizes[group]
                add_file(found[group].counts, shard.gram(group))
        return found

    def counts(self, shards: slice = slice(None)) -> Counts:
        """Counts of both groups, in memory where they are small, else left on disk."""
        if is_small(self.store.n_features):
            return MemoryCounts(*self.grams(shards))
        training, validation = np.sum([shard.sizes for shard in self.shards[shards]], axis=0)
        paths = [(shard.gram(0), shard.gram(1)) for shard in self.shards[shards]]
        return DiskCounts(paths, self.store.n_features, (int(training), int(validation)))

    def bits(self, group: int) -> NDArray[np.uint64]:
        """Masks of the training rows (0) or of the validation rows (1), [N, words] of 64 rows each."""
        pieces = [piece for shard in self.shards for _, piece in shard.packed_masks(group)]
        return bits_of(np.concatenate(pieces), self.store.n_features)

    def matrices(self) -> Matrices:
        """What the solver needs of the masks."""
        bits = self.bits(1)
        if not self.has_few_rows:
            return Matrices(self.counts(), bits)
        validation = int(self.rows.validation.sum())
        return Matrices(MaskBits(self.bits(0), bits, (len(self.rows.rows) - validation, validation)), bits)

    def crosses(self, split: str, first: int, last: int, shards: slice = slice(None)) -> tuple[Cross, Cross]:
        """Sums with the margins of targets [first, last), of the training and of the validation rows."""
        width = self.store.n_features + 2
        found = Cross(self.store.n_features, last - first), Cross(self.store.n_features, last - first)
        for shard in self.shards[shards]:
            for start, stop in file_ranges(target_count(self.store, split), first, last):
                path, float64 = shard.cross(split, (start, stop)), np.dtype(np.float64)
                check(path, (2, stop - start, width), float64)
                a, b = max(start, first), min(stop, last)
                for group in (0, 1):
                    place = (group * (stop - start) + a - start) * width
                    found[group].table[a - first : b - first] += read(path, float64, place, (b - a, width))
        return found


def disk_bytes(models: int, n_train: int, targets: int) -> int:
    """Bytes that the sums of a store and of so many targets take on disk; a setting that grows later takes more."""
    counts = 0 if has_few_rows(models, n_train) else 8 * n_train**2
    return models * ((n_train + 7) // 8) + counts + 16 * targets * (n_train + 2)


def file_ranges(targets: int, first: int, last: int) -> list[Range]:
    """The ranges of targets of the files that hold [first, last), of a split with so many targets."""
    starts = range(first // TARGETS_PER_FILE * TARGETS_PER_FILE, last, TARGETS_PER_FILE)
    return [(start, min(start + TARGETS_PER_FILE, targets)) for start in starts]


def target_batches(n_train: int, first: int, last: int) -> list[Range]:
    """Targets [first, last) in batches whose sums fit into memory, cut where files end."""
    width = TARGETS_PER_FILE * max(1, BATCH_BYTES // (8 * n_train * TARGETS_PER_FILE))
    cuts = [first, *range((first // width + 1) * width, last, width), last]
    return list(itertools.pairwise(cuts))
