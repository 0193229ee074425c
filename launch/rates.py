"""Seconds that a row takes, as measured: by the rows of a store, in a table of benchmarks, or by a probe.

A worker trains one group of rows at a time, on a GPU or on recipe.threads cores. What it trains grows with alpha and
what it evaluates does not, so over alphas on one device seconds are taken to be a line over a row's training images.
"""

import dataclasses
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import launch
from launch.progress import Progress, notice
from launch.stop import Stop
from train.config import Setting, identity
from train.config_file import read_setting
from train.data import Dataset
from train.errors import UserError, WorkError
from train.layout import Layout
from train.store import Store

CHECKOUT = Path(launch.__path__[0]).parent
RESULTS = CHECKOUT / "bench" / "results"


@dataclass(frozen=True)
class Rate:
    """What one row takes one worker."""

    seconds: float
    device: str
    on_gpu: bool
    source: str
    """`store`, `table`, `probe` or `line`."""
    basis: str
    """What it rests on, for people."""


def maker_of(store: Store) -> tuple[str, bool] | None:
    """The device that made most of the rows that are done, and whether it is a GPU; None where no row is done."""
    found: Counter[tuple[str, bool]] = Counter()
    journals, counts = np.unique(store.states.journal[store.completed()], return_counts=True)
    for journal, count in zip(journals.tolist(), counts.tolist(), strict=True):
        found[maker(store, journal)] += count
    return found.most_common(1)[0][0] if found else None


def maker(store: Store, journal: int) -> tuple[str, bool]:
    """The device that the rows of a journal were made on, and whether it is a GPU."""
    made = store.states.readers[journal].provenance
    return str(made.get("device")), str(made.get("on")).startswith("cuda")


def of_store(store: Store, device: str, on_gpu: bool) -> Rate | None:
    """The mean over the rows that a device made, as their records tell."""
    done = store.completed()
    journals = [at for at in np.unique(store.states.journal[done]).tolist() if maker(store, at)[0] == device]
    seconds = store.states.seconds[done & np.isin(store.states.journal, journals)].astype(np.float64)
    return _mean(seconds, device, on_gpu, "store", f"{len(seconds)} rows in {store.layout.data}") if journals else None


def of_tables(setting: Setting, device: str, on_gpu: bool, folder: Path) -> dict[float, Rate]:
    """By alpha, what `bench` measured on a device; of several files the last by name counts.

    Nothing where the setting is not the published one of its data set, which is what they measure. Raises UserError.
    """
    found: dict[float, Rate] = {}
    for path in sorted(folder.glob("*.json")):
        table = _read_table(path)
        if table["device"] == device:
            basis = f"{path} (torch {table['torch']})"
            rows = [row for row in table["rows"] if row["dataset"] == setting.dataset]
            rows = [row for row in rows if row["threads"] in (None, setting.recipe.threads)]
            found |= {row["alpha"]: Rate(row["seconds"], device, on_gpu, "table", basis) for row in rows}
    if found and (key := _departs(setting)):
        notice(f"{folder} has seconds for {setting.dataset} on {device}, but of the published setting: {key} differs")
        return {}
    return found


def table_devices(folder: Path) -> list[str]:
    """The devices that there are tables of. Raises UserError."""
    return sorted({_read_table(path)["device"] for path in folder.glob("*.json")})


def _read_table(path: Path) -> dict[str, Any]:
    """Device, torch, and of each setting whose rows were timed whole: data set, alpha, threads, a worker's seconds."""
    try:
        table = json.loads(path.read_bytes())
        rows = [
            {
                "dataset": row["dataset"],
                "alpha": row["alpha"],
                "threads": row.get("threads"),
                "seconds": row["seconds_per_row"] * row.get("workers", 1),
            }
            for row in table["rows"]
            if row["seconds_per_row"] is not None
        ]
        if not all(row["seconds"] > 0 and 0 < row["alpha"] < 1 for row in rows):
            raise ValueError("seconds or alphas out of range")
        return {"device": str(table["device"]), "torch": str(table["torch"]), "rows": rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a table of benchmarks: {error!r}") from None


def _departs(setting: Setting) -> str | None:
    """The first key in which a setting's training differs from the config of its data set that comes with us."""
    path = CHECKOUT / "configs" / f"{setting.dataset}_50pct.yaml"
    if not path.exists():
        return "dataset"
    ours, theirs = identity(setting.to_dict()), identity(read_setting(path).to_dict())
    keys = [key for key in sorted(ours) if re.match(r"(data|recipe)\.|tta$", key)]
    return next((key for key in keys if ours[key] != theirs.get(key)), None)


def probe(setting: Setting, dataset: Dataset, groups: int) -> Rate:
    """Train some groups in a store that is not kept. The first one warms up, and counts only where it is alone.

    Raises UserError, WorkError, Interrupted.
    """
    from launch.worker import Task, work
    from train.create import create_store
    from train.device import device_name, pick_device

    device, group = pick_device(setting.recipe), setting.recipe.group
    outputs = dataclasses.replace(setting.outputs, preallocate=False)
    trial = dataclasses.replace(setting, models=groups * group, eval_models=0, outputs=outputs)
    with tempfile.TemporaryDirectory(prefix="datamodels-probe-") as folder:
        layout = Layout(Path(folder), trial.dataset, trial.pct)
        store = create_store(layout, trial, dataset, lambda text: None)
        task = Task(folder, trial.to_dict(), (0, trial.rows), str(device))
        with Progress(f"rows of a probe at alpha {trial.alpha:g}", trial.rows) as progress:
            work(task, Stop(), progress)
        store.refresh()
        done = store.completed()
        done[: group * (groups > 1)] = False
        seconds = store.states.seconds[done].astype(np.float64)
    if not len(seconds):
        raise WorkError(f"all rows of the probe at alpha {setting.alpha:g} failed: `train` says why")
    return _mean(
        seconds, device_name(device), device.type == "cuda", "probe", f"{len(seconds)} rows trained to find out"
    )


def _mean(seconds: NDArray[np.float64], device: str, on_gpu: bool, source: str, basis: str) -> Rate:
    mean = float(seconds.mean())
    spread = f"standard deviation {seconds.std() / mean:.0%}" if len(seconds) > 1 else "a single one"
    return Rate(mean, device, on_gpu, source, f"{basis}, {spread}")


def line(setting: Setting, n_train: int, known: dict[float, Rate], alphas: Iterable[float]) -> dict[float, Rate]:
    """The rates of alphas that were not measured, from at least two that were, on the same device."""
    images = {alpha: _images(dataclasses.replace(setting, alpha=alpha), n_train) for alpha in {*known, *alphas}}
    measured = [images[alpha] for alpha in known]
    if len(set(measured)) < 2:
        return {}
    slope, constant = np.polyfit(measured, [rate.seconds for rate in known.values()], 1)
    names, one, found = ", ".join(f"{alpha:g}" for alpha in sorted(known)), next(iter(known.values())), {}
    for alpha in set(alphas) - known.keys():
        seconds, inside = float(constant + slope * images[alpha]), min(measured) <= images[alpha] <= max(measured)
        basis = f"a line through alpha {names}, {'between' if inside else 'beyond'} them"
        if seconds > 0:
            found[alpha] = Rate(seconds, one.device, one.on_gpu, "line", basis)
    return found


def _images(setting: Setting, n_train: int) -> int:
    """Training images that a row sees."""
    subset, recipe = round(setting.alpha * n_train), setting.recipe
    batch = max(1, min(recipe.batch, subset))
    return recipe.epochs * (subset // batch) * batch
