"""Training here: one worker for each device, in this process where one is enough."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from launch.progress import Progress, notice
from launch.stop import Stop
from launch.worker import Task, work
from train.errors import Interrupted, UserError, WorkError
from train.store import Store

POLL_SECONDS = 0.5


def train_here(store: Store, root: str, rows: range, devices: Sequence[str] | None, workers: int | None) -> int:
    """Train the missing rows on all devices given, or all visible; returns how many were done.

    Raises Interrupted (with the exit code), UserError, WorkError.
    """
    missing = len(store.missing(rows.start, rows.stop))
    if not missing:
        notice(f"nothing to train: rows {rows.start} to {rows.stop - 1} are all done")
        return 0
    places = _places(store, devices, workers, missing)
    task = Task(root, store.setting.to_dict(), (rows.start, rows.stop), places[0])
    stop = Stop()
    with Progress("rows", missing) as progress:
        try:
            if len(places) == 1:
                work(task, stop, progress)
            else:
                _supervise([dataclasses.replace(task, device=place) for place in places], store, rows, stop, progress)
        except Interrupted:
            notice(f"stopped: {progress.done} rows done here, the others remain; the same command goes on")
            raise Interrupted(stop.exit_code) from None
        finally:
            store.refresh()
    return progress.done


def _places(store: Store, devices: Sequence[str] | None, workers: int | None, missing: int) -> list[str]:
    """The device of each worker; no more workers than groups that are missing."""
    recipe = store.setting.recipe
    found = _gpus(devices) if recipe.device == "cuda" else []
    if devices and not found:
        raise UserError(f"--devices is {','.join(devices)}: no such GPU here, or recipe.device is cpu")
    if found:
        places = [place for place in found for _ in range(workers or 1)]
    else:
        if recipe.device == "cuda":
            notice("no GPU here: training on the CPU")
        places = ["cpu"] * (workers or max(1, len(os.sched_getaffinity(0)) // recipe.threads))
    return places[: max(1, -(-missing // store.group))]


def _gpus(devices: Sequence[str] | None) -> list[str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices is None:
        return [f"cuda:{index}" for index in range(count)]
    for device in devices:
        if not device.isdecimal() or int(device) >= count:
            raise UserError(f"--devices names {device!r}, expected numbers of GPUs below {count}, such as 0,1")
    return [f"cuda:{device}" for device in devices]


def _supervise(tasks: Sequence[Task], store: Store, rows: range, stop: Stop, progress: Progress) -> None:
    """Run one process a task until all have ended, passing a signal on to them."""
    processes = [_start(task) for task in tasks]
    done = _count(store, rows)
    told = False
    try:
        while any(process.poll() is None for process in processes):
            time.sleep(POLL_SECONDS)
            if stop() and not told:
                told = True
                _signal(processes)
            store.refresh()
            now = _count(store, rows)
            progress(now - done)
            done = now
    except BaseException:
        for process in processes:
            process.kill()
        raise
    store.refresh()
    progress(_count(store, rows) - done)
    if stop():
        raise Interrupted
    if len(store.missing(rows.start, rows.stop)):
        _raise_first(processes)


def _start(task: Task) -> subprocess.Popen[str]:
    content = json.dumps({**dataclasses.asdict(task), "parent": os.getpid()})
    command = [sys.executable, "-m", "launch.worker", content]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)


def _signal(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)


def _count(store: Store, rows: range) -> int:
    ended = store.completed() | store.failed()
    return int(ended[rows.start : rows.stop].sum())


def _raise_first(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Raise the error of the first worker that told one."""
    for index, process in enumerate(processes):
        assert process.stdout is not None
        told = process.stdout.read().strip()
        if told and process.returncode in (1, 2):
            raise (UserError if process.returncode == 2 else WorkError)(told.splitlines()[-1])
        if process.returncode < 0:
            raise WorkError(f"worker {index} was ended by {signal.Signals(-process.returncode).name}")
        if process.returncode:
            raise WorkError(f"worker {index} ended with exit code {process.returncode}")
