"""Talking to SLURM: what is queued, what the cluster allows, submitting, cancelling. Only its own commands are used.

A job on a cluster that was chosen by name is written as `sbatch --parsable` does, `12;cluster`. What a site's wrappers
print beside the answers of SLURM's commands is passed over.
"""

import functools
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodels.launch.slurm.tasks import GATE, clusters_of
from datamodels.train import UserError

PATIENCE = 300.0
"""Seconds that a question to SLURM may take."""

_FORMAT = "%F|%K|%A|%T|%N|%r|%o"
"""Array, element, job, state, node, reason and script, as squeue prints them."""

_LINE = re.compile(r"(\d+)\|(\d+|N/A)\|(\d+)\|([A-Z_]+)\|([^|]*)\|([^|]*)\|(.*/plan_\d+/[^/]+)")
"""Such a line of a plan's job."""

_USUAL = {
    *("", "None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit"),
    *("Prolog", "Cleaning", "WaitingForScheduling"),
}
"""Reasons for which a job waits in a queue that moves."""

_PASSING = re.compile(
    "timed out|unable to contact|temporarily|connection refused|connect(ion)? failure|endpoint is not connected|"
    "zero bytes|standby mode|can't be reached now",
    re.IGNORECASE,
)
"""What SLURM's commands say when the same question may be answered later."""

_KEPT = {"SLURM_CONF", "SLURM_JWT", "SLURM_SACK_SOCKET"}
_DROPPED = ("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_", "SCONTROL_")


class Busy(UserError):
    """Passing trouble: SLURM does not answer or has no room, or another process submits for the setting."""


class Full(Busy):
    """No room for what was to be submitted, and none of it was taken."""


@dataclass(frozen=True)
class Job:
    """One job, or one element of an array."""

    array: str
    """Number of the job, or of the array, with the cluster."""
    element: int | None
    id: str
    state: str
    node: str
    reason: str
    script: Path

    @property
    def name(self) -> str:
        return self.array if self.element is None else re.sub(r"^\d+", rf"\g<0>_{self.element}", self.array)

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


def cluster_of(job: str) -> str | None:
    """The cluster in `12;cluster`; None where none was chosen by name."""
    return job.partition(";")[2] or None


def jobs(
    folder: Path, ended: bool = False, patience: float = PATIENCE, clusters: Sequence[str | None] = ()
) -> list[Job]:
    """The jobs of the plans in a folder, with `ended` also those that are over.

    They are looked for where any were submitted, and on `clusters`. Raises UserError where SLURM does not answer.
    """
    here, found = os.path.realpath(folder), []
    real_path = functools.lru_cache(os.path.realpath)
    options = ["-r", "-o", _FORMAT, *(["-t", "all"] if ended else [])]
    for cluster in dict.fromkeys([*clusters_of(folder), *clusters]):
        for line in _ask("squeue", "-h", "-a", *options, cluster=cluster, patience=patience).splitlines():
            if (match := _LINE.fullmatch(line)) and real_path(Path(match[7]).parent.parent) == here:
                array, element, number, state, node, reason, script = match.groups()
                name = f"{array};{cluster}" if cluster else array
                place = int(element) if element.isdecimal() else None
                found.append(Job(name, place, number, state, node, reason, Path(script)))
    return found


def array_limit(clusters: Sequence[str | None] = (None,)) -> int:
    """Elements that an array may have: the clusters' MaxArraySize, SLURM's default where they do not answer.

    Raises UserError where a cluster takes no arrays.
    """
    limit = min(_limit("MaxArraySize", 1001, cluster) for cluster in clusters)
    if limit < 1:
        raise UserError("the cluster takes no arrays (its MaxArraySize is 0), and all work is submitted as arrays")
    return limit


def room(clusters: Sequence[str | None] = (None,)) -> int:
    """How many more jobs each of the clusters holds under its MaxJobCount; a tenth is left to others.

    Raises UserError where SLURM does not answer, Full where there is no room.
    """
    rooms = []
    for cluster in clusters:
        limit = _limit("MaxJobCount", 10000, cluster)
        lines = _ask("squeue", "-h", "-a", "-r", "-t", "all", "-o", "%A", cluster=cluster).splitlines()
        found = (limit - sum(line.isdecimal() for line in lines)) * 9 // 10
        if found < 1:
            raise Full(f"the cluster holds as many jobs as it takes ({limit}, MaxJobCount): try again later")
        rooms.append(found)
    return min(rooms)


