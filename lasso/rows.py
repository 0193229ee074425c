"""Which rows of a store enter a fit or an evaluation, and reading them block by block."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.train import Setting, UserError, WorkError, finite_rows, validation_rows
from datamodels.train.store import BaseStore as Store
from datamodels.train.store import PublishedStore
from datamodels.train.store import Store as OwnStore

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as the work goes on."""

_BLOCK_VALUES = 2**24
"""Mask entries read at a time: 128 MiB as float64."""


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that does nothing."""


@contextlib.contextmanager
def enough_memory(n_train: int) -> Iterator[None]:
    """Turn MemoryError into WorkError."""
    try:
        yield
    except MemoryError as error:
        size, reason = 4 * n_train**2 / 2**30, str(error).partition("\n")[0] or "no reason given"
        raise WorkError(
            f"out of memory ({reason}): {n_train} examples need {size:.1f} GiB for one matrix, unless they outnumber "
            "the rows, and up to 2 GiB beside it"
        ) from None


def split_name(arrays: Collection[str], split: str, output: str | None = None) -> str:
    """What the files of a fit to an output are named after: `test` for test margins, `test_loss` for the test loss.

    In this package and in launch, `split` is such a name. arrays: names of those that a store has. output: None for
    margins, or where there are none for the first output of the split. Raises UserError where there is no such output.
    """
    if split not in ("test", "train"):
        raise UserError(f"split is {split!r}, expected test or train")
    outputs = [name.removeprefix(f"{split}_") for name in arrays if name.startswith(f"{split}_")]
    outputs = [name for name in outputs if name not in ("masks", "logits")]
    if output is None:
        output = "margins" if "margins" in outputs or not outputs else outputs[0]
    if output not in outputs:
        expected = f"one of {', '.join(outputs)}" if outputs else "another split: this one has none"
        raise UserError(f"output is {output!r}, expected {expected} ({split} split)")
    return split if output == "margins" else f"{split}_{output}"


def split_and_output(split: str) -> tuple[str, str]:
    """What `split_name` was made of."""
    name, _, output = split.partition("_")
    return name, output or "margins"


def target_array(store: Store, split: str) -> str:
    """The name of the array that holds the targets; raises UserError where the store lacks it or it has no targets."""
    array = "_".join(split_and_output(split))
    if array not in store.arrays:
        raise UserError(f"{store.layout.array(array)} does not exist")
    shape = store.arrays[array].shape
    if len(shape) != 2:
        raise UserError(f"{store.layout.array(array)} has shape {list(shape)}, expected [rows, targets]")
    return array


def target_count(store: Store, split: str) -> int:
    """Targets of a split: columns of its margins, or of another output."""
    return int(store.arrays[target_array(store, split)].shape[1])


def file_name(store: Store, array: str) -> str:
    return f"{array}_{store.setting.file_tag}.npy"


def estimation_rows(store: Store) -> NDArray[np.int64]:
    """Numbers of the completed estimation rows.

    Raises UserError where rows are missing (unless fit.partial) or the share of failed rows is above fit.max_failed;
    published rows are never missing.
    """
    fit = store.setting.fit
    if isinstance(store, PublishedStore):
        store.leave_out(0, store.rows)
        return store.estimation_rows()
    done = store.completed()
    failed = store.failed() & ~done
    if failed.sum() > fit.max_failed * store.rows:
        raise UserError(
            f"{failed.sum()} of {store.rows} rows failed (first: {np.flatnonzero(failed)[0]}), expected at most "
            f"{fit.max_failed:g} of them (fit.max_failed): run `datamodels train --retry-failed`"
        )
    missing = np.flatnonzero(~(done | failed))
    if len(missing) and not fit.partial:
        raise UserError(
            f"{len(missing)} of {store.rows} rows are missing (first: {missing[0]}): run `datamodels train`, or set "
            "fit.partial to true to fit on the others"
        )
    return np.flatnonzero(done[: store.models])


def evaluation_rows(store: Store) -> NDArray[np.int64]:
    """Numbers of the completed evaluation rows.

    Raises UserError where there is none, or where more published rows failed than fit.max_failed allows.
    """
    if isinstance(store, PublishedStore):
        store.leave_out(store.models, store.rows)
    rows = store.evaluation_rows()
    if not len(rows):
        instead = "run `datamodels train`, with eval_models above 0"
        if isinstance(store, PublishedStore):
            instead = "eval_models says how many of the last rows are for evaluation"
        raise UserError(
            f"none of {store.rows - store.models} evaluation rows of {store.setting.dataset} {store.setting.file_tag} "
            f"is completed, expected some: {instead}"
        )
    return rows


def blocks(store: Store, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows in ascending blocks, cut at multiples of a number that depends on N_train alone."""
    height = max(64, min(8192, _BLOCK_VALUES // store.n_train))
    cuts = np.flatnonzero(np.diff(rows // height)) + 1
    yield from (piece for piece in np.split(rows, cuts) if len(piece))


def read_rows(store: Store, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of one array. They are checked against their checksums, and masks also against those that the seed gives.

    rows: ascending and close together, as one read covers all of them. Raises WorkError that names rows that differ.
    """
    start, stop = int(rows[0]), int(rows[-1]) + 1
    content = store.read(name, start, stop)
    if isinstance(store, OwnStore):  # published files have no checksums
        _refuse(store, name, rows[store.mismatches(name, start, content)[rows - start]], "match their checksums")
        if name == "train_masks":
            _refuse(store, name, rows[store.bad_masks(start, content)[rows - start]], "hold the masks of their seed")
    return _chosen(content, rows)


def _refuse(store: Store, name: str, bad: NDArray[np.int64], expected: str) -> None:
    if len(bad):
        named = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise WorkError(
            f"{len(bad)} rows of {file_name(store, name)} do not {expected} ({named}): run `datamodels repair`, then "
            "`datamodels train`"
        )


def _chosen(content: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    return content if len(content) == len(rows) else content[rows - rows[0]]


def check_rows(store: Store, arrays: Sequence[str], rows: NDArray[np.int64], progress: Progress = silent) -> None:
    """Read rows to check them, and keep nothing. Raises WorkError."""
    done = 0
    for block in blocks(store, rows):
        for name in arrays:
            read_rows(store, name, block)
        done += len(block)
        progress("check", done, len(rows))


def read_masks(store: Store, rows: NDArray[np.int64], checked: bool = False) -> NDArray[np.bool_]:
    """masks [len(rows), N_train]; checked: they are known to match their checksums."""
    if checked:
        return _chosen(store.read("train_masks", int(rows[0]), int(rows[-1]) + 1), rows)
    return read_rows(store, "train_masks", rows)


def read_features(store: Store, rows: NDArray[np.int64], checked: bool = False) -> NDArray[np.bool_]:
    """What datamodels are linear in, [len(rows), n_features]: masks, or with `mask: groups` the groups in them."""
    masks = read_masks(store, rows, checked)
    if store.groups is None:
        return masks
    chosen: NDArray[np.bool_] = np.take(masks, np.unique(store.groups, return_index=True)[1], axis=1)
    return chosen


def refuse_unshared_masks(store: Store, rows: NDArray[np.int64]) -> None:
    """Raises UserError that names the first row whose mask differs from the row before it, where they should share one.

    Published files do not record their `runs_per_mask`: with a wrong one, runs of different masks would be averaged.
    """
    runs = store.setting.runs_per_mask
    if runs == 1 or not len(rows):
        return
    last, index, before = -1, -1, np.empty(0, bool)
    for block in blocks(store, rows):
        for row, mask in zip(block.tolist(), read_masks(store, block, checked=True), strict=True):
            shared, index = store.mask_index(row) == index, store.mask_index(row)
            if shared and not np.array_equal(mask, before):
                raise UserError(
                    f"{store.layout.array('train_masks')}: row {row} has another mask than row {last}, expected "
                    f"{runs} rows a mask from row {store.models} on (runs_per_mask is {runs})"
                )
            last, before = row, mask


def read_margins(
    store: Store, split: str, rows: NDArray[np.int64], columns: slice | NDArray[np.int64], checked: bool = False
) -> NDArray[np.float64]:
    """Margins, or another output, [len(rows), columns] in float64; raises WorkError where one is not finite."""
    return stored_margins(store, split, rows, columns, checked).astype(np.float64)


def stored_margins(
    store: Store, split: str, rows: NDArray[np.int64], columns: slice | NDArray[np.int64], checked: bool = False
) -> NDArray[np.floating]:
    """`read_margins` without the conversion to float64, which takes four times the memory."""
    name = target_array(store, split)
    if checked:
        margins = _chosen(store.array(name)[rows[0] : rows[-1] + 1, columns], rows)
    else:
        margins = read_rows(store, name, rows)[:, columns]
    broken = np.flatnonzero(~finite_rows(margins))
    if len(broken):
        raise WorkError(f"{file_name(store, name)}: row {rows[broken[0]]} holds a value that is not finite")
    return margins


@dataclass(frozen=True)
class FitRows:
    """Estimation rows, in ascending order, and which of them are validation rows, which choose lambda."""

    rows: NDArray[np.int64]
    validation: NDArray[np.bool_]

    @classmethod
    def of(cls, setting: Setting, rows: NDArray[np.int64]) -> "FitRows":
        fit = setting.fit
        if fit.validation == "last":
            return cls(rows, np.arange(len(rows)) >= len(rows) - round(fit.share * len(rows)))
        return cls(rows, validation_rows(setting.seed, rows, fit.share))

    def refuse_too_few(self, what: str, share: float) -> None:
        """Raises UserError, beginning with `what`, where there is no lambda to choose or nothing to fit."""
        validation = int(self.validation.sum())
        training = len(self.rows) - validation
        if training < 2 or validation < 1:
            raise UserError(
                f"{what} {training} training and {validation} validation rows, expected at least 2 and 1 "
                f"(fit.share {share:g}): raise models or fit.share"
            )

    def between(self, first: int, last: int) -> "FitRows":
        """Those with numbers in [first, last)."""
        inside = slice(*np.searchsorted(self.rows, (first, last)))
        return FitRows(self.rows[inside], self.validation[inside])

    def blocks(self, store: Store) -> Iterator["FitRows"]:
        """The same rows, as many at a time as `blocks` gives."""
        for block in blocks(store, self.rows):
            yield self.between(int(block[0]), int(block[-1]) + 1)
