"""Seconds that a row takes, as measured: by the rows of a store, in a table of benchmarks, or by a probe.

They are a device's seconds for one row: of a GPU, with a number of groups in training at once (`streams`), which what
was measured tells and nothing is divided by; of a CPU, of one worker with recipe.threads cores. What is trained grows
with alpha and what is evaluated does not, so over alphas seconds are taken to be a line over a row's training images.
"""

import dataclasses
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.plan.benchmarks import Table, rows_of
from datamodels.launch.progress import Progress
from datamodels.launch.status import done_by
from datamodels.launch.stop import Stop
from datamodels.launch.text import counted
from datamodels.train import Setting, WorkError
from datamodels.train.data import Dataset
from datamodels.train.store import Layout, Store


@dataclass(frozen=True)
class Rate:
    """What one row takes a device."""

    seconds: float
    device: str
    on_gpu: bool
    source: str
    """`store`, `table`, `probe` or `line`."""
    basis: str
    """What it rests on, for people."""
    streams: int = 1
    """Groups of rows that a GPU had in training at once."""


Known = dict[tuple[float, int], Rate]
"""Rates by alpha and streams, of one device."""


def maker_of(store: Store) -> tuple[str, bool] | None:
    """The device that made most of the rows that are done, and whether it is a GPU; None where no row is done."""
    found = done_by(store, maker)
    return max(found, key=found.__getitem__) if found else None


def maker(made: dict[str, Any]) -> tuple[str, bool]:
    """The device that the rows of an attempt were made on, and whether it is a GPU, from what it recorded."""
    return str(made.get("device")), str(made.get("on")).startswith("cuda")


def of_store(store: Store, alpha: float, device: str, on_gpu: bool) -> Known:
    """The means over the rows that a device made, as their records tell."""
    done, journals, found = store.completed(), dict[int, list[int]](), Known()
    for at in np.unique(store.states.journal[done]).tolist():
        made = store.states.readers[at].provenance
        if maker(made)[0] == device:
            journals.setdefault(made.get("streams", 1), []).append(at)
    for streams, of in journals.items():
        seconds, basis = _mean(store, np.flatnonzero(done & np.isin(store.states.journal, of)))
        found[alpha, streams] = Rate(seconds, device, on_gpu, "store", f"{basis}, in {store.layout.data}", streams)
    return found


def of_tables(tables: list[Table], setting: Setting, images: tuple[int, int], device: str) -> Known:
    """What `bench` measured of a setting, at any alpha, on a device; images: of training and test."""
    return {
        key: Rate(row.seconds, device, table.on_gpu, "table", f"{table.path} (torch {table.torch})", row.streams)
        for key, (row, table) in rows_of(tables, setting, images, device).items()
    }


def probe(setting: Setting, dataset: Dataset, groups: int, streams: int) -> Rate:
    """Train some groups, on a GPU that many on each of its streams, in a store that is not kept.

    The first one on each warms up, and counts only where it is alone. Raises UserError, WorkError, Interrupted.
    """
    from datamodels.launch.worker import Task, work
    from datamodels.train.store import create_store
    from datamodels.train.trainer import device_name, on_gpu, pick_device

    device, group = pick_device(setting.recipe), setting.recipe.group
    streams = streams if on_gpu(device) else 1
    outputs = dataclasses.replace(setting.outputs, preallocate=False)
    trial = dataclasses.replace(setting, models=groups * streams * group, eval_models=0, outputs=outputs)
    with tempfile.TemporaryDirectory(prefix="datamodels-probe-") as folder:
        layout = Layout(Path(folder), trial.dataset, trial.pct)
        store = create_store(layout, trial, dataset, lambda text: None)
        task = Task(folder, trial.to_dict(), (0, trial.rows), str(device), streams)
        with Progress(f"rows of a probe at alpha {trial.alpha:g}", trial.rows) as progress:
            work(task, Stop(), progress)
        store.refresh()
        rows = np.flatnonzero(store.completed())
        rows = rows[rows >= group * streams * (groups > 1)]
        if not len(rows):
            raise WorkError(f"all rows of the probe at alpha {setting.alpha:g} failed: `train` says why")
        seconds, basis = _mean(store, rows)
    basis += ", trained to find out" + (", with all that is done for the first time in it" if groups == 1 else "")
    return Rate(seconds, device_name(device), on_gpu(device), "probe", basis, streams)


def _mean(store: Store, rows: NDArray[np.int64]) -> tuple[float, str]:
    """Mean seconds, and what they rest on: a group is timed as a whole, so that its rows share one number."""
    seconds = store.states.seconds[rows].astype(np.float64)
    _, index, sizes = np.unique(rows // store.group, return_inverse=True, return_counts=True)
    groups = np.bincount(index, seconds) / sizes
    basis = counted(len(rows), "row") + (f" in {counted(len(groups), 'group')}" if store.group > 1 else "")
    if len(groups) == 1:
        return float(seconds.mean()), f"{basis}, no spread known"
    return float(seconds.mean()), f"{basis}, standard deviation {groups.std(ddof=1) / seconds.mean():.0%}"


def choose(setting: Setting, n_train: int, known: Known, alphas: Iterable[float], streams: int) -> dict[float, Rate]:
    """By alpha, what was measured with so many streams, or a line through it; else with another number, and said so."""
    chosen: dict[float, Rate] = {}
    for number in sorted({key[1] for key in known}, key=lambda number: (number != streams, number)):
        measured = {alpha: rate for (alpha, of), rate in known.items() if of == number}
        for alpha, rate in (measured | line(setting, n_train, measured, alphas)).items():
            other = f", measured with {counted(number, 'group')} at once, not {streams}"
            basis = rate.basis + (other if rate.on_gpu and number != streams else "")
            chosen.setdefault(alpha, dataclasses.replace(rate, basis=basis))
    return chosen


def line(setting: Setting, n_train: int, known: dict[float, Rate], alphas: Iterable[float]) -> dict[float, Rate]:
    """The rates of alphas that were not measured, from at least two that were, with as many streams."""
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
            found[alpha] = Rate(seconds, one.device, one.on_gpu, "line", basis, one.streams)
    return found


def _images(setting: Setting, n_train: int) -> int:
    """Training images that a row sees."""
    subset, recipe = round(setting.alpha * n_train), setting.recipe
    batch = max(1, min(recipe.batch, subset))
    return recipe.epochs * (subset // batch) * batch
