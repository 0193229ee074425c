"""LDS against the number of models: computed where that is quick, else taken from what `eval --curve` has kept."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.lasso import Curve, Progress, path_of, places
from datamodels.lasso.evaluation import Law, Point, curve
from datamodels.launch.progress import notice
from datamodels.train import UserError, WorkError, write_file
from datamodels.train.store import ReadableStore

_QUICK = 2500
"""Training examples up to which a curve takes a minute at most."""


def growth_of(store: ReadableStore, split: str, progress: Progress) -> Curve | str:
    """The curve, or why there is none; one that is computed is kept, for the next report and for `plan`."""
    found = kept(store, split)
    if found and found[1]:
        return found[0]
    if store.n_train > _QUICK:
        return (
            f"No curve of LDS against the number of models: with {store.n_train:,} training examples it takes as long "
            "as a fit. `datamodels eval CONFIG --curve` computes and keeps it, `datamodels report` then shows it."
        )
    try:
        computed = curve(store, split=split, progress=progress)
    except (UserError, WorkError) as error:  # a point that misses its gap is no reason to show nothing else
        return f"No curve of LDS against the number of models: {error}."
    keep(store, split, computed)
    return computed


def keep(store: ReadableStore, split: str, found: Curve) -> Path:
    """Write a curve beside the datamodels, for reports and `plan`; returns its path, be it written or (told) not."""
    path = path_of(store, split).with_suffix(".curve.json")
    content = {**_basis(store), **found.to_json()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        notice(f"the curve is not kept: cannot write {error.filename}: {error.strerror}")
    return path


def _basis(store: ReadableStore) -> dict[str, Any]:
    """What a curve is made from: one made from anything else is stale."""
    return {"stamp": store.row_stamp(np.flatnonzero(store.completed())), "options": asdict(store.setting.fit)}


def kept(store: ReadableStore, split: str) -> tuple[Curve, bool] | None:
    """The curve that `keep` wrote, below --out or else in the root, and whether it is of today's rows and options."""
    curves = (_read(store, path.with_suffix(".curve.json")) for path in places(store, split))
    return next(filter(None, curves), None)


def _read(store: ReadableStore, path: Path) -> tuple[Curve, bool] | None:
    try:
        content = json.loads(path.read_bytes())
        law = Law(**content["law"]) if content["law"] else None
        found = Curve([Point(**point) for point in content["points"]], content["targets"], content["ceiling"], law)
        return found, {key: content[key] for key in ("stamp", "options")} == _basis(store)
    except (OSError, ValueError, KeyError, TypeError):
        return None
