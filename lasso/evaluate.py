"""Held-out quality of datamodels, or of any attribution scores, on the evaluation rows.

LDS: mean over targets of the Spearman correlation, over masks, between predicted and actual margins (Park et al.,
"TRAK", ICML 2023). Runs of one mask are averaged first. A correlation that is undefined (one side is constant) counts
as 0. MSE and R^2 are per row, runs not averaged.

Ceiling: what perfect predictions could reach. If two runs of one mask correlate by rho, the mean of R runs has
reliability R rho / (1 + (R - 1) rho) (Spearman 1910, Brown 1910), and the square root of a variable's reliability is
the largest correlation that anything else can have with it.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lasso import files
from lasso.design import Scale
from lasso.fit import is_current
from lasso.rows import (
    Progress,
    blocks,
    check_rows,
    enough_memory,
    estimation_rows,
    evaluation_rows,
    margin_array,
    read_margins,
    read_masks,
    silent,
    target_count,
)
from train.errors import UserError
from train.store import ReadableStore as Store

Columns = slice | NDArray[np.int64]
LEAST_MASKS = 3
"""Evaluation masks that a rank correlation needs."""
_TILE_VALUES = 2**23
"""Entries of one tile's largest matrix: 64 MiB as float64."""
_SPARSE = 0.05
"""Share of nonzero weights below which they are multiplied one by one."""


@dataclass(frozen=True)
class Evaluation:
    lds: float
    """Mean over targets of the Spearman correlation between predicted and actual margins."""
    undefined: int
    """Targets without a defined correlation, counted as 0 in the mean."""
    mse: float
    """Mean squared error over evaluation rows and targets, in squared margins."""
    r2: float
    """Mean over targets of 1 - squared error / squared deviation from the evaluation rows' mean (0 without any)."""
    targets: int
    models: int
    """Evaluation rows used."""
    masks: int
    """Distinct masks among them."""
    ceiling: float | None
    """Mean over targets of the LDS of perfect predictions; None unless several runs share a mask."""
    target_lds: NDArray[np.float64]
    """[T]: 0 where undefined"""
    target_mse: NDArray[np.float64]
    target_r2: NDArray[np.float64]
    target_ceiling: NDArray[np.float64] | None
    notices: tuple[str, ...] = ()
    """What somebody who reads the figures should know about the weights, a sentence each."""

    def to_json(self, per_target: bool = False) -> dict[str, Any]:
        """The summary; `ceiling` only where there is one.

        per_target: with lists per target, `per_target: {lds, mse, r2, ceiling}`.
        """
        values = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "notices"
        }
        known = {key: value for key, value in values.items() if value is not None}
        summary = {key: value for key, value in known.items() if not key.startswith("target_")}
        if per_target:
            arrays = known.keys() - summary.keys()
            summary["per_target"] = {key.removeprefix("target_"): known[key].tolist() for key in sorted(arrays)}
        return summary


def evaluate(
    store: Store,
    split: str = "test",
    weights: Path | None = None,
    progress: Progress = silent,
    weight_units: str | None = None,
) -> Evaluation:
    """Score the split's fitted datamodels, or other weights, on the completed evaluation rows.

    weights: a .pt in the format of the contract, or a .npy [N_train, T] of any method's attribution scores (bias 0;
    MSE and R^2 then mean little). weight_units: `mask`, or `standardised` for weights of masks standardised by mean and
    deviation over the estimation rows, as fast_l1 saves them; default what the report beside the weights says, else
    `mask`. Raises UserError for unfit weights or fewer than three evaluation masks, WorkError
    for damaged rows.
    """
    targets = target_count(store, split)
    path = weights or files.path_of(store, split)
    if weights is None and not path.exists():
        raise UserError(f"{path} does not exist: run `datamodels fit`")
    weight, bias = _read_weights(path, (store.n_train, targets))
    units = weight_units or (files.read_report(path) or {}).get("weight_units", "mask")
    if units not in ("mask", "standardised"):
        raise UserError(f"weight_units is {units!r}, expected mask or standardised")
    with enough_memory(store.n_train):
        holdout = Holdout(store, split, progress)
        scale = column_scale(store) if units == "standardised" else None
        scores = Scores.join(list(_score_tiles(holdout, path, weight, bias, scale, progress)))
    return dataclasses.replace(summarise(holdout, scores), notices=_notices(store, split, path))


