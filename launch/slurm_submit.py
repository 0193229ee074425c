"""Submitting: an array for what the store lacks and the queue does not hold, and a gate behind it that does so again.

SLURM runs a job at least once, may run it twice at a time, and may lose it. So no job counts as done because SLURM says
so: each gate asks the store, and `submit` is the same step taken by hand.
"""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from launch import slurm_queue
from launch.progress import notice
from launch.slurm_config import Slurm
from launch.slurm_plan import Plan, folder_of, freeze, next_folder, read
from launch.slurm_queue import limits, room, sbatch
from launch.slurm_script import GATE, files, lanes, portable
from launch.slurm_work import Queue, Work, next_work
from launch.status import report_path
from train.errors import UserError, WorkError
from train.layout import Layout
from train.locks import LockFile
from train.store import Store

GATE_DELAY = 30
"""Seconds before a gate that found everything still queued is followed by the next one."""

LOCK_SECONDS = 120.0

START_SECONDS = 4.0
"""How long `submit` looks whether the first task can start."""


def submit(store: Store, layout: Layout, cluster: Slurm, split: str) -> int:
    """Submit what is missing; prints what was submitted, with the numbers of the jobs. Raises UserError, WorkError."""
    with _locked(folder_of(layout)):
        plan = _Step(store, layout, cluster, split, None).take()
    _check_start(layout, plan)
    return 0


def pass_gate(store: Store, layout: Layout, cluster: Slurm, plan: Path) -> int:
    """What a gate does: submit what is still missing, but not more often than `rounds` allows.

    Raises UserError where the plan is of another store, WorkError where the rounds are over.
    """
    previous = read(plan)
    if previous.store != store.manifest.id:
        raise UserError(f"{plan} was made for the store {previous.store}, but {layout.data} is {store.manifest.id}")
    with _locked(folder_of(layout)):
        _Step(store, layout, cluster, previous.split, previous).take()
    return 0


def cancel(layout: Layout) -> int:
    """Cancel every queued job of a setting, gates first. Raises UserError."""
    jobs = slurm_queue.jobs(folder_of(layout))
    numbers = list(dict.fromkeys(job.array for job in sorted(jobs, key=lambda job: job.script.name != GATE)))
    if numbers:
        slurm_queue.cancel(numbers)
    print(f"cancelled: jobs {', '.join(numbers)}" if numbers else "nothing to cancel: no job is queued")
    return 0


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Be the only one who submits for a setting. Raises UserError."""
    try:
        folder.mkdir(exist_ok=True)
        lock = LockFile(folder / "_lock")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not lock.acquire(0):
            if time.monotonic() > deadline:
                raise UserError(f"{lock.path} is held by another `submit`: try again later")
            time.sleep(0.1)
        yield
    finally:
        lock.close()


class _Step:
    def __init__(self, store: Store, layout: Layout, cluster: Slurm, split: str, previous: Plan | None) -> None:
        """previous: the plan whose gate this is."""
        self.store, self.layout, self.cluster, self.split, self.previous = store, layout, cluster, split, previous
        self.folder = folder_of(layout)

    def take(self) -> Path | None:
        """Submit the tasks that are left, and a gate behind everything that is queued; returns the new plan."""
        self.store.refresh()
        queue = Queue(slurm_queue.jobs(self.folder), self.store.manifest.id)
        work = next_work(self.store, self.split, self.cluster, queue)
        if work is None:
            print(f"nothing to submit: all is done, see {report_path(self.store, self.split)}")
            return None
        path, arrays = max(queue.plans, default=self.folder), list[str]()
        if work.tasks:
            path, arrays = self._submit(work)
        else:
            notice(f"nothing new to submit: {work.left}, all in jobs {', '.join(queue.arrays)}")
        if not queue.gate_waits():
            delay = 0 if arrays or self.previous is None else GATE_DELAY
            number = sbatch(path / GATE, [*queue.arrays, *arrays], delay)
            _record(path, GATE, number)
            print(f"{path.name}: gate, job {number}")
        return path if arrays else None

    def _submit(self, work: Work) -> tuple[Path, list[str]]:
        plan = self._plan(work)
        path = next_folder(self.folder)
        freeze(plan, path, files(plan, path, self.layout))
        arrays = self._start_arrays(plan, path)
        tasks, jobs = (
            f"{n} {what}{'s' if n > 1 else ''}" for n, what in ((len(plan.tasks), "task"), (len(arrays), "job"))
        )
        print(f"{path}: {work.left}; {tasks} of {plan.stage} in {jobs}: {', '.join(arrays)}")
        return path, arrays

    def _plan(self, work: Work) -> Plan:
        limit = limits()
        tasks = work.tasks[: room(limit)]
        if not tasks:
            raise UserError(f"the cluster holds as many jobs as it takes ({limit.jobs}, MaxJobCount): try again later")
        return Plan(
            store=self.store.manifest.id,
            stage=work.stage,
            split=self.split,
            round=self._round(work),
            tasks=tuple(tasks),
            array=limit.array,
            setting=portable(self.store.setting),
            cluster=dataclasses.asdict(self.cluster),
        )

    def _round(self, work: Work) -> int:
        """Raises WorkError where what the previous plan left undone has been submitted often enough."""
        previous = self.previous
        if previous is None or previous.stage != work.stage:
            return 0
        again = work.tasks[0][0] < previous.tasks[-1][1]
        if again and previous.round >= self.cluster.rounds:
            raise WorkError(
                f"{work.left} although they were submitted {previous.round + 1} times (slurm.rounds): see the logs in "
                f"{self.folder}, and `submit` again once the cause is mended"
            )
        return previous.round + again

    def _start_arrays(self, plan: Plan, path: Path) -> list[str]:
        width, _ = lanes(len(plan.chunks), self.cluster.at_once)
        arrays: list[str] = []
        for chunk in range(len(plan.chunks)):
            script = plan.script(chunk)
            before = [arrays[chunk - width]] if chunk >= width else []
            try:
                arrays.append(sbatch(path / script, before))
            except UserError as error:
                if not arrays:
                    shutil.rmtree(path)
                    raise
                notice(f"{error}; the gate submits the rest")
                break
            _record(path, script, arrays[-1])
        return arrays


def _record(path: Path, script: str, number: str) -> None:
    entry = {"time": time.time(), "script": script, "job": number}
    with open(path / "jobs.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")


def _check_start(layout: Layout, plan: Path | None) -> None:
    """Look for a while whether a task can start, that is write its log.

    Raises UserError where one cannot, as where the nodes do not see the root; all jobs are cancelled then.
    """
    deadline = time.monotonic() + START_SECONDS
    while plan and not any((plan / "logs").iterdir()) and time.monotonic() < deadline:
        with contextlib.suppress(UserError):  # it is submitted, whether SLURM answers this question or not
            jobs = slurm_queue.jobs(folder_of(layout), ended=True)
            if unable := [job for job in jobs if job.script.parent == plan and job.stuck]:
                break
        time.sleep(0.3)
    else:
        return
    cancel(layout)
    raise UserError(
        f"node {unable[0].node or '?'} could not start job {unable[0].name} ({unable[0].reason}): can it see and write "
        f"to {layout.root}?"
    )
