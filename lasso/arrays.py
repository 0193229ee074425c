"""Fit datamodels to arrays in memory; no file is read or written."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.lasso.datamodels import Datamodels
from datamodels.lasso.design import divide
from datamodels.lasso.gram import Cross, Gram, MaskBits, Matrices, MemoryCounts, bits_of, has_few_rows, target_batches
from datamodels.lasso.rows import FitRows, Progress, enough_memory, silent
from datamodels.lasso.solver import Solution, solve
from datamodels.train import Eval, Fit, Setting, UserError

Options = TypeVar("Options", Fit, Eval)

_ROWS = 4096
"""Rows that are checked at a time."""


def fit_arrays(masks: ArrayLike, outcomes: ArrayLike, *, progress: Progress = silent, **options: Any) -> Datamodels:
    """Fit datamodels to masks and outcomes of models that were trained elsewhere.

        fitted = dm.fit_arrays(masks, margins, share=0.2)
        print(fitted.weight.shape, fitted.gap.max())

    masks: bool [M, N], True where the row's model was trained on an example. outcomes: real numbers [M, T] of any
    precision, such as margins or losses. options: keys of `fit.*` (docs/format.md). Weights, lambdas and duality gaps
    are those of `fit` for a store of these rows and seed 0.

    Beside the weights, memory holds the masks as bits, and about 12 N^2 bytes where rows outnumber examples (of up
    to 8,192 examples, half of them). Raises UserError for arrays or options that cannot be used, WorkError where a
    target does not converge.
    """
    fit = options_of(Fit, options)
    x, y = checked_arrays(masks, outcomes)
    rows = FitRows.of(Setting(fit=fit), np.arange(len(x)))
    rows.refuse_too_few(f"{len(x)} rows of masks give", fit.share)

    groups, n_train = (~rows.validation, rows.validation), x.shape[1]
    with enough_memory(n_train):
        whole = np.packbits(x, axis=1)
        packed = [whole[group] for group in groups]
        del whole
        matrices, parts = _matrices(packed, n_train), []
        for first, last in target_batches(n_train, 0, y.shape[1]):
            crosses = Cross(n_train, last - first), Cross(n_train, last - first)
            for cross, group, bits in zip(crosses, groups, packed, strict=True):
                cross.add(bits, y[group, first:last])
            parts.append(solve(matrices, *crosses, fit, first, progress))

    arrays = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in dataclasses.fields(Solution)
    }
    weight, scale = arrays.pop("weight").T, matrices.whole_scale
    arrays |= {"mean": scale.mean, "deviation": divide(np.ones_like(scale.inv), scale.inv)}
    arrays["standardised"] = np.array([fit.weight_units == "standardised"])
    return Datamodels(Path("arrays"), weight, arrays["bias"], {"weight": weight, **arrays})


def checked_arrays(masks: ArrayLike, outcomes: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Return masks [M, N] and outcomes [M, T] as arrays. Raises UserError where they cannot be those of M models."""
    x, y = np.asarray(masks), np.asarray(outcomes)
    if x.dtype != bool:
        raise UserError(f"masks has type {x.dtype}, expected bool: masks.astype(bool) if it holds 0 and 1")
    if y.dtype.kind not in "fiub":
        raise UserError(f"outcomes has type {y.dtype}, expected real numbers")
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or 0 in (*x.shape, *y.shape):
        raise UserError(f"masks has shape {x.shape} and outcomes {y.shape}, expected [M, N] and [M, T] of M models")
    for start in range(0, len(x), _ROWS):
        empty = ~x[start : start + _ROWS].any(axis=1)
        if empty.any():
            raise UserError(
                f"row {start + empty.argmax()} of masks is empty, expected examples that a model was trained on"
            )
        broken = ~np.isfinite(y[start : start + _ROWS]).all(axis=1)
        if broken.any():
            raise UserError(f"row {start + broken.argmax()} of outcomes holds a value that is not finite")
    return x, y


def options_of(kind: type[Options], options: dict[str, Any]) -> Options:
    """Return the options of a fit or an evaluation. Raises UserError for an unknown one, or a value of another type."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in ("partial", "max_failed")]
    if unknown := [name for name in options if name not in names]:
        raise UserError(f"{unknown[0]!r} is not an option, expected one of {', '.join(names)}")
    try:
        return kind(**options)
    except TypeError as error:
        raise UserError(f"the options {options} cannot be used: {error}") from None


def _matrices(packed: list[NDArray[np.uint8]], n_train: int) -> Matrices:
    """Return what the solver needs of the masks of training and validation rows, 8 examples to a byte."""
    validation = bits_of(packed[1], n_train)
    sizes = len(packed[0]), len(packed[1])
    if has_few_rows(sum(sizes), n_train):
        return Matrices(MaskBits(bits_of(packed[0], n_train), validation, sizes), validation)
    grams = Gram(n_train), Gram(n_train)
    for gram, masks in zip(grams, packed, strict=True):
        gram.add(masks)
        gram.finish()
    return Matrices(MemoryCounts(*grams), validation)
