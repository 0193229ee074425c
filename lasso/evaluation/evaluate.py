"""Evaluate datamodels, or any attribution scores, on the evaluation rows of a store: docs/evaluation.md."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from datamodels.lasso.datamodels import Datamodels, find, load, places
from datamodels.lasso.evaluation.result import Evaluation
from datamodels.lasso.evaluation.scores import EvaluationRows, Tile
from datamodels.lasso.fit import is_fresh
from datamodels.lasso.rows import (
    Progress,
    blocks,
    enough_memory,
    estimation_rows,
    read_features,
    silent,
    split_and_output,
    split_name,
    target_count,
)
from datamodels.lasso.scores_file import read_scores
from datamodels.train import UserError, expanded
from datamodels.train.store import BaseStore as Store
from datamodels.train.store import PublishedStore

MARGIN = (
    "correct-class logit minus the largest other logit, of logits averaged over the test-time views (tta), rounded to "
    "float16"
)
_LARGEST = float(np.finfo(np.float32).max)
"""Largest weight: squares of sums of such weights are finite."""


def evaluate(
    store: Store,
    scores: Datamodels | ArrayLike | str | Path | None = None,
    *,
    split: str = "test",
    output: str | None = None,
    weight_units: str | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """The linear datamodeling score (LDS) of datamodels or other scores on the completed evaluation rows.

        dm.evaluate(store)                             # the fitted datamodels
        dm.evaluate(store, scores).lds                 # of another method, [N_train, T]
        dm.evaluate(store, "scores.npy", split="train")

    scores: Datamodels; or an array [N_train, T] (a tensor on the CPU too), larger where a training example raises a
    target's margin more; or a file with one of them, as `read_scores` takes it. Default: the fitted datamodels of the
    split. Arrays have bias 0, so that MSE and R^2 mean little.

    output: as for `fit`.

    weight_units: `mask`, or `standardised` for weights of masks standardised by mean and deviation over the estimation
    rows, as fast_l1 saves them; default what the file says, else `mask`.

    Raises UserError for unfit scores or fewer than three evaluation masks, WorkError for damaged rows.
    """
    split = split_name(store.arrays, split, output)
    given = _as_datamodels(store, split, scores, weight_units)
    with enough_memory(store.n_features):
        rows = EvaluationRows(store, split, progress)
        found = rows.evaluate(tiles(given, rows.width, progress))

    report = given.report or {}
    fitted, here = report.get("rows", {}), {"dataset": store.setting.dataset, "tag": store.setting.file_tag}
    notices = staleness(store, given.path) if given.path in places(store, split) else []
    if (last := fitted.get("last", -1)) >= store.models and {**report, **here} == {**here, **report}:
        notices.append(
            f"{given.path} was fitted on rows up to {last}, evaluation rows from {store.models} on among them"
        )
    origin = {"weights": str(given.path), "weight_units": given.units, "fit_models": fitted.get("used")}
    return dataclasses.replace(found, protocol={**protocol(store, split), **origin}, notices=tuple(notices))


def _as_datamodels(
    store: Store, split: str, scores: Datamodels | ArrayLike | str | Path | None, units: str | None
) -> Datamodels:
    """What `evaluate` was given, in one form. Raises UserError where it does not fit the store."""
    name = Path("scores")
    if scores is None:
        scores = load(find(store, split))
    elif isinstance(scores, str | Path):
        name = expanded(scores, "--weights")
        scores = read_scores(name)
    given = as_datamodels(name, scores, (store.n_features, target_count(store, split)), units)
    if given.units == "standardised" and not {"mean", "deviation"} <= given.arrays.keys():
        rows = estimation_rows(store)
        ones = np.zeros(store.n_features, np.int64)
        for block in blocks(store, rows):
            ones += np.count_nonzero(read_features(store, block), axis=0)
        given.arrays["mean"] = ones / len(rows)
        given.arrays["deviation"] = np.sqrt(ones * (len(rows) - ones)) / len(rows)
    return given


def as_datamodels(
    name: Path, scores: Datamodels | ArrayLike, expected: tuple[int, int], units: str | None
) -> Datamodels:
    """Datamodels or scores [N_train, targets] as datamodels in these units. Raises UserError for another shape."""
    if units not in (None, "mask", "standardised"):
        raise UserError(f"weight_units is {units!r}, expected mask or standardised")
    if not isinstance(scores, Datamodels):
        try:
            values = np.asarray(scores)
        except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a GPU, or with a gradient
            raise UserError(f"{name} cannot be read as an array: {str(error).splitlines()[0]}") from None
        if values.dtype.kind not in "fiub":
            raise UserError(f"{name} holds {values.dtype}, expected real numbers")
        scores = Datamodels(name, values, np.zeros(values.shape[-1] if values.ndim else 0), {})
    if (found := scores.stored_weight.shape) != expected:
        advice = ", of which it is the transpose" if found == expected[::-1] else ""
        raise UserError(f"{scores.path} has shape {found}, expected {expected}: [N_train, targets]{advice}")
    standardised = np.array((units or scores.units) == "standardised")
    return dataclasses.replace(scores, arrays={**scores.arrays, "standardised": standardised})


def tiles(given: Datamodels, width: int, progress: Progress) -> Iterator[Tile]:
    """Consecutive targets with their weights, `width` at a time. Raises UserError for weights that are not finite."""
    targets = given.stored_weight.shape[1]
    for start in range(0, targets, width):
        columns = slice(start, min(start + width, targets))
        weight, bias = given.columns(columns)
        if not all((abs(values) <= _LARGEST).all() for values in (weight, bias)):  # never true of nan
            raise UserError(f"{given.path} holds weights that are not finite, or beyond {_LARGEST:.2g}")
        yield columns, weight, bias
        progress("evaluate", columns.stop, targets)


def staleness(store: Store, path: Path) -> list[str]:
    """A notice where the datamodels in a .pt are not fresh, else none."""
    told = f"{path} was fitted on other rows or with other options than today's: run `datamodels fit`"
    return [] if is_fresh(store, path) else [told]


def protocol(store: Store, split: str) -> dict[str, Any]:
    """The setting and split that figures are of, for JSON; None is what is not known of them."""
    setting = store.setting
    unknown, own = isinstance(store, PublishedStore), setting.trainer is not None
    split, output = split_and_output(split)
    return {
        "dataset": setting.dataset,
        "alpha": setting.alpha,
        "split": split,
        "output": output,
        "margin": None if own or output != "margins" else MARGIN,
        "mask": None if unknown else setting.mask,
        "tta": None if unknown or own else setting.tta,
        "seed": None if unknown else setting.seed,
        "runs_per_mask": setting.runs_per_mask,
    }
