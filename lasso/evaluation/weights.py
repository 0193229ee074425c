"""Weights or attribution scores to evaluate: fitted here, in a file of anybody's, or in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.lasso.datamodels import Datamodels, find, load
from datamodels.lasso.design import Scale
from datamodels.lasso.rows import Progress, blocks, estimation_rows, read_masks, target_count
from datamodels.train import UserError, mapped
from datamodels.train.store import ReadableStore as Store

_TILE_VALUES = 2**23
"""Entries of one tile's largest matrix: 64 MiB as float64."""
_LARGEST = float(np.finfo(np.float32).max)
"""Largest weight: squares of sums of such ones are finite."""


@dataclass(frozen=True)
class Weights:
    name: str
    """What errors call them."""
    weight: NDArray[Any]
    """[N_train, T], in their own units; mapped where it comes from a file"""
    bias: NDArray[Any]
    """[T]"""
    units: str
    """`mask`, or `standardised`"""
    datamodels: Datamodels | None = None
    """Those in the file, where it is a .pt."""

    def tiles(
        self, store: Store, rows: int, progress: Progress
    ) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.float64]]]:
        """Targets, their weights [N_train, t] and biases [t] in mask units; rows: that will be scored at a time.

        Raises UserError for weights that are not finite.
        """
        n_train, targets = self.weight.shape
        scale, width = self._scale(store), max(1, _TILE_VALUES // max(n_train, rows))
        for start in range(0, targets, width):
            columns = slice(start, min(start + width, targets))
            weight = np.ascontiguousarray(self.weight[:, columns], dtype=np.float64)
            bias = self.bias[columns].astype(np.float64)
            if not all((abs(values) <= _LARGEST).all() for values in (weight, bias)):  # never true of nan
                raise UserError(f"{self.name} holds weights that are not finite, or beyond {_LARGEST:.2g}")
            yield columns, *(scale.unscaled(weight, bias) if scale else (weight, bias))
            progress("evaluate", columns.stop, targets)

    def _scale(self, store: Store) -> Scale | None:
        """How the masks of standardised weights are scaled: as the file says, or as over today's estimation rows."""
        if self.units == "mask":
            return None
        if self.datamodels and {"mean", "deviation"} <= self.datamodels.tensors.keys():
            return self.datamodels.scale
        return _column_scale(store)

    def origin(self) -> dict[str, Any]:
        """Where they are from and how many rows they were fitted to, None where that is not known."""
        report = (self.datamodels and self.datamodels.report) or {}
        return {"weights": self.name, "weight_units": self.units, "fit_models": report.get("rows", {}).get("used")}


def weights_of(
    store: Store, split: str, path: str | Path | None, scores: ArrayLike | None, units: str | None
) -> Weights:
    """Scores, or weights in a file, or else those fitted to the split. Raises UserError for unfit ones.

    units: None for what the file says, else `mask`.
    """
    if units not in (None, "mask", "standardised"):
        raise UserError(f"weight_units is {units!r}, expected mask or standardised")
    if scores is not None:
        if path is not None:
            raise UserError("both weights and scores are given, expected one of them")
        found = _of_scores("scores", _as_array(scores), units)
    else:
        found = _of_file(Path(path) if path else find(store, split), units)
    expected = store.n_train, target_count(store, split)
    if found.weight.shape != expected:
        raise UserError(f"{found.name} has shape {found.weight.shape}, expected {expected}: [N_train, targets]")
    return found


def _of_file(path: Path, units: str | None) -> Weights:
    if path.suffix == ".npy":
        return _of_scores(str(path), mapped(path), units)
    found = load(path)
    return Weights(str(path), found.stored_weight.numpy(), found.stored_bias.numpy(), units or found.units, found)


def _of_scores(name: str, scores: NDArray[Any], units: str | None) -> Weights:
    if scores.dtype.kind not in "fiub":
        raise UserError(f"{name} holds {scores.dtype}, expected real numbers")
    return Weights(name, scores, np.zeros(scores.shape[-1] if scores.ndim else 0), units or "mask")


def _as_array(scores: ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(scores)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a GPU, or with a gradient
        raise UserError(f"scores cannot be read as an array: {str(error).splitlines()[0]}") from None


def _column_scale(store: Store) -> Scale:
    """Mean and deviation of the masks over the completed estimation rows."""
    rows = estimation_rows(store)
    ones = np.zeros(store.n_train, np.int64)
    for block in blocks(store, rows):
        ones += np.count_nonzero(read_masks(store, block), axis=0)
    return Scale.of(len(rows), ones)
