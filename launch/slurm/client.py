"""Talking to SLURM: what is queued, what the cluster allows, submitting, cancelling. Only its own commands are used."""

import functools
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodels.launch.slurm.tasks import GATE
from datamodels.train import UserError

PATIENCE = 300.0
"""Seconds that a question to SLURM may take."""

_FORMAT = "%F|%K|%A|%T|%N|%r|%o"
"""Array, element, job, state, node, reason and script, as squeue prints them."""

_USUAL = {
    *("", "None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit"),
    *("Prolog", "Cleaning", "WaitingForScheduling"),
}
"""Reasons for which a job waits in a queue that moves."""

_PASSING = re.compile(
    "timed out|unable to contact|temporarily|connection refused|connect(ion)? failure|endpoint is not connected|"
    "zero bytes|standby mode|submit limit|MaxSubmit",
    re.IGNORECASE,
)
"""What SLURM's commands say when the same question may be answered later."""

_KEPT = {"SLURM_CONF", "SLURM_JWT", "SLURM_SACK_SOCKET"}
_DROPPED = ("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_", "SCONTROL_")


class Busy(UserError):
    """Passing trouble: SLURM does not answer or has no room, or another process submits for the setting."""


@dataclass(frozen=True)
class Job:
    """One job, or one element of an array."""

    array: str
    """Number of the job, or of the array."""
    element: int | None
    id: str
    state: str
    node: str
    reason: str
    script: Path

    @property
    def name(self) -> str:
        return self.array if self.element is None else f"{self.array}_{self.element}"

    @property
    def plan(self) -> Path:
        """The folder of the plan that its script belongs to."""
        return self.script.parent

    @property
    def is_gate(self) -> bool:
        return self.script.name == GATE

    @property
    def launch_failed(self) -> bool:
        """Whether a node could not start it, as where it cannot write the log."""
        return bool(re.search("launch ?fail", self.reason, re.IGNORECASE))

    @property
    def held(self) -> bool:
        """Whether it waits until somebody releases it."""
        if self.state in ("REQUEUE_HOLD", "SPECIAL_EXIT"):
            return True
        return self.state == "PENDING" and bool(re.search("[Hh]eld|^JobHold|NeverSatisfied", self.reason))

    @property
    def stuck(self) -> bool:
        """Whether it waits for anything but its turn."""
        return self.held or self.launch_failed or (self.state == "PENDING" and self.reason not in _USUAL)


def jobs(folder: Path, ended: bool = False, patience: float = PATIENCE) -> list[Job]:
    """The jobs of the plans in a folder, with `ended` also those that are over.

    Raises UserError where SLURM does not answer.
    """
    here, found = os.path.realpath(folder), []
    real_path = functools.lru_cache(os.path.realpath)
    options = ["-r", "-o", _FORMAT, *(["-t", "all"] if ended else [])]
    for line in _ask("squeue", "-h", "-a", *options, patience=patience).splitlines():
        fields = line.split("|", _FORMAT.count("|"))
        if "/plan_" not in line or len(fields) <= _FORMAT.count("|"):
            continue
        array, element, number, state, node, reason, script = fields
        job = Job(array, int(element) if element.isdecimal() else None, number, state, node, reason, Path(script))
        if real_path(job.plan.parent) == here:
            found.append(job)
    return found


def array_limit() -> int:
    """Elements that an array may have: the cluster's MaxArraySize, SLURM's default where it does not answer.

    Raises UserError where the cluster takes no arrays.
    """
    limit = _limit("MaxArraySize", 1001)
    if limit < 1:
        raise UserError("the cluster takes no arrays (its MaxArraySize is 0), and all work is submitted as arrays")
    return limit


def room() -> int:
    """How many more jobs the cluster holds under its MaxJobCount; a tenth is left to others.

    Raises UserError where SLURM does not answer, Busy where there is no room.
    """
    limit = _limit("MaxJobCount", 10000)
    held = len(_ask("squeue", "-h", "-a", "-r", "-t", "all", "-o", "%A").splitlines())
    found = (limit - held) * 9 // 10
    if found < 1:
        raise Busy(f"the cluster holds as many jobs as it takes ({limit}, MaxJobCount): try again later")
    return found


def _limit(key: str, default: int) -> int:
    try:
        config = _ask("scontrol", "show", "config")
    except UserError:
        return default
    match = re.search(rf"^{key}\s*=\s*(\d+)", config, re.MULTILINE)
    return int(match[1]) if match else default


def sbatch(script: Path, after: Sequence[str] = (), delay: int = 0) -> str:
    """Submit a script, to start once the jobs in `after` have ended in whatever way; returns the job's number.

    delay: seconds before which it does not start. Raises UserError with the cluster's own words where it refuses, Busy
    where the job may have been taken all the same.
    """
    options = ["--parsable"]
    if after:
        options.append(f"--dependency=afterany:{':'.join(after)}")
    if delay:
        options.append(f"--begin=now+{delay}")
    return _ask("sbatch", *options, str(script)).strip().split(";")[0]


def scancel(numbers: Sequence[str]) -> None:
    """Cancel jobs. Raises UserError."""
    _ask("scancel", *numbers)


def _ask(*command: str, patience: float = PATIENCE) -> str:
    """What a command of SLURM prints. Raises UserError, Busy."""
    # Without the user's defaults for SLURM's commands, and without a gate's own job, which would leak into what it
    # submits.
    environment = {key: value for key, value in os.environ.items() if key in _KEPT or not key.startswith(_DROPPED)}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=patience,
            env=environment,
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on the PATH: SLURM's commands are needed") from None
    except subprocess.TimeoutExpired:
        raise Busy(f"{command[0]} did not answer within {patience:g} s") from None
    if done.returncode:
        words = "; ".join(re.sub(r"^\w+: (error: )?", "", line) for line in done.stderr.splitlines() if line.strip())
        kind = Busy if _PASSING.search(words) else UserError
        raise kind(f"{command[0]} failed: {words or f'exit code {done.returncode}'}")
    return done.stdout
