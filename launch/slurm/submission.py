"""Submitting: an array for what the store lacks and the queue does not hold, and a gate behind it that does so again.

SLURM runs a job at least once, may run it twice at a time, and may lose it. So no job counts as done because SLURM says
so: each gate asks the store, and `submit` is the same step taken by hand.
"""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from datamodels.launch.progress import counted, notice
from datamodels.launch.slurm import client
from datamodels.launch.slurm.cancel import cancel_jobs
from datamodels.launch.slurm.client import Busy, Full, Job
from datamodels.launch.slurm.config import Slurm
from datamodels.launch.slurm.queue import Queue
from datamodels.launch.slurm.script import files, portable, require_path, side_by_side
from datamodels.launch.slurm.tasks import (
    GATE,
    Plan,
    Range,
    folder_of,
    next_folder,
    note_clusters,
    read_plan,
    write_plan,
)
from datamodels.launch.slurm.work import Work, next_work
from datamodels.launch.status import report_path
from datamodels.launch.stop import EXIT_INTERRUPTED
from datamodels.train import Interrupted, UserError, WorkError
from datamodels.train.store import Layout, LockFile, Store

GATE_DELAY = 30
"""Seconds before a gate that found everything still queued is followed by the next one."""

NO_ROOM_DELAY = 300
"""Seconds before a gate that found the cluster full is followed by the next one."""

NO_ROOM_GATES = 288
"""Gates of a plan after which none follows for want of room: a day of them."""

LOCK_SECONDS = 120.0

START_SECONDS = 4.0
"""How long `submit` looks whether the first task can start."""


def check_submittable(layout: Layout) -> None:
    """Raises UserError where nothing can be submitted: sbatch is missing, or no script can name the root."""
    if not shutil.which("sbatch"):
        raise UserError("sbatch is not on the PATH: submit where SLURM is, or look at it with --dry-run")
    require_path(layout)


def submit(store: Store, layout: Layout, cluster: Slurm, split: str) -> int:
    """Submit what is missing; prints what was submitted, with the numbers of the jobs. Raises UserError, WorkError."""
    with _locked(folder_of(layout)):
        submission = _Submission(store, layout, cluster, split)
        plan = submission.make()
    if plan:
        _check_start(layout, plan)
    submission.tell()
    return 0


