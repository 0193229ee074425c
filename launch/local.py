"""Training here: one worker for each device, in this process where one is enough."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import datamodels
from datamodels.launch.progress import Progress, notice
from datamodels.launch.stop import EXIT_INTERRUPTED, Stop
from datamodels.launch.worker import Task, work
from datamodels.train import Interrupted, UserError, WorkError
from datamodels.train.store import Store

POLL_SECONDS = 0.5

KILL_SECONDS = 8.0
"""Seconds after a signal at which workers that are still there are killed."""


def train_here(
    store: Store, root: str, rows: range, devices: Sequence[str] | None, workers: int | None, stop: Stop
) -> int:
    """Train the missing rows on all devices given, or all visible; returns how many were done.

    Raises Interrupted (with the exit code), UserError, WorkError.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}, expected at least 1")
    missing = len(store.missing(rows.start, rows.stop))
    if not missing:
        notice(f"nothing to train: rows {rows.start} to {rows.stop - 1} are all done")
        return 0
    places = _places(store, devices, workers, missing)
    streams = (workers or 1) if places[0] != "cpu" else 1
    task = Task(root, store.setting.to_dict(), (rows.start, rows.stop), places[0], streams)
    with Progress("rows", missing) as progress:
        try:
            if len(places) == 1:
                work(task, stop, progress)
            else:
                _supervise([dataclasses.replace(task, device=place) for place in places], store, rows, stop, progress)
        except Interrupted as error:
            notice(f"stopped: {progress.done} rows done here, the others remain; the same command goes on")
            raise Interrupted(*error.args or [stop.exit_code]) from None
        finally:
            store.refresh()
    return progress.done


def _places(store: Store, devices: Sequence[str] | None, workers: int | None, missing: int) -> list[str]:
    """The device of each process: one a GPU, or several on a CPU; no more than groups that are missing."""
    recipe = store.setting.recipe
    found = _gpus(devices) if recipe.device == "cuda" else []
    if devices and not found:
        raise UserError(f"--devices is {','.join(devices)}: no such GPU here, or recipe.device is cpu")
    if found:
        places = found
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
        if not (device.isascii() and device.isdecimal()) or int(device) >= count:
            raise UserError(f"--devices names {device!r}, expected numbers of GPUs below {count}, such as 0,1")
    return [f"cuda:{device}" for device in devices]


def _supervise(tasks: Sequence[Task], store: Store, rows: range, stop: Stop, progress: Progress) -> None:
    """Run one process a task until all have ended, passing a signal on to them."""
    with stop:
        workers = [_Worker(index, task) for index, task in enumerate(tasks)]
        try:
            _watch(workers, store, rows, stop, progress)
        finally:
            for worker in workers:
                worker.kill()
    if len(store.missing(rows.start, rows.stop)):
        raise Interrupted(stop.exit_code) if stop() else _failure(workers)


def _watch(workers: Sequence["_Worker"], store: Store, rows: range, stop: Stop, progress: Progress) -> None:
    done = _count(store, rows)
    while alive := [worker for worker in workers if worker.runs()]:
        time.sleep(POLL_SECONDS)
        for worker in alive if stop() else ():
            worker.ask(by_force=stop.seconds > KILL_SECONDS)
        store.refresh()
        now = _count(store, rows)
        progress(now - done)
        done = now
    store.refresh()
    progress(_count(store, rows) - done)


class _Worker:
    """A process of its own for a task. Its session is its own too: Ctrl-C reaches it through its launcher alone."""

    def __init__(self, index: int, task: Task) -> None:
        self.name = f"worker {index} on {task.device}"
        content = json.dumps({**dataclasses.asdict(task), "parent": os.getpid()})
        # -P: no module of the folder that the user is in takes the place of one of ours.
        command = [sys.executable, "-P", "-m", "datamodels.launch.worker", content]
        paths = [str(Path(datamodels.__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self.process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._asked = self._ended = False
        self.told = ""
        """The error that it ended with."""

    def runs(self) -> bool:
        """Whether it still runs; an end that nobody asked for is told."""
        if not self._ended and self.process.poll() is not None:
            self._ended = True
            self.told = (self.process.communicate()[0].strip().splitlines() or [""])[-1]
            if self.process.returncode and not self._asked:
                notice(f"{self.name} {self.end}{': ' + self.told if self.told else ''}")
        return not self._ended

    def ask(self, by_force: bool) -> None:
        """Ask it to end, once, or end it by force."""
        if by_force:
            self.process.kill()
        elif not self._asked:
            self.process.send_signal(signal.SIGTERM)
        self._asked = True

    def kill(self) -> None:
        if not self._ended:
            self.process.kill()
            self.process.communicate()

    @property
    def end(self) -> str:
        code = self.process.returncode
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _count(store: Store, rows: range) -> int:
    ended = store.completed() | store.failed()
    return int(ended[rows.start : rows.stop].sum())


def _failure(workers: Sequence[_Worker]) -> Exception:
    """Why rows are missing although all workers have ended: the first error told, or that they were interrupted."""
    codes = {worker: worker.process.returncode for worker in workers}
    for worker, code in codes.items():
        if code in (1, 2) and worker.told:
            return (UserError if code == 2 else WorkError)(worker.told)
    for worker, code in codes.items():
        if code > 0 and code != EXIT_INTERRUPTED:
            return WorkError(f"{worker.name} {worker.end}")
    return Interrupted(EXIT_INTERRUPTED)
