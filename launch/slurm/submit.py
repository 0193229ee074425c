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

from datamodels.launch.progress import notice
from datamodels.launch.slurm import queue as slurm_queue
from datamodels.launch.slurm.cancel import cancel_jobs
from datamodels.launch.slurm.config import Slurm
from datamodels.launch.slurm.plan import Plan, Range, folder_of, freeze, next_folder, read
from datamodels.launch.slurm.queue import Busy, limits, room, sbatch
from datamodels.launch.slurm.script import GATE, files, lanes, portable
from datamodels.launch.slurm.work import Queue, Work, next_work
from datamodels.launch.status import report_path
from datamodels.launch.stop import EXIT_INTERRUPTED
from datamodels.launch.text import counted
from datamodels.train import Interrupted, UserError, WorkError
from datamodels.train.store import Layout, LockFile, Store

GATE_DELAY = 30
"""Seconds before a gate that found everything still queued is followed by the next one."""

NO_ROOM_DELAY = 300
"""Seconds before a gate that found the cluster full is followed by the next one."""

LOCK_SECONDS = 120.0

START_SECONDS = 4.0
"""How long `submit` looks whether the first task can start."""


def submit(store: Store, layout: Layout, cluster: Slurm, split: str) -> int:
    """Submit what is missing; prints what was submitted, with the numbers of the jobs. Raises UserError, WorkError."""
    with _locked(folder_of(layout)):
        step = _Step(store, layout, cluster, split)
        plan = step.take()
    _check_start(layout, plan)
    step.tell()
    return 0


def pass_gate(store: Store, layout: Layout, cluster: Slurm, path: Path) -> int:
    """What the gate of a plan does: submit what is still missing, but not more often than `rounds` allows.

    Raises UserError where the plan is of another store, WorkError where the rounds are over, Interrupted where SLURM
    does not answer or has no room even for a gate, so that this one has to come again.
    """
    previous = read(path)
    if previous.store != store.manifest.id:
        raise UserError(f"{path} was made for the store {previous.store}, but {layout.data} is {store.manifest.id}")
    try:
        with _locked(folder_of(layout)):
            step = _Step(store, layout, cluster, previous.split, path)
            step.take()
            step.tell()
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
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not lock.acquire(0):
            if time.monotonic() > deadline:
                raise Busy(f"{lock.path} is held by another `submit`: try again later")
            time.sleep(0.1)
        yield
    finally:
        lock.close()