def run_gate(store: Store, layout: Layout, cluster: Slurm, path: Path) -> int:
    """What the gate of a plan does: submit what is still missing, but not more often than `rounds` allows.

    Raises UserError where the plan is of another store, WorkError where the rounds are over, Interrupted where SLURM
    does not answer or has no room even for a gate, so that this one has to come again.
    """
    previous = read_plan(path)
    if previous.store != store.manifest.id:
        raise UserError(f"{path} was made for the store {previous.store}, but {layout.data} is {store.manifest.id}")
    try:
        with _locked(folder_of(layout)):
            submission = _Submission(store, layout, cluster, previous.split, path)
            submission.make()
            submission.tell()
    except Busy as error:
        notice(f"{error}; this gate is to come again")
        raise Interrupted(EXIT_INTERRUPTED) from None
    return 0


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Be the only one who submits for a setting. Raises UserError, Busy where somebody else does for too long."""
    try:
        folder.mkdir(exist_ok=True)
        lock = LockFile(folder / "_lock")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    with contextlib.closing(lock):
        deadline = time.monotonic() + LOCK_SECONDS
        while not lock.acquire(0):
            if time.monotonic() > deadline:
                raise Busy(f"{lock.path} is held by another `submit`: try again later")
            time.sleep(0.1)
        yield


class _Submission:
    """One look at store and queue, and what is submitted because neither holds it."""

    def __init__(self, store: Store, layout: Layout, cluster: Slurm, split: str, gate_of: Path | None = None) -> None:
        """gate_of: the plan whose gate submits; None where a user does."""
        self.store, self.layout, self.cluster, self.split, self.gate_of = store, layout, cluster, split, gate_of
        self.folder = folder_of(layout)
        self._results: list[str] = []
        self._notices: list[str] = []

    def tell(self) -> None:
        """Print what was submitted, after all of it; if SLURM refuses and work is undone, only the error is printed."""
        for text in self._notices:
            notice(text)
        for text in self._results:
            print(text)

    def make(self) -> Path | None:
        """Submit the tasks that are left, and a gate behind everything that is queued; returns the new plan, if any.

        Raises UserError, Busy, WorkError.
        """
        self.store.refresh()
        jobs = client.jobs(self.folder, clusters=self.cluster.cluster_names)
        queue = Queue(jobs, self.store.manifest.id, self.split)
        work = next_work(self.store, self.split, self.cluster, queue)
        if work is None:
            report = report_path(self.store, self.split)
            self._results.append(f"nothing to submit: all is done{f', see {report}' if report.exists() else ''}")
            return None
        if queue.held:
            self._notices.append(queue.describe_held())

        path, arrays = None, list[str]()
        allowed = self.cluster.room(len(jobs) + (not queue.gate_waits()))
        if work.tasks and allowed == 0:
            self._notices.append(
                f"nothing new to submit: {work.left}, and {counted(len(jobs), 'job')} queued, as many as slurm.queued "
                "allows; the gate submits the rest"
            )
        elif work.tasks:
            round = self._round(work)
            try:
                path, arrays = self._submit_arrays(work, work.tasks[:allowed], round)
            except Busy as error:
                if self.gate_of is None or _recorded(self.gate_of).count(GATE) >= NO_ROOM_GATES:
                    raise
                self._notices.append(f"{error}; the next gate tries again")
        else:
            self._notices.append(f"nothing new to submit: {work.left}, all in jobs {', '.join(queue.arrays)}")

        if not queue.gate_waits():
            before = [*queue.before_gate, *arrays]
            delay = 0 if arrays or self.gate_of is None else GATE_DELAY if before else NO_ROOM_DELAY
            place = path or queue.newest or self.gate_of or self._write_plan(work, (), 1)[0]
            self._submit_gate(place, arrays, before, delay)
        return path

    def _round(self, work: Work) -> int:
        """How often the work has been submitted before without progress, by the gate that submits now.

        Raises WorkError where that is often enough.
        """
        previous = read_plan(self.gate_of) if self.gate_of else None
        if previous is None or previous.stage != work.stage or not previous.tasks:
            return 0
        if work.tasks[0][0] >= previous.tasks[-1][1]:  # what that plan had no room for
            return previous.round
        if work.count < previous.left:
            return 0
        if previous.round >= self.cluster.rounds:
            raise WorkError(
                f"{work.left} although they were submitted {previous.round + 1} times (slurm.rounds): see the logs in "
                f"{self.folder}, and `submit` again once the cause is fixed"
            )
        return previous.round + 1

    def _submit_arrays(self, work: Work, tasks: Sequence[Range], round: int) -> tuple[Path, list[str]]:
        """Write a plan of the tasks and submit its arrays; those that SLURM refuses after the first are left to a gate.

        All go to one cluster: a job cannot wait for those of another one.

        Raises UserError, Busy, where the first one is refused; its plan is removed if no job of it will ever run.
        """
        clusters = self.cluster.cluster_names
        limit = client.array_limit(clusters)
        path, plan = self._write_plan(work, tasks[: client.room(clusters)], limit, round)
        width, _ = side_by_side(len(plan.chunks), self.cluster.at_once)
        arrays: list[str] = []
        for chunk in range(len(plan.chunks)):
            before = [arrays[chunk - width]] if chunk >= width else []
            try:
                arrays.append(self._sbatch(path / plan.script(chunk), before, like=arrays[:1]))
            except UserError as error:
                if arrays:
                    self._notices.append(f"{error}; the gate submits the rest")
                    break
                is_lost = isinstance(error, Busy) and not isinstance(error, Full)  # it may turn up
                if not is_lost and not self._jobs_of(path, error):
                    shutil.rmtree(path)
                raise
        shown = f"{counted(len(plan.tasks), 'task')} of {plan.stage} in {counted(len(arrays), 'job')}"
        self._results.append(f"{path}: {work.left}; {shown}: {', '.join(arrays)}")
        return path, arrays

    def _write_plan(self, work: Work, tasks: Sequence[Range], array: int, round: int = 0) -> tuple[Path, Plan]:
        plan = Plan(
            store=self.store.manifest.id,
            stage=work.stage,
            split=self.split,
            round=round,
            left=work.count,
            tasks=tuple(tasks),
            array=array,
            setting=portable(self.store.setting),
            cluster=dataclasses.asdict(self.cluster),
        )
        path = next_folder(self.folder)
        note_clusters(self.folder, self.cluster.cluster_names)
        write_plan(plan, path, files(plan, path, self.layout))
        return path, plan

    def _submit_gate(self, path: Path, arrays: Sequence[str], before: Sequence[str], delay: int) -> None:
        """Raises UserError, with the new arrays cancelled: nothing would follow them."""
        try:
            number = self._sbatch(path / GATE, before, delay, like=(arrays or before)[-1:])
        except UserError as error:
            if not arrays or (self.gate_of and isinstance(error, Busy)):
                raise  # a gate that comes again finds what it has submitted
            numbers = ", ".join(arrays)
            try:
                client.scancel(arrays)
            except UserError as failure:
                raise UserError(
                    f"no gate: {error}; jobs {numbers} are queued all the same ({failure}): `submit --cancel`"
                ) from None
            raise UserError(f"no gate: {error}; the new jobs {numbers} were cancelled") from None
        self._results.append(f"{path.name}: gate, job {number}")

    def _sbatch(self, script: Path, before: Sequence[str], delay: int = 0, like: Sequence[str] = ()) -> str:
        """Submit a script and record its number; where the answer gets lost, the queue says whether it is there.

        like: a job whose cluster it goes to, and then waits for those of `before` that are there. Raises UserError,
        Busy where that is not known.
        """
        record = script.parent / "jobs.jsonl"
        cluster = client.cluster_of(like[0]) if like else None
        try:
            number = client.sbatch(script, [job for job in before if client.cluster_of(job) == cluster], delay, cluster)
        except Busy as error:
            known = _recorded(script.parent, "job")
            found = [job.array for job in self._jobs_of(script.parent, error) if job.script.name == script.name]
            unknown = [number for number in found if number not in known]
            if not unknown:
                raise
            number = unknown[0]
        note_clusters(self.folder, [client.cluster_of(number)])
        with open(record, "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), "script": script.name, "job": number}) + "\n")
        return number

    def _jobs_of(self, path: Path, error: UserError) -> list[Job]:
        """Every job of a plan that SLURM knows of. Raises `error` where it does not answer."""
        try:
            return [job for job in client.jobs(self.folder, ended=True) if job.plan == path]
        except UserError:
            raise error from None


def _recorded(plan: Path, key: str = "script") -> list[str]:
    """The scripts of a plan that were submitted, or their jobs."""
    record = plan / "jobs.jsonl"
    return [json.loads(line)[key] for line in record.read_bytes().splitlines()] if record.exists() else []


def _check_start(layout: Layout, plan: Path) -> None:
    """Look for a while whether a task of a plan can start, that is write its log.

    Raises UserError where none can, as where the nodes do not see the root; the plan's jobs are cancelled then.
    """
    folder = folder_of(layout)
    deadline = time.monotonic() + START_SECONDS
    while not any((plan / "logs").iterdir()) and time.monotonic() < deadline:
        with contextlib.suppress(UserError):  # it is submitted, whether SLURM answers this question or not
            jobs = [job for job in client.jobs(folder, ended=True) if job.plan == plan and not job.is_gate]
            tried = [job for job in jobs if job.launch_failed or job.state != "PENDING"]
            if tried and all(job.launch_failed for job in tried):
                break
        time.sleep(0.3)
    else:
        return
    cancel_jobs(folder, lambda job: job.plan == plan)
    raise UserError(
        f"node {tried[0].node or '?'} could not start job {tried[0].name} ({tried[0].reason}): can it see and write "
        f"to {layout.root}?"
    )
