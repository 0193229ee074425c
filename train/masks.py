"""Masks: which training examples row r is trained on. `Masks(setting, n_train)[r]` draws one."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Setting
from datamodels.train.errors import UserError
from datamodels.train.rng import Stream, raw


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


def mask(keys: NDArray[np.uint64], alpha: float, rule: str) -> NDArray[np.bool_]:
    """Return the bool mask [N_train] that random 64-bit keys [N_train] give by a rule, `exact` or `bernoulli`."""
    if rule == "bernoulli":
        return keys < np.uint64(math.floor(alpha * 2**64))
    k = subset_size(alpha, len(keys))
    bound = np.partition(keys, k - 1)[k - 1]
    chosen = keys < bound
    ties = np.flatnonzero(keys == bound)
    chosen[ties[: k - np.count_nonzero(chosen)]] = True
    return chosen


def subset_size(alpha: float, n_train: int) -> int:
    """Return the number of examples in an exact mask. Raises UserError where that is none or all of them."""
    k = round(alpha * n_train)
    if not 0 < k < n_train:
        raise UserError(f"alpha is {alpha!r}: {k} of {n_train} training examples, expected at least 1 and not all")
    return k


def largest_subset(setting: Setting, n_train: int) -> int:
    """Return the largest number of examples that a row's mask can have."""
    return n_train if setting.mask == "bernoulli" else subset_size(setting.alpha, n_train)


def batch_size(setting: Setting, n_train: int) -> int:
    """Return the images per step: the recipe's batch, or the largest subset of a row if that is smaller."""
    return min(setting.recipe.batch, largest_subset(setting, n_train))


class Masks:
    """The masks of one setting, each drawn from the seed and the row's number alone.

    eras: the lengths the setting has had; by default its present one. Raises UserError for an alpha that does not fit.
    """

    def __init__(self, setting: Setting, n_train: int, eras: list[Era] | None = None) -> None:
        self.setting = setting
        self.n_train = n_train
        self.eras = eras or [Era(setting.models, setting.eval_models)]
        if setting.mask == "exact":
            subset_size(setting.alpha, n_train)

    def __getitem__(self, row: int) -> NDArray[np.bool_]:
        """Return the mask of one row: bool [N_train], True for the examples that its model is trained on."""
        index = mask_index(row, self.eras, self.setting.runs_per_mask)
        keys = raw(self.setting.seed, index, Stream.MASK, self.n_train)
        return mask(keys, self.setting.alpha, self.setting.mask)