def _score_tiles(
    holdout: "Holdout", path: Path, weight: Any, bias: NDArray[Any], scale: Scale | None, progress: Progress
) -> Iterator["Scores"]:
    """Scores of tile after tile of targets; scale: that of standardised weights."""
    n_train, targets = weight.shape
    for columns in _tiles(targets, max(n_train, len(holdout.rows))):
        tile = np.ascontiguousarray(weight[:, columns], dtype=np.float64)
        offset = bias[columns].astype(np.float64)
        if not (np.isfinite(tile).all() and np.isfinite(offset).all()):
            raise UserError(f"{path} holds weights that are not finite")
        if scale is not None:
            tile *= scale.inv[:, None]
            offset = offset - scale.mean @ tile
        yield holdout.score(columns, tile, offset)
        progress("evaluate", columns.stop, targets)


def _notices(store: Store, split: str, path: Path) -> tuple[str, ...]:
    """What speaks against the figures of weights: rows or options that have changed, rows that were fitted on."""
    found, report = [], files.read_report(path)
    if path == files.path_of(store, split) and not is_current(store, split):
        found.append(f"{path} was fitted on other rows or with other options than today's: run `datamodels fit`")
    last = (report or {}).get("rows", {}).get("last", -1)
    if last >= store.models:
        found.append(f"{path} was fitted on rows up to {last}, evaluation rows from {store.models} on among them")
    return tuple(found)


def column_scale(store: Store) -> Scale:
    """Mean and deviation of the masks over the completed estimation rows."""
    rows = estimation_rows(store)
    ones = np.zeros(store.n_train, np.int64)
    for block in blocks(store, rows):
        ones += np.count_nonzero(read_masks(store, block), axis=0)
    return Scale.of(len(rows), ones)


def _read_weights(path: Path, shape: tuple[int, int]) -> tuple[Any, NDArray[Any]]:
    """weight [N_train, T], mapped, and bias [T]."""
    if path.suffix == ".npy":
        try:
            weight = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read as .npy: {error}") from None
        if weight.dtype.kind not in "fiub":
            raise UserError(f"{path} holds {weight.dtype}, expected real numbers")
        bias = np.zeros(weight.shape[-1] if weight.ndim else 0)
    else:
        datamodels = files.load(path)
        weight, bias = datamodels.weight.numpy(), datamodels.bias.numpy()
    if weight.shape != shape:
        raise UserError(f"{path} has shape {weight.shape}, expected {shape}: [N_train, targets]")
    return weight, bias


