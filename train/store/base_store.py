"""What fitting, evaluation and notebooks need of a setting's rows, whoever wrote them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Setting
from datamodels.train.errors import UserError, WorkError
from datamodels.train.masks import Era, mask_index
from datamodels.train.npy_file import HEADER_BYTES
from datamodels.train.store.layout import Layout
from datamodels.train.store.manifest import Array
from datamodels.train.summary import Summary

if TYPE_CHECKING:  # reads images of many kinds
    from datamodels.train.data import Dataset


@dataclass(frozen=True)
class Records:
    """What was noted of each row [M] as it was trained; nan or empty where nothing was."""

    accuracy: NDArray[np.float32]
    """Share of the test examples that the row's model gets right."""
    seconds: NDArray[np.float32]
    """Time that its training and evaluation took."""
    device: NDArray[np.str_]
    """What it was trained on."""


class ReadableStore(Summary):
    """What fitting and evaluation need of a setting's rows, whoever wrote them.

    Rows [0, models) are for estimation, rows [models, rows) for evaluation.
    """

    def __init__(self, layout: Layout, setting: Setting, arrays: Sequence[Array], eras: tuple[Era, ...]) -> None:
        self.layout = layout
        self.derived = layout.folder
        """Folder of what is made from the rows, datamodels and reports: that of the rows, or see `derive_below`."""
        self.setting = setting
        self.arrays = {array.name: array for array in arrays}
        self.eras = eras
        self.n_train = self.arrays["train_masks"].shape[1]
        self.n_test = self.arrays["test_margins"].shape[1]

    def derive_below(self, folder: str | Path) -> None:
        """Write what is made from the rows below another folder, as --out does; what it lacks is read from the root."""
        self.derived = Path(folder).expanduser() / self.setting.dataset

    @property
    def models(self) -> int:
        return self.eras[-1].models

    @property
    def eval_models(self) -> int:
        return self.eras[-1].eval_models

    @property
    def rows(self) -> int:
        return self.eras[-1].rows

    def array(self, name: str) -> np.memmap:
        """A whole array as a read-only map of its file, shapes as in the published format."""
        array = self.arrays[name]
        path = self.layout.array(name)
        try:
            return np.memmap(path, array.dtype, "r", self._offset(path), array.shape)
        except (OSError, ValueError) as error:
            raise WorkError(f"cannot read {path}: {error}") from None

    def _offset(self, path: Path) -> int:
        return HEADER_BYTES

    @property
    def masks(self) -> np.memmap:
        """[M, N_train] bool, read-only: which training examples each row's model has seen."""
        return self.array("train_masks")

    def margins(self, split: str = "test") -> np.memmap:
        """[M, T] float16, read-only: correct-class logit minus the largest other, of the test or train examples."""
        return self._of_split(split, "margins")

    def logits(self, split: str = "test") -> np.memmap:
        """[M, T, C] float16, read-only. Raises UserError where they were not kept (`outputs.{split}_logits`)."""
        return self._of_split(split, "logits")

    def _of_split(self, split: str, kind: str) -> np.memmap:
        if split not in ("test", "train"):
            raise UserError(f"split is {split!r}, expected test or train")
        if (name := f"{split}_{kind}") not in self.arrays:
            raise UserError(f"{self.layout.array(name)} does not exist")
        return self.array(name)

    def mask_index(self, row: int) -> int:
        """Rows with the same index share a mask."""
        return mask_index(row, list(self.eras), self.setting.runs_per_mask)

    def completed(self) -> NDArray[np.bool_]:
        """Which rows [M] are done."""
        raise NotImplementedError

    def estimation_rows(self) -> NDArray[np.int64]:
        """Numbers of the rows that are done and for estimation."""
        return np.flatnonzero(self.completed()[: self.models])

    def evaluation_rows(self) -> NDArray[np.int64]:
        """Numbers of the rows that are done and for evaluation."""
        return self.models + np.flatnonzero(self.completed()[self.models :])

    def records(self) -> Records:
        """What is noted of each row; nothing of published files."""
        unknown = np.full(self.rows, np.nan, np.float32)
        return Records(unknown, unknown.copy(), np.full(self.rows, ""))

    def dataset(self, root: str | Path | None = None) -> "Dataset":
        """The images, labels and classes that the columns stand for, from `root` or else from where they lay.

        Raises UserError where they are not at hand, or are others.
        """
        from datamodels.train.data import load

        data = self.setting.data if root is None else replace(self.setting.data, root=str(root))
        dataset = load(replace(self.setting, data=data))
        found = len(dataset.train.labels), len(dataset.test.labels)
        if found != (self.n_train, self.n_test):
            raise UserError(f"{dataset.where} has {found} examples, but the store {self.n_train, self.n_test}")
        return dataset

    def failed(self) -> NDArray[np.bool_]:
        """Which rows [M] failed for good."""
        raise NotImplementedError

    def bad_rows(self, names: Sequence[str], start: int, stop: int) -> NDArray[np.bool_]:
        """Which of the rows [start, stop) are done but hold other bytes than were recorded. Reads them."""
        raise NotImplementedError

    def check_files(self) -> None:
        """Raises WorkError where damaged files put in doubt which rows are done; never for published files."""

    def bad_masks(self, start: int, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the rows from `start` on, their masks [n, N_train] read, are done but have another mask than the
        seed gives; none of published files, whose seed is not known.
        """
        return np.zeros(len(masks), bool)

    def _summary(self) -> dict[str, str]:
        return {
            "setting": f"{self.setting.dataset}, alpha {self.setting.alpha:g}",
            "rows": f"{self.models:,} and {self.eval_models:,} for evaluation, {self.completed().sum():,} completed",
            "examples": f"{self.n_train:,} for training, {self.n_test:,} for testing",
            "arrays": ", ".join(self.arrays),
            "folder": str(self.layout.folder),
        }

    def row_stamp(self, rows: NDArray[np.int64]) -> str:
        """A digest of which rows these are and which time they were made, to see whether a fit is stale."""
        raise NotImplementedError
