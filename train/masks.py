"""Masks: which training examples row r is trained on. `Masks(setting, n_train)[r]` draws one, or reads it."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Setting
from datamodels.train.errors import UserError
from datamodels.train.npy_file import mapped
from datamodels.train.rng import Stream, raw
from datamodels.train.user_code import sha256_of
from datamodels.train.values import expanded


@dataclass(frozen=True)
class Era:
    """Numbers of rows that a setting has had. `grow` appends one; a row's mask depends on the era it was added in."""

    models: int
    eval_models: int

    @property
    def rows(self) -> int:
        """Rows in all."""
        return self.models + self.eval_models


def mask_index(row: int, eras: list[Era], runs_per_mask: int) -> int:
    """Return the number that is used instead of the row's number to draw its mask.

    `runs_per_mask` evaluation rows in a row share a number. A row keeps its number when `grow` turns it into an
    estimation row; rows past the last era follow that one.
    """
    era = next((era for era in eras if row < era.rows), eras[-1])
    if row < era.models:
        return row
    return era.models + (row - era.models) // runs_per_mask


def mask(keys: NDArray[np.uint64], alpha: float | None, rule: str) -> NDArray[np.bool_]:
    """Return the bool mask [n] that random 64-bit keys [n] give by a rule: `bernoulli`, or an exact share of them."""
    assert alpha is not None
    if rule == "bernoulli":
        return keys < np.uint64(math.floor(alpha * 2**64))
    k = subset_size(alpha, len(keys))
    bound = np.partition(keys, k - 1)[k - 1]
    chosen = keys < bound
    ties = np.flatnonzero(keys == bound)
    chosen[ties[: k - np.count_nonzero(chosen)]] = True
    return chosen


def subset_size(alpha: float | None, n: int, what: str = "training examples") -> int:
    """Return the number of examples (or groups) in an exact mask. Raises UserError where that is none or all of n."""
    assert alpha is not None
    k = round(alpha * n)
    if not 0 < k < n:
        raise UserError(f"alpha is {alpha!r}: {k} of {n} {what}, expected at least 1 and not all")
    return k


def largest_subset(setting: Setting, n_train: int) -> int:
    """Return the largest number of examples that a row's mask can have, as far as its rule says."""
    return subset_size(setting.alpha, n_train) if setting.mask == "exact" else n_train


def batch_size(setting: Setting, n_train: int) -> int:
    """Return the images per step: the recipe's batch, or the largest subset of a row if that is smaller."""
    return min(setting.recipe.batch, largest_subset(setting, n_train))


class Masks:
    """The masks of one setting, each from the seed and the row's number alone, or a row of the setting's own file.

    eras: the lengths the setting has had; by default its present one. groups: of each example [N_train], if already
    read. Raises UserError for an alpha, or a file of masks or groups, that does not fit.
    """

    def __init__(
        self,
        setting: Setting,
        n_train: int,
        eras: list[Era] | None = None,
        groups: NDArray[np.integer] | None = None,
    ) -> None:
        self.setting = setting
        self.n_train = n_train
        self.eras = eras or [Era(setting.models, setting.eval_models)]
        self.own: NDArray[np.bool_] | None = None
        self.groups = groups
        if setting.own_masks:
            self.own = self._read_own()
        elif setting.mask == "groups":
            if groups is None:
                assert setting.groups is not None
                self.groups = read_groups(_checked(setting.groups, "groups", setting.groups_sha256), n_train)
            subset_size(setting.alpha, self.units, "groups")
        elif setting.mask == "exact":
            subset_size(setting.alpha, n_train)

    @property
    def units(self) -> int:
        """What the rule chooses among: training examples, or groups of them."""
        return self.n_train if self.groups is None else int(self.groups.max()) + 1

    def __getitem__(self, row: int) -> NDArray[np.bool_]:
        """Return the mask of one row: bool [N_train], True for the examples that its model is trained on.

        Rows past the end, which fill the last group in training, have the last mask of a file.
        """
        if self.own is not None:
            return np.array(self.own[min(row, len(self.own) - 1)])
        index = mask_index(row, self.eras, self.setting.runs_per_mask)
        keys = raw(self.setting.seed, index, Stream.MASK, self.units)
        chosen = mask(keys, self.setting.alpha, self.setting.mask)
        return chosen if self.groups is None else chosen[self.groups]

    def _read_own(self) -> NDArray[np.bool_]:
        """Return the file's masks [M, N_train], mapped."""
        path, rows = self.setting.mask, self.eras[-1].rows
        own: NDArray[np.bool_] = mapped(_checked(path, "mask", self.setting.mask_sha256))
        if own.dtype != np.bool_ or own.shape != (rows, self.n_train):
            raise UserError(
                f"{path} holds {own.dtype} {list(own.shape)}, expected bool [{rows}, {self.n_train}]: a mask for each "
                "of models + eval_models rows"
            )
        index = [mask_index(row, self.eras, self.setting.runs_per_mask) for row in range(rows)]
        for row in range(1, rows):
            if index[row] == index[row - 1] and not np.array_equal(own[row], own[row - 1]):
                runs = self.setting.runs_per_mask
                raise UserError(f"{path}: rows {row - 1} and {row} differ, expected one mask (runs_per_mask is {runs})")
        return own


def read_groups(path: Path, n_train: int) -> NDArray[np.integer]:
    """Return the group of each training example [N_train]. Raises UserError where the file holds something else."""
    groups = np.array(mapped(path))
    if groups.dtype.kind not in "iu" or groups.shape != (n_train,):
        raise UserError(f"{path} holds {groups.dtype} {list(groups.shape)}, expected integers [{n_train}]: groups")
    found = np.unique(groups)
    if not np.array_equal(found, np.arange(len(found))):
        raise UserError(f"{path} holds groups from {found[0]} to {found[-1]}, expected all of 0 to {len(found) - 1}")
    return groups


def _checked(path: str, key: str, sha256: str | None) -> Path:
    """Return the path of a file of masks or groups. Raises UserError where it does not have the expected digest."""
    if (found := sha256_of(path, key)) != sha256:
        raise UserError(f"{path} has changed: it has sha256 {found}, expected {sha256} ({key})")
    return expanded(path, key)
