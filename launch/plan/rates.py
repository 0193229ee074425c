"""Seconds that one row takes: the mean over rows of a store that are done, or over rows that a probe trains.

They are seconds of one GPU that trains a number of groups at a time, or of one CPU worker, which keeps recipe.threads
cores busy. Nothing is extrapolated to another alpha, device or number of groups.
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.progress import Progress, counted
from datamodels.launch.status import concurrent_groups, device_of, done_by
from datamodels.launch.stop import Stop
from datamodels.launch.worker import Task, work
from datamodels.train import Declared, Setting, WorkError
from datamodels.train.store import Layout, Store, create_store

Device = tuple[str, bool]
"""Name of a device, and whether it is a GPU."""


@dataclass(frozen=True)
class Rate:
    """Mean seconds of one row on one device."""

    seconds: float
    device: str
    on_gpu: bool
    source: str
    """`store` or `probe`."""
    basis: str
    """How many rows it is the mean of, with their spread, for people."""
    concurrent_groups: int
    """Groups of rows in training at a time on the GPU; 1 on a CPU."""


def main_device(store: Store) -> Device:
    """The device that trained most of the rows that are done; some must be."""
    rows = done_by(store, device_of)
    return max(rows, key=rows.__getitem__)


def rate_of(store: Store, device: Device, workers: int) -> Rate | None:
    """The mean over rows of the device, if any, that trained `workers` groups at a time if there are such rows."""
    makers = done_by(store, lambda made: (device_of(made), concurrent_groups(made)))
    rows = {at_once: count for (made_on, at_once), count in makers.items() if made_on == device}
    if not rows:
        return None
    at_once = workers if workers in rows else max(rows, key=rows.__getitem__)
    made = [reader.provenance for reader in store.states.readers]
    journals = [at for at, one in enumerate(made) if (device_of(one), concurrent_groups(one)) == (device, at_once)]
    seconds, basis = _mean(store, np.flatnonzero(store.completed() & np.isin(store.states.journal, journals)))
    basis += f", in {store.layout.data}"
    if device[1] and at_once != workers:
        basis += f", measured with {counted(at_once, 'group')} at a time, not {workers}"
    return Rate(seconds, *device, "store", basis, at_once)


def probe(setting: Setting, declared: Declared, groups: int, workers: int) -> Rate:
    """Train some groups of rows in a temporary store: `groups` of them, on a GPU for each of its workers.

    The first group of each worker warms up and is counted only where it is the only one. Raises UserError, WorkError,
    Interrupted.
    """
    from datamodels.train.trainer import device_name, on_gpu, pick_device

    device, group = pick_device(setting.recipe), setting.recipe.group
    at_once = workers if on_gpu(device) else 1
    outputs = dataclasses.replace(setting.outputs, preallocate=False)
    rows = groups * at_once * group
    trial = dataclasses.replace(setting, outputs=outputs)
    if not setting.own_masks:  # of which there is one for each row
        trial = dataclasses.replace(trial, models=rows, eval_models=0)
    with tempfile.TemporaryDirectory(prefix="datamodels-probe-") as folder:
        store = create_store(Layout(Path(folder), trial.dataset, trial.file_tag), trial, declared, lambda text: None)
        task = Task(folder, trial.to_dict(), (0, rows), str(device), at_once)
        with Progress(f"rows of a probe, {trial.described}", rows) as progress:
            work(task, Stop(), progress)
        store.refresh()
        done = np.flatnonzero(store.completed())
        done = done[done >= group * at_once * (groups > 1)]
        if not len(done):
            raise WorkError(f"all rows of the probe, {setting.described}, failed: run `train` to see the reason")
        seconds, basis = _mean(store, done)
    basis += ", trained by --probe" + (", warm-up included" if groups == 1 else "")
    return Rate(seconds, device_name(device), on_gpu(device), "probe", basis, at_once)


def _mean(store: Store, rows: NDArray[np.int64]) -> tuple[float, str]:
    """Mean seconds of the rows, and their number and spread. The rows of a group share one measured number."""
    seconds = store.states.seconds[rows].astype(np.float64)
    _, index, sizes = np.unique(rows // store.group, return_inverse=True, return_counts=True)
    groups = np.bincount(index, seconds) / sizes
    basis = counted(len(rows), "row") + (f" in {counted(len(groups), 'group')}" if store.group > 1 else "")
    if len(groups) == 1:
        return float(seconds.mean()), f"{basis}, no spread known"
    return float(seconds.mean()), f"{basis}, standard deviation {groups.std(ddof=1) / seconds.mean():.0%}"
