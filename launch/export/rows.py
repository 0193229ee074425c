"""Rows of a store as subsets and margins: what other libraries evaluate attributions against.

Shape letters: R rows, S masks, N training examples, T targets.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Progress, evaluation_rows, read_features, read_margins, refuse_unshared_masks, target_count
from datamodels.lasso.evaluation import LEAST_MASKS
from datamodels.launch.export.margins import labels_of, trak_margins
from datamodels.launch.progress import notice
from datamodels.train import UserError
from datamodels.train.store import BaseStore

Rows = Sequence[int] | None
"""Numbers of rows, ascending; None for the completed evaluation rows."""


def choose(store: BaseStore, rows: Rows) -> NDArray[np.int64]:
    """Numbers of those rows that are completed, or else of the completed evaluation rows; a notice counts the others.

    Raises UserError if none is completed, WorkError for damaged files.
    """
    store.check_files()
    asked = np.arange(store.models, store.rows) if rows is None else np.array(rows, np.int64)
    first, last = int(asked[0]), int(asked[-1])
    chosen = evaluation_rows(store) if rows is None else asked[store.completed(first, last + 1)[asked - first]]
    if not len(chosen):
        raise UserError(f"none of the rows {first} to {last} is completed, expected some")
    if left_out := len(asked) - len(chosen):
        notice(f"{left_out} of the rows {first} to {last} are missing or failed and are left out")
    return chosen


class Subsets:
    """The masks of some rows, each once, and the mean margins of the rows that share a mask."""

    block_values = 2**24
    """Values of one array in memory at a time."""

    def __init__(self, store: BaseStore, rows: Rows, progress: Progress) -> None:
        """Raises UserError for too few masks, or for rows that do not share masks as runs_per_mask says; WorkError."""
        self.store, self.progress = store, progress
        self.rows = choose(store, rows)
        """Ascending, [R]: rows that share a mask follow each other."""
        index = np.array([store.mask_index(row) for row in self.rows.tolist()])
        self.starts = np.flatnonzero(np.diff(index, prepend=-1))
        """Where in `rows` each mask begins, [S]."""
        self.count = len(self.starts)
        """S"""
        if self.count < LEAST_MASKS:
            raise UserError(
                f"the completed rows chosen have {self.count} masks, expected at least {LEAST_MASKS}: name more with "
                "--rows"
            )
        refuse_unshared_masks(store, self.rows)

    def masks(self) -> Iterator[NDArray[np.bool_]]:
        """Yield bool [S, N], N being what has weights, in blocks of rows. Raises WorkError for damaged rows."""
        for rows, starts in self._blocks("masks", self.store.n_train):
            yield read_features(self.store, rows)[starts]

    def margins(self, split: str, margin: str) -> Iterator[NDArray[np.float32]]:
        """float32 [S, T] in blocks of rows, each the mean over one mask's rows.

        margin: `store`, correct minus largest other logit, or `trak`. Raises UserError at once if the logits for it are
        missing, WorkError for damaged rows.
        """
        if margin == "trak" and split not in ("test", "train"):
            raise UserError(f"--margin trak is computed from logits, expected no other output such as {split}")
        labels = labels_of(self.store, split) if margin == "trak" else None
        return self._mean_margins(split, labels)

    def _mean_margins(self, split: str, labels: NDArray[np.int64] | None) -> Iterator[NDArray[np.float32]]:
        width = target_count(self.store, split)
        if labels is not None:
            width *= self.store.array(f"{split}_logits").shape[2]
        for rows, starts in self._blocks("margins", width):
            if labels is None:
                margins = read_margins(self.store, split, rows, slice(None))
            else:
                margins = trak_margins(self.store, split, rows, labels)
            runs = np.diff(np.append(starts, len(rows)))
            yield (np.add.reduceat(margins, starts, axis=0) / runs[:, None]).astype(np.float32)

    def _blocks(self, what: str, width: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the rows of some masks, and where among them each mask begins; a row has `width` values.

        Blocks are cut at multiples of a number of rows, so that the rows of one lie close together.
        """
        ends = np.append(self.starts[1:], len(self.rows))
        height = max(1, self.block_values // width)
        cuts = np.flatnonzero(np.diff(self.rows[self.starts] // height)) + 1
        for masks in np.split(np.arange(self.count), cuts):
            first, stop = self.starts[masks[0]], ends[masks[-1]]
            yield self.rows[first:stop], self.starts[masks] - first
            self.progress(what, int(masks[-1]) + 1, self.count)
