"""The LDS curve on disk, {split}_{pct}pct.curve.json beside the datamodels: for reports and for `plan`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.lasso.datamodels import path_of, places
from datamodels.lasso.evaluation.curve import Curve, Law, Point
from datamodels.train import WorkError, write_file
from datamodels.train.store import BaseStore as Store


def write_curve(store: Store, split: str, found: Curve) -> Path:
    """Write a curve, below --out if that is given; returns its path. Raises WorkError."""
    path = path_of(store, split).with_suffix(".curve.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps({**_made_from(store), **found.to_json()}, indent=1) + "\n").encode())
    except OSError as error:
        raise WorkError(f"cannot write {error.filename}: {error.strerror}") from None
    return path


def read_curve(store: Store, split: str) -> tuple[Curve, bool] | None:
    """The curve below --out or else in the root, and whether it is of today's rows and options; None without one."""
    for path in places(store, split):
        try:
            content = json.loads(path.with_suffix(".curve.json").read_bytes())
            law = Law(**content["law"]) if content["law"] else None
            found = Curve([Point(**point) for point in content["points"]], content["targets"], content["ceiling"], law)
            return found, {key: content[key] for key in ("stamp", "options")} == _made_from(store)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _made_from(store: Store) -> dict[str, Any]:
    return {"stamp": store.row_stamp(np.flatnonzero(store.completed())), "options": asdict(store.setting.fit)}
