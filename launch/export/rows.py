"""Rows of a store as subsets and margins: what other libraries evaluate attributions against.

Shape letters: S masks, N training examples, T targets.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Progress, evaluation_rows, read_margins, read_rows, refuse_unshared_masks, target_count
from datamodels.lasso.evaluation import LEAST_MASKS
from datamodels.launch.export.margins import TrakMargins
from datamodels.launch.progress import notice
from datamodels.train import UserError
from datamodels.train.store import ReadableStore as Store

_BLOCK_VALUES = 2**24
"""Values of one array that are read at a time."""


def choose(store: Store, span: tuple[int, int] | None) -> NDArray[np.int64]:
    """Numbers of the completed rows in [A, B), or of the completed evaluation rows; tells what is left out.

    Raises UserError where none is completed, WorkError for damaged files.
    """
    store.check_files()
    first, last = span or (store.models, store.rows)
    rows = first + np.flatnonzero(store.completed()[first:last]) if span else evaluation_rows(store)
    if not len(rows):
        raise UserError(f"none of the rows {first} to {last - 1} is completed: run `datamodels train`")
    if len(rows) < last - first:
        notice(f"{last - first - len(rows)} of the rows {first} to {last - 1} are missing or failed and are left out")
    return rows


@dataclass(frozen=True)
class Subsets:
    """Rows in ascending order, grouped by their masks; the margins of one mask's rows are averaged."""

    store: Store
    rows: NDArray[np.int64]
    progress: Progress

    def __post_init__(self) -> None:
        """Raises UserError where the masks are too few for a rank correlation, or not shared as runs_per_mask says."""
        if self.count < LEAST_MASKS:
            raise UserError(
                f"the completed rows chosen have {self.count} masks, expected at least {LEAST_MASKS}: name more with "
                "--rows, or run `datamodels train`"
            )
        refuse_unshared_masks(self.store, self.rows)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where in `rows` each mask begins, [S]: rows that share a mask follow each other."""
        index = np.fromiter((self.store.mask_index(row) for row in self.rows.tolist()), np.int64, len(self.rows))
        return np.flatnonzero(np.diff(index, prepend=-1))

    @property
    def count(self) -> int:
        """S"""
        return len(self.starts)

    def _blocks(self, what: str, width: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Rows of some masks, and where among them each mask begins; `width` values a row.

        Cut at multiples of a number of rows, so that rows of one block lie close together.
        """
        ends = np.append(self.starts[1:], len(self.rows))
        height = max(1, _BLOCK_VALUES // width)
        cuts = np.flatnonzero(np.diff(self.rows[self.starts] // height)) + 1
        for masks in np.split(np.arange(self.count), cuts):
            first, stop = self.starts[masks[0]], ends[masks[-1]]
            yield self.rows[first:stop], self.starts[masks] - first
            self.progress(what, int(masks[-1]) + 1, self.count)

    def masks(self) -> Iterator[NDArray[np.bool_]]:
        """bool [S, N] in blocks of rows. Raises WorkError for damaged rows."""
        for rows, starts in self._blocks("masks", self.store.n_train):
            yield read_rows(self.store, "train_masks", rows)[starts]

    def margins(self, split: str, margin: str) -> Iterator[NDArray[np.float32]]:
        """float32 [S, T] in blocks of rows, each the mean over one mask's rows.

        margin: `store`, correct minus largest other logit, or `trak`. Raises UserError at once where the logits for it
        are not there, WorkError for damaged rows.
        """
        if margin == "trak":
            trak = TrakMargins(self.store, split)
            return self._means(trak.width, trak.read)
        width = target_count(self.store, split)
        return self._means(width, lambda rows: read_margins(self.store, split, rows, slice(None)))

    def _means(
        self, width: int, read: Callable[[NDArray[np.int64]], NDArray[np.float64]]
    ) -> Iterator[NDArray[np.float32]]:
        for rows, starts in self._blocks("margins", width):
            runs = np.diff(np.append(starts, len(rows)))
            yield (np.add.reduceat(read(rows), starts, axis=0) / runs[:, None]).astype(np.float32)
