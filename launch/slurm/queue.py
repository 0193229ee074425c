"""Talking to SLURM: what is queued, what the cluster allows, submitting, cancelling. Only its own commands are used."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodels.train import UserError

PATIENCE = 300.0
"""Seconds that a question to SLURM may take."""

_FORMAT = "%F|%K|%A|%T|%N|%r|%o"

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
    def launch_failed(self) -> bool:
        """Whether a node could not start it, as where it cannot write the log."""
        return bool(re.search("launch ?fail", self.reason, re.IGNORECASE))

    @property
    def held(self) -> bool:
        """Whether it stays where it is until somebody does something about it."""
        if self.state in ("REQUEUE_HOLD", "SPECIAL_EXIT"):
            return True
        return self.state == "PENDING" and bool(re.search("[Hh]eld|^JobHold|NeverSatisfied", self.reason))

    @property
    def stuck(self) -> bool:
        """Whether it waits for anything but its turn."""
        return self.held or self.launch_failed or (self.state == "PENDING" and self.reason not in _USUAL)


@dataclass(frozen=True)
class Limits:
    """What the cluster takes."""

    array: int = 1001
    """Elements of an array; SLURM's MaxArraySize."""
    jobs: int = 10000
    """Jobs in all; SLURM's MaxJobCount."""


def require_sbatch() -> None:
    """Raises UserError where nothing can be submitted."""
    if not shutil.which("sbatch"):
        raise UserError("sbatch is not on the PATH: submit where SLURM is, or look at it with --dry-run")


def jobs(folder: Path, ended: bool = False, patience: float = PATIENCE) -> list[Job]:
    """The jobs whose script lies in the folder of a plan below `folder`, with `ended` also those that are over.

    Raises UserError where SLURM does not answer.
    """
    lines = _squeue(["-r", "-o", _FORMAT, *(["-t", "all"] if ended else [])], patience)
    found = [job for line in lines if "/plan_" in line and (job := _parse(line))]
    here = os.path.realpath(folder)
    places = {place: os.path.realpath(place.parent) for place in {job.script.parent for job in found}}
    return [job for job in found if places[job.script.parent] == here]


def _parse(line: str) -> Job | None:
    fields = line.split("|", _FORMAT.count("|"))
    if len(fields) <= _FORMAT.count("|"):
        return None
    array, element, number, state, node, reason, script = fields
    return Job(array, int(element) if element.isdecimal() else None, number, state, node, reason, Path(script))


def _squeue(options: Sequence[str], patience: float = PATIENCE) -> list[str]:
    return _ask(["squeue", "-h", "-a", *options], patience).splitlines()


def limits() -> Limits:
    """The cluster's limits, or SLURM's defaults where it does not answer. Raises UserError where it takes no array."""
    try:
        config = _ask(["scontrol", "show", "config"])
    except UserError:
        return Limits()
    found = dict(re.findall(r"^(MaxArraySize|MaxJobCount)\s*=\s*(\d+)", config, re.MULTILINE))
    limit = Limits(int(found.get("MaxArraySize", 1001)), int(found.get("MaxJobCount", 10000)))
    if limit.array < 1:
        raise UserError("the cluster takes no arrays (its MaxArraySize is 0), and all work is submitted as arrays")
    return limit


def room(limit: Limits) -> int:
    """How many more jobs the cluster holds; a tenth of that is left to others."""
    return max(0, (limit.jobs - len(_squeue(["-r", "-t", "all", "-o", "%A"]))) * 9 // 10)


def sbatch(script: Path, after: Sequence[str] = (), delay: int = 0) -> str:
    """Submit a script, to start once the jobs in `after` have ended in whatever way; returns the job's number.

    Raises UserError with the cluster's own words where it refuses, Busy where the job may have been taken all the same.
    """
    options = ["--parsable"]
    if after:
        options.append(f"--dependency=afterany:{':'.join(after)}")
    if delay:
        options.append(f"--begin=now+{delay}")
    return _ask(["sbatch", *options, str(script)]).strip().split(";")[0]


def cancel(numbers: Sequence[str]) -> None:
    """Raises UserError."""
    _ask(["scancel", *numbers])


def _environment() -> dict[str, str]:
    """Without the user's own defaults for SLURM's commands, and without a gate's own job, which would leak into the
    jobs that it submits."""
    return {key: value for key, value in os.environ.items() if key in _KEPT or not key.startswith(_DROPPED)}


def _ask(command: list[str], patience: float = PATIENCE) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patience,
            env=_environment(),
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on the PATH: this needs the commands of SLURM") from None
    except subprocess.TimeoutExpired:
        raise Busy(f"{command[0]} did not answer within {patience:g} s") from None
    if done.returncode:
        words = "; ".join(re.sub(r"^\w+: (error: )?", "", line) for line in done.stderr.splitlines() if line.strip())
        kind = Busy if _PASSING.search(words) else UserError
        raise kind(f"{command[0]} failed: {words or f'exit code {done.returncode}'}")
    return done.stdout