def _limit(key: str, default: int, cluster: str | None) -> int:
    try:
        config = _ask("scontrol", "show", "config", cluster=cluster)
    except UserError:
        return default
    match = re.search(rf"^{key}\s*=\s*(\d+)", config, re.MULTILINE)
    return int(match[1]) if match else default


def version(patience: float = 20.0) -> dict[str, str] | None:
    """SLURM's version, the cluster and two of its limits, as its controller says; None where there is none set up.

    Raises UserError where it does not answer.
    """
    if not shutil.which("scontrol"):
        return None
    try:
        config = _ask("scontrol", "show", "config", patience=patience)
    except UserError as error:
        if "configuration source" in str(error):  # its commands are installed, and no cluster is configured
            return None
        raise
    keys = ("SLURM_VERSION", "ClusterName", "MaxArraySize", "MaxJobCount")
    return dict(re.findall(rf"^({'|'.join(keys)})\s*=\s*(\S+)", config, re.MULTILINE))


def sbatch(script: Path, after: Sequence[str] = (), delay: int = 0, cluster: str | None = None) -> str:
    """Submit a script, to start once the jobs in `after` have ended in whatever way; returns the job's number.

    delay: seconds before which it does not start; cluster: instead of those that the script names. Raises UserError
    with the cluster's own words where it refuses, Busy where the job may have been taken all the same.
    """
    options = ["--parsable"]
    if after:
        options.append(f"--dependency=afterany:{':'.join(job.partition(';')[0] for job in after)}")
    if delay:
        options.append(f"--begin=now+{delay}")
    answer = _ask("sbatch", *options, str(script), cluster=cluster)
    if not (numbers := re.findall(r"^\d+(?:;\S+)?$", answer, re.MULTILINE)):
        raise Busy(f"sbatch printed no number of a job, but {answer.strip()!r}")
    return str(numbers[-1])


def scancel(jobs: Sequence[str]) -> None:
    """Cancel jobs. Raises UserError."""
    for cluster, numbers in _by_cluster(jobs):
        _ask("scancel", *numbers, cluster=cluster)


def scancel_words(jobs: Sequence[str]) -> str:
    """The commands that cancel jobs, for people."""
    words = ([*(["-M", cluster] if cluster else []), *numbers] for cluster, numbers in _by_cluster(jobs))
    return "; ".join(shlex.join(["scancel", *given]) for given in words)


def _by_cluster(jobs: Sequence[str]) -> Iterator[tuple[str | None, list[str]]]:
    for cluster in dict.fromkeys(map(cluster_of, jobs)):
        yield cluster, [job.partition(";")[0] for job in jobs if cluster_of(job) == cluster]


def _ask(program: str, *options: str, cluster: str | None = None, patience: float = PATIENCE) -> str:
    """What a command of SLURM prints. Raises UserError, Busy."""
    command = [program, *([f"--clusters={cluster}"] if cluster else []), *options]
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
        raise UserError(f"{program} is not on the PATH: SLURM's commands are needed") from None
    except subprocess.TimeoutExpired:
        raise Busy(f"{program} did not answer within {patience:g} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        for sign in (f"{program}: fatal:", f"{program}: "):  # what tells most
            lines = [line for line in lines if line.startswith(sign)] or lines
        words = "; ".join(re.sub(r"^\w+: (error: |fatal: )?", "", line) for line in lines)
        limit = re.search(r"\b(Assoc|QOS)\w+", words)  # its name, in newer versions
        if "job submit limit" in words and (not limit or "Submit" in limit[0]):
            raise Full(f"{program} failed: {words}: set slurm.queued to how many jobs may be queued at a time")
        kind = Busy if _PASSING.search(words) else UserError
        raise kind(f"{program} failed: {words or f'exit code {done.returncode}'}")
    return done.stdout
