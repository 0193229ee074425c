"""What a group of rows does at each step, drawn from the rows' random streams: order, augmentation, learning rates."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Recipe
from datamodels.train.rng import Stream, raw, stream_row


@dataclass(frozen=True)
class Schedule:
    """G rows, S steps, B images a step. A row with fewer steps or a smaller batch than others has lr or weight 0."""

    order_GSB: NDArray[np.int64]
    """Training examples."""
    draws_GSB: NDArray[np.int64]
    """64 random bits an image, for its augmentation."""
    lr_GS: NDArray[np.float32]
    weight_GB: NDArray[np.float32]
    """1/batch for the images of a row's batch, so that losses add up to the mean."""

    @property
    def steps(self) -> int:
        return self.order_GSB.shape[1]


def draw_schedule(
    recipe: Recipe,
    seed: int,
    rows: range,
    subsets: list[NDArray[np.int64]],
    batch: int,
    fixed: Collection[str] = (),
) -> Schedule:
    """The schedule of a group; `batch` is the largest batch that any row of the setting has.

    subsets: the training examples of each row, ascending and not empty. fixed: as in the setting.
    """
    batches = [min(recipe.batch, len(subset)) for subset in subsets]
    per_epoch = [recipe.steps_per_epoch or len(subset) // size for subset, size in zip(subsets, batches, strict=True)]
    steps = recipe.epochs * max(per_epoch)
    order = np.zeros((len(rows), steps, batch), np.int64)
    draws = np.zeros((len(rows), steps, batch), np.int64)
    lr = np.zeros((len(rows), steps), np.float32)
    weight = np.zeros((len(rows), batch), np.float32)
    for g, (row, subset) in enumerate(zip(rows, subsets, strict=True)):
        count, size = recipe.epochs * per_epoch[g], batches[g]
        ordered, augmented = (stream_row(fixed, stream, row) for stream in (Stream.ORDER, Stream.AUGMENTATION))
        order[g, :count, :size] = subset[_order(seed, ordered, len(subset), recipe.epochs, per_epoch[g], size)]
        words = raw(seed, augmented, Stream.AUGMENTATION, count * size)
        draws[g, :count, :size] = words.view(np.int64).reshape(count, size)
        lr[g, :count] = triangle(recipe, per_epoch[g])
        weight[g, :size] = 1 / size
    return Schedule(order, draws, lr, weight)


def _order(seed: int, row: int, k: int, epochs: int, per_epoch: int, batch: int) -> NDArray[np.int64]:
    """Positions [steps, batch] in the subset: a fresh permutation every epoch, what its steps do not take dropped.

    Where the steps of an epoch take more than the subset, one permutation follows the other all through the training.
    """
    taken = per_epoch * batch
    count = max(epochs, -(-epochs * taken // k))
    keys = raw(seed, row, Stream.ORDER, count * k).reshape(count, k)
    permutations = np.argsort(keys, axis=1, kind="stable")[:, :taken]
    return permutations.ravel()[: epochs * taken].reshape(epochs * per_epoch, batch)


def triangle(recipe: Recipe, per_epoch: int) -> NDArray[np.float32]:
    """Learning rate of each step: straight up from 0 to its peak at peak_epoch, straight down to 0 at the end."""
    total = recipe.epochs * per_epoch
    corners = [0, recipe.peak_epoch * per_epoch, total]
    return (recipe.lr * np.interp(np.arange(total), corners, [0, 1, 0])).astype(np.float32)


def most_steps(recipe: Recipe, largest: int) -> int:
    """Steps that a row takes at most whose subset has up to `largest` examples."""
    return recipe.epochs * (recipe.steps_per_epoch or max(1, largest // recipe.batch))
