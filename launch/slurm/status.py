"""What SLURM says of a setting: jobs by state, and how far each running task is."""

import functools
from collections import Counter
from typing import Any

import numpy as np

from datamodels.launch.slurm import client
from datamodels.launch.slurm.client import Job
from datamodels.launch.slurm.tasks import folder_of, numbered, read_plan
from datamodels.train import UserError, WorkError
from datamodels.train.store import Store

PATIENCE = 10.0
"""Seconds that SLURM has to answer."""

_ENDED = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL")


_read_plan = functools.lru_cache(read_plan)  # plans never change


def job_summary(store: Store) -> dict[str, Any]:
    """Keys of `status --json` for a setting that has been submitted; none for any other.

    `queue`: jobs by state, null where SLURM does not answer; `gate`: state of the newest gate; `running`: tasks at
    work, with their rows or targets and how many of their rows are done; `stuck`: why jobs do not start that wait for
    anything but their turn (held, not to be started by a node, over a limit of the partition or the account), by name,
    with one entry for elements of an array that share a reason.
    """
    folder = folder_of(store.layout)
    if not numbered(folder):
        return {}
    try:
        jobs = [job for job in client.jobs(folder, ended=True, patience=PATIENCE) if job.state not in _ENDED]
    except UserError as error:
        return {"queue": None, "queue_error": str(error)}
    gates = [job.state for job in jobs if job.is_gate]
    tasks = [job for job in jobs if not job.is_gate]
    stuck: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        if job.stuck:
            stuck.setdefault((job.array, f"{job.node} {job.reason}".strip()), []).append(job.name)
    return {
        "queue": dict(Counter(job.state for job in tasks)),
        "gate": gates[-1] if gates else None,
        "running": [_task(store, job) for job in tasks if job.state == "RUNNING"],
        "stuck": {
            names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""): reason
            for (_, reason), names in stuck.items()
        },
    }


def _task(store: Store, job: Job) -> dict[str, Any]:
    found: dict[str, Any] = {"job": job.name, "node": job.node, "stage": job.script.stem.partition("_")[0]}
    try:
        task = _read_plan(job.plan).task(job.script.name, job.element)
    except (UserError, WorkError):
        return found
    if task:
        found["range"] = f"{task[0]}:{task[1]}"
        if found["stage"] == "train":
            found["done"] = int(np.count_nonzero(store.completed()[task[0] : task[1]]))
            found["rows"] = min(task[1], store.rows) - task[0]
    return found


def describe_jobs(found: dict[str, Any], most: int = 20) -> list[str]:
    """The same for people; at most so many tasks one by one."""
    if "queue" not in found:
        return []
    if found["queue"] is None:
        return [f"SLURM does not answer: {found['queue_error']}"]
    states = ", ".join(f"{count} {state.lower()}" for state, count in found["queue"].items()) or "no job"
    lines = [f"in SLURM's queue: {states}; gate {(found['gate'] or 'none').lower()}"]
    rates = found.get("jobs_per_hour", {})
    for task in found["running"][:most]:
        done = f", {task['done']} of {task['rows']} rows done" if "done" in task else ""
        job = task["job"].partition(";")[0]
        rate = f", {rates[job]:,.0f} an hour" if job in rates else ""
        lines.append(f"job {task['job']} on {task['node']}: {task['stage']} {task.get('range', '')}{done}{rate}")
    if len(found["running"]) > most:
        lines.append(f"... and {len(found['running']) - most} more at work")
    lines += [f"not starting: job {job} ({reason})" for job, reason in found["stuck"].items()]
    return lines
