"""How far a store is: counts, rate, time left, reasons of failure."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.progress import duration
from datamodels.launch.text import counted
from datamodels.train.store import ReadableStore, Store

RECENT_SECONDS = 600.0

Maker = TypeVar("Maker")


def summary(store: ReadableStore) -> dict[str, Any]:
    """The status of a store as plain values; the keys of `status --json`."""
    done, failed = int(store.completed().sum()), int(store.failed().sum())
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
    if isinstance(store, Store):
        recent, hours = _recent(store)
        found["rows_per_hour"] = round(int(recent.sum()) / hours, 1) if hours else None
        if found["rows_per_hour"] and _active(store):
            found["eta_seconds"] = round(found["missing"] / found["rows_per_hour"] * 3600)
        found["reasons"] = _reasons(store)
        found["devices"] = _devices(store)
        for key, maker in (("hosts", _host), ("jobs", _job)):
            found[key] = done_by(store, maker)
            counts = done_by(store, maker, recent) if hours else {}
            found[f"{key}_per_hour"] = {name: round(count / hours, 1) for name, count in counts.items()}
    return found


def report_path(store: ReadableStore, split: str) -> Path:
    """Where a setting's report lies."""
    return store.derived / f"report_{split}_{store.setting.pct}pct.html"


def _recent(store: Store) -> tuple[NDArray[np.bool_], float]:
    """The rows [M] done in the last ten minutes of work, and the hours since the first group of them was begun."""
    done = store.completed()
    if not done.any():
        return done, 0.0
    times = store.states.time
    last = times[done].max()
    recent = done & (times > last - RECENT_SECONDS)
    return recent, float(max(last - begun(store, recent).min(), 1e-3)) / 3600


def begun(store: Store, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """When the groups of some rows that are done were begun, as times of the clock: groups at once share seconds."""
    states = store.states
    at_once = np.array([reader.provenance.get("streams", 1) for reader in states.readers])[states.journal[rows]]
    return states.time[rows] - states.seconds[rows].astype(np.float64) * store.group * at_once


def _active(store: Store) -> bool:
    return time.time() - float(store.states.time.max()) < RECENT_SECONDS


def _reasons(store: Store) -> dict[str, int]:
    return dict(Counter(store.states.reason(int(row)) for row in np.flatnonzero(store.failed())))


def _devices(store: Store) -> dict[str, int]:
    """Done rows by what made them: device, precision, threads, package versions and the trainer's own."""

    def environment(made: dict[str, Any]) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())
        own = f"arithmetic {made.get('arithmetic')}"
        threads = counted(int(made.get("threads", 0)), "thread")
        return f"{made.get('device')}, {made.get('precision')}, {threads}, {own}, {versions}"

    return done_by(store, environment)


def _host(made: dict[str, Any]) -> str:
    return str(made.get("host"))


def _job(made: dict[str, Any]) -> str:
    """The SLURM task of an attempt, as squeue names it."""
    return "_".join(str(made[key]) for key in ("job", "task") if made.get(key)) or "local"


def device_of(made: dict[str, Any]) -> tuple[str, bool]:
    """Name of the device that an attempt trained on, and whether it is a GPU, by the attempt's record."""
    return str(made.get("device")), str(made.get("on")).startswith("cuda")


def done_by(
    store: Store, maker: Callable[[dict[str, Any]], Maker], rows: NDArray[np.bool_] | None = None
) -> dict[Maker, int]:
    """Done rows, or some of them, by something that their attempt recorded."""
    journals, counts = np.unique(store.states.journal[store.completed() if rows is None else rows], return_counts=True)
    found: Counter[Maker] = Counter()
    for journal, count in zip(journals, counts, strict=True):
        found[maker(store.states.readers[journal].provenance)] += int(count)
    return dict(found)


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
