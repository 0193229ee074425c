"""What fitting, evaluation and notebooks need of a setting's rows, whoever wrote them.

Shape letters: M rows (models trained), N_train and N_test examples, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Setting
from datamodels.train.errors import UserError, WorkError
from datamodels.train.masks import Era, mask_index
from datamodels.train.npy_file import HEADER_BYTES
from datamodels.train.store.layout import Layout
from datamodels.train.store.manifest import Array
from datamodels.train.summary import Summary
from datamodels.train.values import expanded

if TYPE_CHECKING:  # reads images of many kinds
    import pandas

    from datamodels.train.data import Dataset


@dataclass(frozen=True)
class Records:
    """What was recorded of each row [M] when it was trained; nan or an empty text where nothing was."""

    accuracy: NDArray[np.float32]
    """[M]: share of the test examples that the row's model classifies correctly, from 0 to 1."""
    seconds: NDArray[np.float32]
    """[M]: seconds that training and evaluating the row took."""
    device: NDArray[np.str_]
    """[M]: name of the device that the row was trained on."""

    def to_frame(self) -> "pandas.DataFrame":
        """The same as a table with a row a model."""
        import pandas

        return pandas.DataFrame(vars(self)).rename_axis("row")


class BaseStore(Summary):
    """The rows of a setting, for reading. A row is one trained model: its mask and its outputs.

    Rows [0, models) are for estimation, rows [models, rows) for evaluation. A row counts only where `completed()` says
    so; the arrays hold zeros for rows that were never trained.
    """

    layout: Layout
    """Where the files lie."""
    derived: Path
    """Folder of what is made from the rows, datamodels and reports; see `derive_below`."""
    setting: Setting
    arrays: dict[str, Array]
    """Name, shape and type of each array."""
    eras: tuple[Era, ...]
    """Every length the setting has had, the present one last."""
    n_train: int
    """Training examples, the columns of the masks."""
    n_test: int
    """Test examples."""

    def __init__(self, layout: Layout, setting: Setting, arrays: Sequence[Array], eras: tuple[Era, ...]) -> None:
        self.layout, self.derived = layout, layout.folder
        self.setting = setting
        self.arrays = {array.name: array for array in arrays}
        self.eras = eras
        self.n_train = self.arrays["train_masks"].shape[1]
        tests = [array.shape[1] for name, array in self.arrays.items() if name.startswith("test_")]
        self.n_test = tests[0] if tests else 0

    def derive_below(self, folder: str | Path) -> None:
        """Write datamodels and reports below another folder, as --out does; what it lacks is read from the root."""
        self.derived = expanded(folder, "--out") / self.setting.dataset

    @property
    def models(self) -> int:
        """Number of rows for estimation."""
        return self.eras[-1].models

    @property
    def eval_models(self) -> int:
        """Number of rows for evaluation."""
        return self.eras[-1].eval_models

    @property
    def rows(self) -> int:
        """Number of rows M, trained or not."""
        return self.eras[-1].rows

    def array(self, name: str) -> np.memmap:
        """Return a whole array as a read-only map of its file. Raises WorkError where it cannot be read.

        name: one of `arrays`, such as `train_masks`, `test_margins` or `test_loss`.
        """
        array, path = self.arrays[name], self.layout.array(name)
        try:
            return np.memmap(path, array.dtype, "r", HEADER_BYTES, array.shape)
        except (OSError, ValueError) as error:
            raise WorkError(f"cannot read {path}: {error}") from None

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows [start, stop) of one array, in C order and the machine's byte order. Raises WorkError."""
        raise NotImplementedError

    @property
    def masks(self) -> np.memmap:
        """bool [M, N_train], read-only: True where the row's model was trained on the example."""
        return self.array("train_masks")

    def margins(self, split: str = "test") -> np.memmap:
        """Return float16 [M, N_split], read-only: the correct class's logit minus the largest other logit.

        split: `test` or `train`. Raises UserError for another one.
        """
        return self._of_split(split, "margins")

    def logits(self, split: str = "test") -> np.memmap:
        """Return float16 [M, N_split, C], read-only. Raises UserError where they are not kept.

        split: `test` or `train`. `outputs.{split}_logits: true` in the config keeps them.
        """
        return self._of_split(split, "logits")

    def output(self, name: str, split: str = "test") -> np.memmap:
        """Return any output [M, ...], read-only, such as `loss`: `store.output("loss")`.

        split: `test` or `train`. Raises UserError where it is not kept.
        """
        return self._of_split(split, name)

    def _of_split(self, split: str, kind: str) -> np.memmap:
        if split not in ("test", "train"):
            raise UserError(f"split is {split!r}, expected test or train")
        if (name := f"{split}_{kind}") not in self.arrays:
            raise UserError(f"{self.layout.array(name)} does not exist")
        return self.array(name)

    @property
    def groups(self) -> NDArray[np.integer] | None:
        """[N_train]: the group of each training example, with `mask: groups`; None without."""
        return None

    @property
    def n_features(self) -> int:
        """What datamodels have weights for: the training examples, or the groups of `mask: groups`."""
        return self.n_train if self.groups is None else int(self.groups.max()) + 1

    def names(self, split: str) -> list[str] | None:
        """Return names or texts of the examples of a split, from {split}_names.txt beside the arrays; None without it.

        Raises UserError where it does not have a line for each example.
        """
        path, count = self.layout.names(split), self.n_train if split == "train" else self.n_test
        try:
            found = path.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from None
        if len(found) != count:
            raise UserError(f"{path} has {len(found)} lines, expected one for each of {count} {split} examples")
        return found

    def mask_index(self, row: int) -> int:
        """Return the number of a row's mask; rows with the same number have the same mask."""
        return mask_index(row, list(self.eras), self.setting.runs_per_mask)

    def completed(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        """Return bool [M], or bool [stop - start] of some rows: which are done."""
        raise NotImplementedError

    def failed(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        """Return bool [M], or bool [stop - start] of some rows: which failed for good."""
        raise NotImplementedError

    def estimation_rows(self) -> NDArray[np.int64]:
        """Return the numbers of the rows that are done and for estimation."""
        return np.flatnonzero(self.completed(0, self.models))

    def evaluation_rows(self) -> NDArray[np.int64]:
        """Return the numbers of the rows that are done and for evaluation."""
        return self.models + np.flatnonzero(self.completed(self.models))

    def records(self) -> Records:
        """Return accuracy, seconds and device of each row."""
        raise NotImplementedError

    def dataset(self, root: str | Path | None = None) -> "Dataset":
        """Return the images, labels and classes that the columns stand for.

        root: folder of the data set; None for the config's `data.root`. Raises UserError where the data set is not
        there, or is another one.
        """
        from datamodels.train.data import load

        if self.setting.trainer:
            raise UserError(f"{self.layout.folder} holds rows of {self.setting.trainer}: no images belong to them")
        data = self.setting.data if root is None else replace(self.setting.data, root=str(root))
        dataset = load(replace(self.setting, data=data))
        found = len(dataset.train.labels), len(dataset.test.labels)
        if found != (self.n_train, self.n_test):
            raise UserError(f"{dataset.where} has {found} examples, but the store {self.n_train, self.n_test}")
        return dataset

    def bad_rows(self, names: Sequence[str], start: int, stop: int) -> NDArray[np.bool_]:
        """Return bool [stop - start]: which of these rows are done but differ from their checksums. Reads them."""
        raise NotImplementedError

    def bad_masks(self, start: int, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return bool [n]: which rows from `start` on are done but have another mask than the seed gives.

        masks: bool [n, N_train], as read.
        """
        raise NotImplementedError

    def check_files(self) -> None:
        """Raises WorkError where damaged files put in doubt which rows are done."""
        raise NotImplementedError

    def _told_completed(self) -> str:
        return f"{self.completed().sum():,} completed"

    def _summary(self) -> dict[str, str]:
        return {
            "setting": f"{self.setting.dataset}, {self.setting.described}",
            "rows": f"{self.models:,} and {self.eval_models:,} for evaluation, {self._told_completed()}",
            "examples": f"{self.n_train:,} for training, {self.n_test:,} for testing",
            "arrays": ", ".join(self.arrays),
            "folder": str(self.layout.folder),
        }

    def row_stamp(self, rows: NDArray[np.int64]) -> str:
        """Return a digest of these rows and their bytes, to tell whether a fit is stale."""
        raise NotImplementedError