def _tiles(targets: int, rows: int) -> Iterator[slice]:
    width = max(1, _TILE_VALUES // rows)
    for start in range(0, targets, width):
        yield slice(start, min(start + width, targets))


def _product_with(weight: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """masks -> masks @ weight, which skips weights of 0 where most of them are."""
    if np.count_nonzero(weight) > _SPARSE * weight.size:
        return lambda masks: masks @ weight
    from scipy.sparse import csr_array

    sparse = csr_array(weight.T)
    return lambda masks: (sparse @ np.ascontiguousarray(masks.T)).T


@dataclass(frozen=True)
class Scores:
    """Per target [T]: correlation (nan where undefined), squared error, R^2, ceiling."""

    correlation: NDArray[np.float64]
    mse: NDArray[np.float64]
    r2: NDArray[np.float64]
    ceiling: NDArray[np.float64] | None

    @classmethod
    def join(cls, parts: list["Scores"]) -> "Scores":
        ceilings = [part.ceiling for part in parts if part.ceiling is not None]
        return cls(
            np.concatenate([part.correlation for part in parts]),
            np.concatenate([part.mse for part in parts]),
            np.concatenate([part.r2 for part in parts]),
            np.concatenate(ceilings) if ceilings else None,
        )


class Holdout:
    """The completed evaluation rows of a store, in groups that share a mask."""

    def __init__(self, store: Store, split: str, progress: Progress = silent) -> None:
        self.store, self.split = store, split
        store.check_files()
        self.rows = evaluation_rows(store)
        index = [store.mask_index(int(row)) for row in self.rows]
        _, self.first, self.group = np.unique(index, return_index=True, return_inverse=True)
        self.runs = np.bincount(self.group)
        self.by_group = np.argsort(self.group, kind="stable")
        if len(self.runs) < LEAST_MASKS:
            raise UserError(
                f"the evaluation rows have {len(self.runs)} masks, expected at least {LEAST_MASKS}: raise eval_models"
            )
        check_rows(store, ("train_masks", margin_array(store, split)), self.rows, progress)

    def score(self, columns: Columns, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> Scores:
        """Score weight [N_train, t] and bias [t] on the targets at `columns`."""
        margins = self._margins(columns)
        predicted = self._predict(weight) + bias
        sums = np.add.reduceat(margins[self.by_group], np.cumsum(self.runs) - self.runs, axis=0)
        squares = (margins - predicted[self.group]) ** 2
        spread = ((margins - margins.mean(axis=0)) ** 2).sum(axis=0)
        r2 = 1 - np.divide(squares.sum(axis=0), spread, out=np.ones_like(spread), where=spread > 0)
        return Scores(spearman(predicted, sums / self.runs[:, None]), squares.mean(axis=0), r2, self._ceiling(margins))

    def _margins(self, columns: Columns) -> NDArray[np.float64]:
        """[rows, t]"""
        parts = [read_margins(self.store, self.split, block, columns, True) for block in blocks(self.store, self.rows)]
        return np.concatenate(parts)

    def _predict(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """mask @ weight for one row of every group: [masks, t]."""
        order = np.argsort(self.first)
        product = _product_with(weight)
        parts = [
            product(read_masks(self.store, block, True).astype(np.float64))
            for block in blocks(self.store, self.rows[self.first[order]])
        ]
        predicted = np.empty((len(order), weight.shape[1]))
        predicted[order] = np.concatenate(parts)
        return predicted

    def _ceiling(self, margins: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Per target [t], from the masks that have all their runs; None where fewer than three have several."""
        runs = self.store.setting.runs_per_mask
        whole = np.flatnonzero(self.runs == runs)
        if runs < 2 or len(whole) < 3:
            return None
        members = np.stack([np.flatnonzero(self.group == group) for group in whole])
        between = [
            np.nan_to_num(spearman(margins[members[:, a]], margins[members[:, b]]))
            for a, b in combinations(range(runs), 2)
        ]
        rho = np.clip(np.mean(between, axis=0), 0.0, 1.0)
        return np.sqrt(runs * rho / (1 + (runs - 1) * rho))


def summarise(holdout: Holdout, scores: Scores) -> Evaluation:
    lds = np.nan_to_num(scores.correlation)
    return Evaluation(
        lds=float(lds.mean()),
        undefined=int(np.isnan(scores.correlation).sum()),
        mse=float(scores.mse.mean()),
        r2=float(scores.r2.mean()),
        targets=len(lds),
        models=len(holdout.rows),
        masks=len(holdout.runs),
        ceiling=None if scores.ceiling is None else float(scores.ceiling.mean()),
        target_lds=lds,
        target_mse=scores.mse,
        target_r2=scores.r2,
        target_ceiling=scores.ceiling,
    )


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rank correlation of every column of a with that of b, [n, t] each: [t], nan where one is constant."""
    ranks_a, ranks_b = (ranks(side) - (len(side) + 1) / 2 for side in (a, b))
    scale = np.sqrt((ranks_a**2).sum(axis=0) * (ranks_b**2).sum(axis=0))
    product = (ranks_a * ranks_b).sum(axis=0)
    return np.divide(product, scale, out=np.full_like(product, np.nan), where=scale > 0)


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks 1 .. n down each column of values [n, t]; equal values share the mean of theirs."""
    order = np.argsort(values, axis=0)
    ascending = np.take_along_axis(values, order, axis=0)
    place = np.arange(1.0, len(values) + 1)[:, None]
    differs = np.ones((1, values.shape[1]), bool)
    step = ascending[1:] != ascending[:-1]
    first = np.maximum.accumulate(np.where(np.vstack([differs, step]), place, 0.0), axis=0)
    last = np.minimum.accumulate(np.where(np.vstack([step, differs]), place, np.inf)[::-1], axis=0)[::-1]
    result = np.empty_like(ascending)
    np.put_along_axis(result, order, (first + last) / 2, axis=0)
    return result