class _Step:
    """What `submit` does once: look at store and queue, and submit what neither holds."""

    def __init__(self, store: Store, layout: Layout, cluster: Slurm, split: str, origin: Path | None = None) -> None:
        """origin: the plan whose gate this is."""
        self.store, self.layout, self.cluster, self.split, self.origin = store, layout, cluster, split, origin
        self.previous = read(origin) if origin else None
        self.folder = folder_of(layout)
        self._results: list[str] = []
        self._notices: list[str] = []

    def tell(self) -> None:
        """Say what was done; a refusal is to be all that is said of what it undid."""
        for text in self._notices:
            notice(text)
        for text in self._results:
            print(text)

    def take(self) -> Path | None:
        """Submit the tasks that are left, and a gate behind everything that is queued; returns the new plan."""
        self.store.refresh()
        queue = Queue(slurm_queue.jobs(self.folder), self.store.manifest.id, self.split)
        work = next_work(self.store, self.split, self.cluster, queue)
        if work is None:
            self._results.append(f"nothing to submit: all is done, see {report_path(self.store, self.split)}")
            return None
        if queue.held:
            self._notices.append(queue.describe_held())
        path, arrays = self._start(work, queue)
        if not queue.gate_waits():
            before = [*queue.ahead, *arrays]
            delay = 0 if arrays or self.origin is None else GATE_DELAY if before else NO_ROOM_DELAY
            self._start_gate(path or self._place_for_gate(work, queue), arrays, before, delay)
        return path

    def _start(self, work: Work, queue: Queue) -> tuple[Path | None, list[str]]:
        """The new plan and its arrays, if any."""
        if not work.tasks:
            self._notices.append(f"nothing new to submit: {work.left}, all in jobs {', '.join(queue.arrays)}")
            return None, []
        round = self._round(work)
        try:
            return self._submit(work, round)
        except Busy as error:
            if self.origin is None:
                raise
            self._notices.append(f"{error}; the next gate tries again")
            return None, []

    def _submit(self, work: Work, round: int) -> tuple[Path, list[str]]:
        limit = limits()
        tasks = work.tasks[: room(limit)]
        if not tasks:
            raise Busy(f"the cluster holds as many jobs as it takes ({limit.jobs}, MaxJobCount): try again later")
        path, plan = self._freeze(work, tasks, limit.array, round)
        arrays = self._start_arrays(plan, path)
        shown = f"{counted(len(plan.tasks), 'task')} of {plan.stage} in {counted(len(arrays), 'job')}"
        self._results.append(f"{path}: {work.left}; {shown}: {', '.join(arrays)}")
        return path, arrays

    def _freeze(self, work: Work, tasks: Sequence[Range], array: int, round: int = 0) -> tuple[Path, Plan]:
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
            fit_gpus=self.cluster.after.gpus_for_fit,
        )
        path = next_folder(self.folder)
        freeze(plan, path, files(plan, path, self.layout))
        return path, plan

    def _round(self, work: Work) -> int:
        """Raises WorkError where what the previous plan left undone has been submitted often enough in vain."""
        previous = self.previous
        if previous is None or previous.stage != work.stage or not previous.tasks:
            return 0
        if work.tasks[0][0] >= previous.tasks[-1][1]:
            return previous.round
        if work.count < previous.left:
            return 0
        if previous.round >= self.cluster.rounds:
            raise WorkError(
                f"{work.left} although they were submitted {previous.round + 1} times (slurm.rounds): see the logs in "
                f"{self.folder}, and `submit` again once the cause is mended"
            )
        return previous.round + 1

    def _start_arrays(self, plan: Plan, path: Path) -> list[str]:
        width, _ = lanes(len(plan.chunks), self.cluster.at_once)
        arrays: list[str] = []
        for chunk in range(len(plan.chunks)):
            before = [arrays[chunk - width]] if chunk >= width else []
            try:
                arrays.append(self._sbatch(path / plan.script(chunk), before))
            except UserError as error:
                if not arrays:
                    self._forget(path, error)
                    raise
                self._notices.append(f"{error}; the gate submits the rest")
                break
        return arrays

    def _sbatch(self, script: Path, before: Sequence[str], delay: int = 0) -> str:
        """Submit a script, and write down its number; where the answer gets lost, the queue says whether it is there.

        Raises UserError, Busy where that is not known.
        """
        try:
            number = sbatch(script, before, delay)
        except Busy as error:
            known = _recorded(script.parent)
            found = [job.array for job in self._jobs_of(script.parent, error) if job.script.name == script.name]
            unknown = [number for number in found if number not in known]
            if not unknown:
                raise
            number = unknown[0]
        _record(script, number)
        return number

    def _jobs_of(self, path: Path, error: UserError) -> list[slurm_queue.Job]:
        """Every job of a plan that SLURM knows of. Raises `error` where it does not answer."""
        try:
            return [job for job in slurm_queue.jobs(self.folder, ended=True) if job.script.parent == path]
        except UserError:
            raise error from None

    def _forget(self, path: Path, error: UserError) -> None:
        """Remove a plan that was refused, if it is certain that no job of it will ever run."""
        if not isinstance(error, Busy) and not self._jobs_of(path, error):
            shutil.rmtree(path)

    def _place_for_gate(self, work: Work, queue: Queue) -> Path:
        """A plan of the split whose gate it can be; a new one without tasks where there is none."""
        return queue.newest or self.origin or self._freeze(work, (), 1)[0]

    def _start_gate(self, path: Path, arrays: Sequence[str], before: Sequence[str], delay: int) -> None:
        """Raises UserError, with the new arrays taken back: nothing would follow them."""
        try:
            number = self._sbatch(path / GATE, before, delay)
        except UserError as error:
            if not arrays or (self.origin and isinstance(error, Busy)):
                raise  # a gate that comes again finds what it has submitted
            raise UserError(f"no gate: {error}; {self._take_back(arrays)}") from None
        self._results.append(f"{path.name}: gate, job {number}")

    def _take_back(self, arrays: Sequence[str]) -> str:
        try:
            slurm_queue.cancel(arrays)
        except UserError as error:
            return f"jobs {', '.join(arrays)} are queued all the same ({error}): `submit --cancel`"
        return f"the new jobs {', '.join(arrays)} were cancelled"


def _record(script: Path, number: str) -> None:
    entry = {"time": time.time(), "script": script.name, "job": number}
    with open(script.parent / "jobs.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")


def _recorded(path: Path) -> set[str]:
    """Numbers of the jobs of a plan that were written down."""
    file = path / "jobs.jsonl"
    return {json.loads(line)["job"] for line in file.read_text().splitlines()} if file.exists() else set()


def _check_start(layout: Layout, plan: Path | None) -> None:
    """Look for a while whether a task of a plan can start, that is write its log.

    Raises UserError where none can, as where the nodes do not see the root; the plan's jobs are cancelled then.
    """
    folder = folder_of(layout)
    deadline = time.monotonic() + START_SECONDS
    while plan and not any((plan / "logs").iterdir()) and time.monotonic() < deadline:
        with contextlib.suppress(UserError):  # it is submitted, whether SLURM answers this question or not
            jobs = [job for job in slurm_queue.jobs(folder, ended=True) if job.script.parent == plan]
            tried = [job for job in jobs if job.script.name != GATE and (job.launch_failed or job.state != "PENDING")]
            if tried and all(job.launch_failed for job in tried):
                break
        time.sleep(0.3)
    else:
        return
    cancel_jobs(folder, lambda job: job.script.parent == plan)
    raise UserError(
        f"node {tried[0].node or '?'} could not start job {tried[0].name} ({tried[0].reason}): can it see and write "
        f"to {layout.root}?"
    )
