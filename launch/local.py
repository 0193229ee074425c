"""Training on this machine: one worker for each device, in this process where one is enough."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from datamodels.launch.progress import Progress, notice
from datamodels.launch.stop import EXIT_INTERRUPTED, Stop
from datamodels.launch.worker import Task, work
from datamodels.train import Interrupted, Recipe, UserError, WorkError
from datamodels.train.store import Store

POLL_SECONDS = 0.5

KILL_SECONDS = 8.0
"""Seconds after a signal at which workers that are still there are killed."""


def train_here(
    store: Store, root: str, rows: range, devices: Sequence[str] | None, workers: int | None, stop: Stop
) -> None:
    """Train the missing rows on the given devices, or on all that are visible.

    Raises Interrupted (with the exit code), UserError, WorkError.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}, expected at least 1")
    missing = len(store.missing(rows.start, rows.stop))
    if not missing:
        notice(f"nothing to train: rows {rows.start} to {rows.stop - 1} are all done")
        return
    recipe, gpus = store.setting.recipe, 0
    if recipe.device == "cuda":
        import torch

        gpus = torch.cuda.device_count()
        if not gpus and (given := os.environ.get("SLURM_JOB_GPUS")):
            raise WorkError(f"SLURM gave this job GPU {given} of {socket.gethostname()}, but PyTorch finds no GPU here")
    places = devices_of(recipe, devices, workers, -(-missing // store.group), gpus)
    concurrent_groups = 1 if places[0] == "cpu" else workers or 1
    if store.setting.trainer:  # one row at a time in each process
        places, concurrent_groups = places * concurrent_groups, 1
    tasks = [Task(root, store.setting.to_dict(), (rows.start, rows.stop), place, concurrent_groups) for place in places]
    with Progress("rows", missing) as progress:
        try:
            if len(tasks) == 1:
                work(tasks[0], stop, progress)
            else:
                supervise([Worker.of(task, index) for index, task in enumerate(tasks)], store, rows, stop, progress)
        except Interrupted as error:
            notice(f"stopped: {progress.done} rows done here, the others remain; the same command goes on")
            raise Interrupted(*error.args or [stop.exit_code]) from None
        finally:
            store.refresh()


def devices_of(recipe: Recipe, devices: Sequence[str] | None, workers: int | None, groups: int, gpus: int) -> list[str]:
    """The device of each process: one process a GPU, or several on a CPU; no more than `groups` are missing.

    devices: what --devices names; gpus: how many this machine has for the recipe. Raises UserError.
    """
    if devices and not gpus:
        raise UserError(f"--devices is {','.join(devices)}: no such GPU here, or recipe.device is cpu")
    for device in devices or ():
        if not (device.isascii() and device.isdecimal()) or int(device) >= gpus:
            raise UserError(f"--devices names {device!r}, expected numbers of GPUs below {gpus}, such as 0,1")
    if gpus:
        places = [f"cuda:{device}" for device in devices or range(gpus)]
    else:
        if recipe.device == "cuda":
            notice("no GPU here: training on the CPU")
        places = ["cpu"] * (workers or max(1, len(os.sched_getaffinity(0)) // recipe.threads))
    return places[: max(1, groups)]


class Worker:
    """A process for a task. It has a session of its own: Ctrl-C reaches it only through its launcher."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name, self.command = name, command
        self.error = ""
        """What it printed last, which is its error."""
        self._running = self._asked = False

    @classmethod
    def of(cls, task: Task, index: int) -> "Worker":
        content = json.dumps({**dataclasses.asdict(task), "parent": os.getpid()})
        # -P: no module of the folder that the user is in takes the place of one of ours.
        command = [sys.executable, "-P", "-m", "datamodels.launch.worker", content]
        return cls(f"worker {index} on {task.device}", command)

    def start(self) -> None:
        paths = [str(Path(sys.modules["datamodels"].__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self.process = subprocess.Popen(
            self.command, start_new_session=True, stdout=subprocess.PIPE, encoding="utf-8", env=environment
        )
        self._running = True

    def runs(self) -> bool:
        """Whether it still runs; prints a notice of an end that nobody asked for."""
        if self._running and self.process.poll() is not None:
            self._running = False
            self.error = (self.process.communicate()[0].strip().splitlines() or [""])[-1]
            # What exit code 2 says is the error of the command.
            if self.process.returncode not in (0, 2) and not self._asked:
                notice(f"{self.name} {self.end}{': ' + self.error if self.error else ''}")
        return self._running

    def ask_to_end(self, by_force: bool) -> None:
        """Ask it to end, once, or end it by force."""
        if by_force:
            self.process.kill()
        elif not self._asked:
            self.process.send_signal(signal.SIGTERM)
        self._asked = True

    def kill(self) -> None:
        if self._running:
            self.process.kill()
            self.process.communicate()

    @property
    def end(self) -> str:
        """How it ended, in words."""
        code = self.process.returncode
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def supervise(
    workers: Sequence[Worker],
    store: Store,
    rows: range,
    stop: Stop,
    progress: Progress,
    kill_after: float = KILL_SECONDS,
) -> None:
    """Start workers and wait until all have ended, passing a signal on to them.

    If rows are missing then: raises the first error that a worker printed, or Interrupted if none printed any.
    """
    done = _rows_ended(store, rows)
    with stop:
        try:
            for worker in workers:
                worker.start()
            while alive := [worker for worker in workers if worker.runs()]:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    alive[0].process.wait(POLL_SECONDS)
                for worker in alive if stop() else ():
                    worker.ask_to_end(by_force=stop.seconds > kill_after)
                before, done = done, _rows_ended(store, rows)
                progress(done - before)
            progress(_rows_ended(store, rows) - done)
        finally:
            for worker in workers:
                worker.kill()
    if not len(store.missing(rows.start, rows.stop)):
        for worker in workers:
            if worker.process.returncode == 2:
                notice(f"{worker.name} {worker.end}: {worker.error}")
        return
    if stop():
        raise Interrupted(stop.exit_code)
    for worker in workers:
        if worker.process.returncode in (1, 2) and worker.error:
            raise (UserError if worker.process.returncode == 2 else WorkError)(worker.error)
    for worker in workers:
        if worker.process.returncode > 0 and worker.process.returncode != EXIT_INTERRUPTED:
            raise WorkError(f"{worker.name} {worker.end}")
    raise Interrupted(EXIT_INTERRUPTED)


def _rows_ended(store: Store, rows: range) -> int:
    """How many of the rows are done or have failed."""
    store.refresh()
    return int((store.completed() | store.failed())[rows.start : rows.stop].sum())
