"""What a setting still lacks, as tasks: the store alone says it, and the queue says what is on its way."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.slurm.config import Slurm, seconds_of
from datamodels.launch.slurm.plan import DEFAULT_ROWS, Plan, Range, alignment, pieces, ranges, read
from datamodels.launch.slurm.queue import Job
from datamodels.launch.slurm.script import GATE, eval_path
from datamodels.launch.status import report_path
from datamodels.train import Setting, UserError, WorkError
from datamodels.train.store import Array, Store

MOST_ROWS = 2**40
"""Rows of a task, far above those of any store."""

MOST_ELEMENTS = 100
"""Elements that a gate waits for one by one."""


class Queue:
    """Jobs of one setting that wait or run, and the tasks they are to do: those that train, and those of one split.

    A job that is held is not on its way: what it was to do counts as neither done nor queued.
    """

    def __init__(self, jobs: Sequence[Job], store_id: str | None, split: str) -> None:
        """Raises UserError where a job belongs to another store, or to a plan that cannot be read."""
        self.split = split
        self.plans: dict[Path, Plan] = {}
        for job in jobs:
            folder = job.script.parent
            if folder not in self.plans:
                self.plans[folder] = _plan_of(job)
            if self.plans[folder].store != store_id:
                raise UserError(
                    f"job {job.array} is in the queue for another store that lay here ({folder}): scancel {job.array}"
                )
        ours = [job for job in jobs if self._concerns(job)]
        self.jobs = [job for job in ours if not job.held]
        self.held = [job for job in ours if job.held]

    def _concerns(self, job: Job) -> bool:
        plan = self._plan(job)
        return plan.split == self.split or (plan.stage == "train" and job.script.name != GATE)

    def _plan(self, job: Job) -> Plan:
        return self.plans[job.script.parent]

    @property
    def arrays(self) -> list[str]:
        """Numbers of the queued arrays."""
        return sorted({job.array for job in self.jobs if job.script.name != GATE})

    @property
    def ahead(self) -> list[str]:
        """What a gate waits for: arrays, or elements of those that would never end since others of them are held."""
        never = {job.array for job in self.held}
        tasks = [job for job in self.jobs if job.script.name != GATE]
        single = [job.name for job in tasks if job.array in never]
        return sorted({job.array for job in tasks} - never) + single[:MOST_ELEMENTS]

    @property
    def newest(self) -> Path | None:
        """The newest plan of the split that is queued."""
        return max((job.script.parent for job in self.jobs if self._plan(job).split == self.split), default=None)

    def gate_waits(self) -> bool:
        """Whether a gate waits that is not the one asking: it will see whatever is submitted now."""
        own = os.environ.get("SLURM_JOB_ID")
        waiting = [job for job in self.jobs if job.script.name == GATE and job.state == "PENDING" and job.id != own]
        # One that waits for an array of which an element is held may wait for ever.
        endless = any(job.script.name != GATE for job in self.held)
        return any(job.reason != "Dependency" or not endless for job in waiting)

    def tasks(self, stage: str) -> list[Range]:
        """The queued tasks of a stage."""
        found = [(self._plan(job), job) for job in self.jobs]
        tasks = [plan.task(job.script.name, job.element) for plan, job in found if plan.stage == stage]
        return [task for task in tasks if task]

    def describe_held(self) -> str:
        """One line about the jobs that are held."""
        names = " ".join(job.name for job in self.held[:10])
        more = f" and {len(self.held) - 10} more" if len(self.held) > 10 else ""
        why = self.held[0].reason or self.held[0].state
        return f"held ({why}): jobs {names}{more}; what they were to do is submitted anew: scancel {names}"


def _plan_of(job: Job) -> Plan:
    try:
        return read(job.script.parent)
    except (UserError, WorkError) as error:
        raise UserError(
            f"job {job.array} is in the queue, but {error}: `submit --cancel` cancels what is queued for the setting"
        ) from None


@dataclass(frozen=True)
class Rows:
    """What planning needs to know of the rows of a store, which need not be there yet."""

    setting: Setting
    rows: int
    group: int
    arrays: Sequence[Array]
    missing: NDArray[np.int64]
    seconds: float | None
    """Mean seconds of the rows that are done, of a GPU or of a CPU's worker."""

    @cached_property
    def row_bytes(self) -> list[int]:
        return [int(np.prod(array.shape[1:])) * array.dtype.itemsize for array in self.arrays]

    def rate(self, cluster: Slurm) -> float | None:
        """Rows an hour of one task, as stated or measured."""
        if cluster.rows_per_hour or not self.seconds:
            return cluster.rows_per_hour
        at_work = cluster.gpus_for(self.setting) or cluster.workers_for(self.setting)
        return at_work * 3600 / self.seconds

    def tasks(self, cluster: Slurm, queued: Sequence[Range]) -> list[Range]:
        wanted = self._rows_of_a_task(cluster)
        unit = alignment(self.group, self.row_bytes, wanted)
        return ranges(self.missing, queued, unit, wanted, self.rows)

    def _rows_of_a_task(self, cluster: Slurm) -> int:
        if cluster.rows:
            return min(cluster.rows, MOST_ROWS)
        rate, limit = self.rate(cluster), (seconds_of(cluster.time) or 0) - cluster.signal
        hours = min(cluster.minutes / 60, 0.8 * limit / 3600)
        return max(1, int(min(rate * hours, MOST_ROWS))) if rate else DEFAULT_ROWS


