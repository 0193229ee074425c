"""Cancelling jobs of a setting, while a gate may be about to submit more."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from datamodels.launch.slurm import queue as slurm_queue
from datamodels.launch.slurm.plan import folder_of
from datamodels.launch.slurm.queue import Busy, Job
from datamodels.launch.slurm.script import GATE
from datamodels.train import UserError
from datamodels.train.store import Layout

CANCEL_SECONDS = 60.0
"""How long jobs are cancelled that turn up."""

PAUSE_SECONDS = 0.3


def cancel(layout: Layout) -> int:
    """Cancel every queued job of a setting. Raises UserError."""
    numbers = cancel_jobs(folder_of(layout), lambda job: True)
    print(f"cancelled: jobs {', '.join(numbers)}" if numbers else "nothing to cancel: no job is queued")
    return 0


def cancel_jobs(folder: Path, wanted: Callable[[Job], bool]) -> list[str]:
    """Cancel jobs, gates first, until none is left, and no gate that could still submit; returns their numbers.

    Raises UserError, Busy where some are still there in the end.
    """
    cancelled: dict[str, None] = {}
    deadline = time.monotonic() + CANCEL_SECONDS
    while jobs := [job for job in slurm_queue.jobs(folder) if wanted(job) and _could_act(job)]:
        if time.monotonic() > deadline:
            raise Busy(f"jobs {', '.join(sorted({job.array for job in jobs}))} are still queued: try again later")
        jobs.sort(key=lambda job: job.script.name != GATE)
        if numbers := list(dict.fromkeys(job.array for job in jobs if job.state != "COMPLETING")):
            _cancel(numbers)
            cancelled |= dict.fromkeys(numbers)
        time.sleep(PAUSE_SECONDS)
    return list(cancelled)


def _cancel(numbers: list[str]) -> None:
    try:
        slurm_queue.cancel(numbers)
    except UserError as error:
        if not re.search("already complet|invalid job id", str(error), re.IGNORECASE):
            raise


def _could_act(job: Job) -> bool:
    """Whether a job still does something of its own; a task that is ending does not."""
    return job.state != "COMPLETING" or job.script.name == GATE
