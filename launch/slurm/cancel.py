"""Cancelling jobs of a setting, while a gate may be about to submit more."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from datamodels.launch.slurm.client import Busy, Job, jobs, scancel
from datamodels.launch.slurm.tasks import folder_of
from datamodels.train import UserError
from datamodels.train.store import Layout

CANCEL_SECONDS = 60.0
"""How long new jobs are cancelled as they turn up."""


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
    # A task that is ending does nothing of its own any more; a gate that is ending may still submit.
    while left := [job for job in jobs(folder) if wanted(job) and (job.is_gate or job.state != "COMPLETING")]:
        if time.monotonic() > deadline:
            raise Busy(f"jobs {', '.join(sorted({job.array for job in left}))} are still queued: try again later")
        left.sort(key=lambda job: not job.is_gate)
        if numbers := list(dict.fromkeys(job.array for job in left if job.state != "COMPLETING")):
            try:
                scancel(numbers)
            except UserError as error:
                if not re.search("already complet|invalid job id", str(error), re.IGNORECASE):
                    raise
            cancelled |= dict.fromkeys(numbers)
        time.sleep(0.3)
    return list(cancelled)