def rows_of(store: Store, with_failed: bool = False) -> Rows:
    """with_failed: count rows that failed for good as missing."""
    done = store.completed()
    missing = np.flatnonzero(~done) if with_failed else store.missing()
    seconds = float(store.states.seconds[done].mean()) if done.any() else None
    return Rows(store.setting, store.rows, store.group, list(store.arrays.values()), missing, seconds)


@dataclass(frozen=True)
class Work:
    """What is left of the first stage that is not complete."""

    stage: str
    tasks: list[Range]
    """What is neither done nor queued."""
    left: str
    """All that is not done, for people."""
    count: int
    """The same as a number."""


def next_work(store: Store, split: str, cluster: Slurm, queue: Queue) -> Work | None:
    """None where all is done. Raises WorkError where too many rows failed for good."""
    from datamodels.lasso import assemble, is_current, target_count

    rows = rows_of(store)
    if len(rows.missing):
        left = f"{len(rows.missing)} of {store.rows} rows missing"
        return Work("train", rows.tasks(cluster, queue.tasks("train")), left, len(rows.missing))
    _check_failures(store)
    width = target_count(store, split)
    if not is_current(store, split):
        assemble(store, split)
    lacking = [task for task in pieces(width, cluster.after.targets) if not is_current(store, split, task)]
    if lacking or not is_current(store, split):
        tasks = [task for task in lacking or [(0, width)] if task not in queue.tasks("fit")]
        return Work("fit", tasks, f"{len(lacking)} pieces of the fit missing", len(lacking))
    if not _is_judged(store, split):
        return Work("eval", [] if queue.tasks("eval") else [(0, width)], "evaluation and report missing", 1)
    return None


def _check_failures(store: Store) -> None:
    failed, allowed = int(store.failed().sum()), store.setting.fit.max_failed * store.rows
    if failed > allowed:
        raise WorkError(
            f"{failed} of {store.rows} rows failed, at most {allowed:g} may (fit.max_failed): see `status`, and "
            "`submit --retry-failed` once the cause is mended"
        )


def _is_judged(store: Store, split: str) -> bool:
    """Whether evaluation and report are younger than the datamodels and the evaluation rows."""
    from datamodels.lasso import path_of

    results = [report_path(store, split)]
    if store.eval_models:
        results.append(eval_path(store.layout, split))
    evaluated = store.states.time[store.models :]
    made = max(path_of(store, split).stat().st_mtime, evaluated.max() if len(evaluated) else 0)
    return all(path.exists() and path.stat().st_mtime >= made for path in results)
