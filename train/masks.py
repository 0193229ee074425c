"""Training subsets: which examples row r is trained on."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Setting
from datamodels.train.errors import UserError
from datamodels.train.rng import Stream, raw


@dataclass(frozen=True)
class Era:
    """A length that a setting has had: `grow` appends one, and a row's mask follows the era it was made in."""

    models: int
    eval_models: int

    @property
    def rows(self) -> int:
        return self.models + self.eval_models


def mask_index(row: int, eras: list[Era], runs_per_mask: int) -> int:
    """The number that takes the row's place in the mask stream: evaluation rows share one in runs of runs_per_mask.

    A row keeps the index it was made with, whatever `grow` later makes of it; rows past the last era follow that one.
    """
    era = next((era for era in eras if row < era.rows), eras[-1])
    if row < era.models:
        return row
    return era.models + (row - era.models) // runs_per_mask


def mask(keys: NDArray[np.uint64], alpha: float, rule: str) -> NDArray[np.bool_]:
    """The mask that N_train random 64-bit keys give under `exact` or `bernoulli`."""
    if rule == "bernoulli":
        return keys < np.uint64(math.floor(alpha * 2**64))
    k = subset_size(alpha, len(keys))
    bound = np.partition(keys, k - 1)[k - 1]
    chosen = keys < bound
    ties = np.flatnonzero(keys == bound)
    chosen[ties[: k - np.count_nonzero(chosen)]] = True
    return chosen


def subset_size(alpha: float, n_train: int) -> int:
    """Examples in an exact mask; raises UserError where that is none or all of them."""
    k = round(alpha * n_train)
    if not 0 < k < n_train:
        raise UserError(f"alpha is {alpha!r}: {k} of {n_train} training examples, expected at least 1 and not all")
    return k


def largest_subset(setting: Setting, n_train: int) -> int:
    """Examples that a row's mask may have at most."""
    return n_train if setting.mask == "bernoulli" else subset_size(setting.alpha, n_train)


def batch_size(setting: Setting, n_train: int) -> int:
    """Images in a step: the recipe's batch, or the largest subset that a row may have, if that is smaller."""
    return min(setting.recipe.batch, largest_subset(setting, n_train))


class Masks:
    """The masks of one setting, each from its seed and row number alone."""

    def __init__(self, setting: Setting, n_train: int, eras: list[Era] | None = None) -> None:
        self.setting = setting
        self.n_train = n_train
        self.eras = eras or [Era(setting.models, setting.eval_models)]
        if setting.mask == "exact":
            subset_size(setting.alpha, n_train)

    def index(self, row: int) -> int:
        return mask_index(row, self.eras, self.setting.runs_per_mask)

    def __getitem__(self, row: int) -> NDArray[np.bool_]:
        """The bool mask [N_train] of one row."""
        keys = raw(self.setting.seed, self.index(row), Stream.MASK, self.n_train)
        return mask(keys, self.setting.alpha, self.setting.mask)
