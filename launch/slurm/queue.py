"""The queued jobs of one setting, and the tasks that they are to do."""

import os
from collections.abc import Sequence
from pathlib import Path

from datamodels.launch.slurm.client import Job, cluster_of, scancel_words
from datamodels.launch.slurm.tasks import Plan, Range, read_plan
from datamodels.train import UserError, WorkError

MOST_ELEMENTS = 100
"""Elements of arrays that a gate waits for one by one."""


class Queue:
    """Jobs of one setting that wait or run: those that train, and those of one split.

    A job that is held is not on its way: what it was to do counts as neither done nor queued.
    """

    def __init__(self, jobs: Sequence[Job], store_id: str | None, split: str) -> None:
        """Raises UserError where a job belongs to another store, or to a plan that cannot be read."""
        self.split = split
        self._plans: dict[Path, Plan] = {}
        for job in jobs:
            if job.plan in self._plans:
                continue
            try:
                plan = self._plans[job.plan] = read_plan(job.plan)
            except (UserError, WorkError) as error:
                raise UserError(
                    f"job {job.array} is in the queue, but {error}: `submit --cancel` cancels what is queued for the "
                    "setting"
                ) from None
            if plan.store != store_id:
                raise UserError(
                    f"job {job.array} is queued for a store that was here before ({job.plan}): "
                    f"{scancel_words([job.array])}"
                )
        ours = []
        for job in jobs:
            plan = self._plans[job.plan]
            if plan.split == split or (plan.stage == "train" and not job.is_gate):  # both splits share the rows
                ours.append(job)
        self.jobs = [job for job in ours if not job.held]
        self.held = [job for job in ours if job.held]

    @property
    def arrays(self) -> list[str]:
        """Numbers of the queued arrays."""
        return sorted({job.array for job in self.jobs if not job.is_gate})

    @property
    def before_gate(self) -> list[str]:
        """What a gate waits for: arrays, or elements of those that never end because others of them are held."""
        never_end = {job.array for job in self.held}
        single = [job.name for job in self.jobs if not job.is_gate and job.array in never_end]
        return sorted({*self.arrays} - never_end) + single[:MOST_ELEMENTS]

    @property
    def newest(self) -> Path | None:
        """The newest plan of the split that is queued."""
        return max((job.plan for job in self.jobs if self._plans[job.plan].split == self.split), default=None)

    def gate_waits(self) -> bool:
        """Whether a gate waits that is not the one asking: it will see whatever is submitted now."""
        own, here = os.environ.get("SLURM_JOB_ID"), (None, os.environ.get("SLURM_CLUSTER_NAME"))
        others = [job for job in self.jobs if job.id != own or cluster_of(job.array) not in here]
        gates = [job for job in others if job.is_gate and job.state == "PENDING"]
        # One that waits for an array of which an element is held may wait for ever.
        endless = any(not job.is_gate for job in self.held)
        return any(job.reason != "Dependency" or not endless for job in gates)

    def tasks(self, stage: str) -> list[Range]:
        """The queued tasks of a stage."""
        plans = [(self._plans[job.plan], job) for job in self.jobs]
        tasks = [plan.task(job.script.name, job.element) for plan, job in plans if plan.stage == stage]
        return [task for task in tasks if task]

    def describe_held(self) -> str:
        """One line about the jobs that are held."""
        names = [job.name for job in self.held[:10]]
        more = f" and {len(self.held) - 10} more" if len(self.held) > 10 else ""
        why = self.held[0].reason or self.held[0].state
        return f"held ({why}): jobs {' '.join(names)}{more}; their tasks are submitted again: {scancel_words(names)}"
