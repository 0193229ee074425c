"""How far a store is: counts, rate, time left, reasons of failure."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.progress import counted, duration
from datamodels.train import WorkError
from datamodels.train.store import BaseStore, PublishedStore, Store

RECENT_SECONDS = 600.0
"""Rates are those of the rows done in the last ten minutes of work."""

Maker = TypeVar("Maker")


def summary(store: BaseStore) -> dict[str, Any]:
    """The status of a store as plain values; the keys of `status --json`."""
    completed = store.completed()
    done, failed = int(completed.sum()), int(store.failed().sum())
    found: dict[str, Any] = {
        "done": done,
        "missing": store.rows - done - failed,
        "failed": failed,
        "total": store.rows,
        "rows_per_hour": None,
        "eta_seconds": None,
        "bytes": sum(array.bytes for array in store.arrays.values()),
        "folder": str(store.layout.data),
    }
    if isinstance(store, PublishedStore):
        found["reasons"] = store.reasons()
    if not isinstance(store, Store):
        return found

    recent, hours = completed, 0.0
    if done:
        last = float(store.states.time[completed].max())
        recent = completed & (store.states.time > last - RECENT_SECONDS)
        hours = max(last - float(begun(store, recent).min()), 1e-3) / 3600
        found["rows_per_hour"] = round(int(recent.sum()) / hours, 1)
        if found["rows_per_hour"] and time.time() - float(store.states.time.max()) < RECENT_SECONDS:
            found["eta_seconds"] = round(found["missing"] / found["rows_per_hour"] * 3600)

    found["reasons"] = dict(Counter(store.states.reason(int(row)) for row in np.flatnonzero(store.failed())))
    found["devices"] = done_by(store, _environment)
    for key, maker in (("hosts", lambda made: str(made.get("host"))), ("jobs", _job)):
        found[key] = done_by(store, maker)
        counts = done_by(store, maker, recent) if hours else {}
        found[f"{key}_per_hour"] = {name: round(count / hours, 1) for name, count in counts.items()}
    return found


def begun(store: Store, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """When the groups of done rows were begun, as seconds since the epoch; groups that ran concurrently share seconds.

    rows: bool [M].
    """
    states = store.states
    concurrent = np.array([concurrent_groups(reader.provenance) for reader in states.readers])[states.journal[rows]]
    return states.time[rows] - states.seconds[rows].astype(np.float64) * store.group * concurrent


def concurrent_groups(provenance: dict[str, Any]) -> int:
    """Groups of rows that were in training at once on the device; older stores call the key `streams`."""
    return int(provenance.get("concurrent_groups", provenance.get("streams", 1)))


def device_of(made: dict[str, Any]) -> tuple[str, bool]:
    """Name of the device that an attempt trained on, and whether it is a GPU, by the attempt's record."""
    return str(made.get("device")), str(made.get("on")).startswith("cuda")


def done_by(
    store: Store, maker: Callable[[dict[str, Any]], Maker], rows: NDArray[np.bool_] | None = None
) -> dict[Maker, int]:
    """Counts of the done rows, or of some of them, by something that their journal's provenance says."""
    journals, counts = np.unique(store.states.journal[store.completed() if rows is None else rows], return_counts=True)
    found: Counter[Maker] = Counter()
    for journal, count in zip(journals, counts, strict=True):
        found[maker(store.states.readers[journal].provenance)] += int(count)
    return dict(found)


def _environment(made: dict[str, Any]) -> str:
    """Device, precision, threads, package versions and the version of the trainer's arithmetic."""
    threads = counted(int(made.get("threads", 0)), "thread")
    found = [str(made.get("device")), *(made[key] for key in ("precision", "kernels") if key in made), threads]
    found += [f"arithmetic {made['arithmetic']}"] if "arithmetic" in made else []
    return ", ".join([*found, *(f"{name} {version}" for name, version in made.get("versions", {}).items())])


def _job(made: dict[str, Any]) -> str:
    """The SLURM task, as squeue names it."""
    return "_".join(str(made[key]) for key in ("job", "task") if made.get(key)) or "local"


def refuse_failures(store: Store, retry: str) -> None:
    """Raises WorkError where more rows have failed for good than may; retry: the command that retries them."""
    failed, allowed = int(store.failed().sum()), store.setting.fit.max_failed * store.rows
    if failed > allowed:
        raise WorkError(
            f"{failed} of {store.rows} rows failed, at most {allowed:g} may (fit.max_failed): see `status`, and "
            f"`{retry} --retry-failed` once the cause is fixed"
        )


def report_path(store: BaseStore, split: str) -> Path:
    """Where a setting's report lies."""
    return store.derived / f"report_{split}_{store.setting.file_tag}.html"


def describe(found: dict[str, Any]) -> str:
    """The status for people."""
    lines = [
        f"{found['folder']}: {found['done']} of {found['total']} rows done, {found['missing']} missing, "
        f"{found['failed']} failed, {found['bytes'] / 1e9:.3g} GB"
    ]
    if found["rows_per_hour"]:
        left = f", about {duration(found['eta_seconds'])} left" if found["eta_seconds"] else ""
        lines.append(f"{found['rows_per_hour']:,.0f} rows an hour{left}")
    lines += [f"failed, {reason}: {count}" for reason, count in found.get("reasons", {}).items()]

    devices = found.get("devices", {})
    if len(devices) > 1:
        lines.append("this store mixes devices or versions:")
    lines += [f"made on {device}: {count}" for device, count in devices.items()]

    hosts = found.get("hosts", {})
    if len(hosts) > 1:
        rates = found.get("hosts_per_hour", {})
        shown = [f"{host} {count} rows, {rates.get(host, 0):,.0f} an hour" for host, count in sorted(hosts.items())]
        lines.append("by host: " + "; ".join(shown))
    return "\n".join(lines)
