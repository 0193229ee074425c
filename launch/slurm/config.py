"""What jobs request from a SLURM cluster: the dataclasses that `--slurm FILE` and `--slurm.KEY VALUE` fill in."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from datamodels.train import Setting, UserError, refuse_null, shown


def _require(ok: bool, key: str, found: object, expected: str) -> None:
    if not ok:
        raise UserError(f"slurm.{key} is {shown(found)}, expected {expected}")


def _require_line(key: str, text: str | None) -> None:
    _require(not text or text.isprintable(), key, text, "one line of printable characters")


def seconds_of(time: str) -> float | None:
    """SLURM's `minutes`, `M:S`, `H:M:S`, `D-H`, `D-H:M` or `D-H:M:S` in seconds, None for anything else.

    Infinity for `UNLIMITED`, `INFINITE`, -1, and for 0, which SLURM takes for no limit.
    """
    if time.upper() in ("UNLIMITED", "INFINITE", "-1"):
        return math.inf
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time, re.ASCII)
    if not match:
        return None
    days, *numbers = (None if text is None else int(text) for text in match.groups())
    given = [number for number in numbers if number is not None]
    begins_with_minutes = days is None and len(given) < 3
    hours, minutes, seconds = ([0, *given, 0] if begins_with_minutes else [*given, 0, 0])[:3]
    return 86400 * (days or 0) + 3600 * hours + 60 * minutes + seconds or math.inf


_CLUSTERS = re.compile("(--clusters?[= ]|-M[= ]?)")


def _check_job(prefix: str, job: "Slurm | After") -> None:
    _require(job.cpus >= 1, f"{prefix}cpus", job.cpus, "at least 1")
    is_limit = seconds_of(job.time) is not None
    _require(is_limit, f"{prefix}time", job.time, "a time limit of SLURM's, such as '4:00:00' or UNLIMITED")
    is_size = job.memory is None or bool(re.fullmatch(r"\d+([KMGT]B?)?", job.memory, re.ASCII | re.IGNORECASE))
    _require(is_size, f"{prefix}memory", job.memory, "a size such as 8G")
    _require_line(f"{prefix}partition", job.partition)
    for line in job.extra:
        _require_line(f"{prefix}extra", line)
        _require(line.startswith("-"), f"{prefix}extra", line, "an option of sbatch, such as --exclusive")
        is_ours = line.startswith(("--array", "-a", "--wrap"))
        _require(not is_ours, f"{prefix}extra", line, "no option that replaces ours")
        _require(not _CLUSTERS.match(line), f"{prefix}extra", line, "the clusters of all jobs as slurm.clusters")


@dataclass
class After:
    """The jobs that do not train: gates, fit, eval and report. They use CPUs alone."""

    partition: str | None = None
    """Partition; null for the one of the training."""
    time: str = "4:00:00"
    """Time limit of each."""
    cpus: int = 1
    """CPUs of each."""
    memory: str | None = None
    """Memory of each; null leaves it to the cluster."""
    extra: list[str] = field(default_factory=list)
    """More options of sbatch for each."""
    targets: int = 2560
    """Targets that one element of the fit's array fits. Each element reads all masks."""

    def __post_init__(self) -> None:
        _check_job("after.", self)
        _require(self.targets >= 1, "after.targets", self.targets, "at least 1")


@dataclass
class Slurm:
    """The cluster."""

    partition: str | None = None
    """Partition; null for the cluster's default."""
    account: str | None = None
    """Account; null for the user's default."""
    clusters: str | None = None
    """Cluster of all jobs, or several, separated by commas, of which SLURM chooses one for the jobs submitted together;
    null for SLURM_CLUSTERS of the environment, or else the cluster that this machine belongs to."""
    time: str = "4:00:00"
    """Time limit of a training task."""
    cpus: int = 1
    """CPUs of a training task."""
    memory: str | None = None
    """Memory of a training task; null leaves it to the cluster."""
    gpus: int | None = None
    """GPUs of a training task; null for 1 where recipe.device is cuda, and none otherwise."""
    workers: int | None = None
    """Groups of rows in training at once on a GPU; null for 1. Without GPUs, cpus / recipe.threads processes train one
    each."""
    minutes: float = 30.0
    """Minutes of work that a task gets rows for, where the rate is known."""
    rows_per_hour: float | None = None
    """Rows that one task trains in an hour; null takes it from the rows that are done."""
    rows: int | None = None
    """Rows of a task; null for `minutes` of them, or 256 where no rate is known."""
    at_once: int | None = 100
    """Training tasks that run at the same time; null for no limit."""
    queued: int | None = None
    """Jobs of the setting that wait or run at a time, gates included, where the cluster limits how many a user may
    submit; null for no limit."""
    signal: int = 60
    """Seconds before the time limit at which a task is told to stop and requeues itself."""
    requeues: int = 10
    """Times that a task requeues itself."""
    rounds: int = 5
    """Times that what an array left undone is submitted again without a row (or piece of the fit) getting done."""
    price: float | None = None
    """Price of a GPU for an hour (of a CPU where no GPU is asked for), for the dry run."""
    name: str | None = None
    """Name of the jobs; null for `datamodels-{dataset}-{pct}pct`."""
    extra: list[str] = field(default_factory=list)
    """More options of sbatch for the training, each as in `--constraint=a100`; `after.extra` has those of the rest."""
    python: str | None = None
    """Command that starts Python in training, fit, evaluation and report, as in `apptainer exec --nv image.sif python`;
    null for the Python that submits, which gates use always."""
    setup: list[str] = field(default_factory=list)
    """Shell commands that each job runs first, such as `module load cuda`."""
    after: After = field(default_factory=After)

    def __post_init__(self) -> None:
        for line in [line for line in self.extra if _CLUSTERS.match(line)]:
            self.extra, named = [other for other in self.extra if other != line], _CLUSTERS.sub("", line)
            _require(self.clusters in (None, named), "extra", line, f"slurm.clusters, {self.clusters!r}")
            self.clusters = named
        _check_job("", self)
        is_list = self.clusters is None or bool(re.fullmatch(r"[\w.-]+(,[\w.-]+)*", self.clusters))
        _require(is_list and self.clusters != "all", "clusters", self.clusters, "names of clusters, as in a,b")
        for key in ("account", "name", "python"):
            _require_line(key, getattr(self, key))
        for key in ("workers", "rows", "at_once"):
            value = getattr(self, key)
            _require(value is None or value >= 1, key, value, "at least 1, or null")
        for key in ("gpus", "signal", "requeues", "rounds"):
            value = getattr(self, key)
            _require(value is None or value >= 0, key, value, "at least 0")
        _require(self.queued is None or self.queued >= 3, "queued", self.queued, "at least 3: a task and two gates")
        for key in ("minutes", "rows_per_hour", "price"):
            value = getattr(self, key)
            _require(value is None or (math.isfinite(value) and value > 0), key, value, "a finite number above 0")
        limit = seconds_of(self.time) or 0
        _require(self.signal < limit, "signal", self.signal, f"less than the time limit, {limit} s")

    @property
    def cluster_names(self) -> list[str | None]:
        """The clusters to submit to; None stands for the one that this machine belongs to."""
        return [*self.clusters.split(",")] if self.clusters else [None]

    def room(self, queued: int) -> int | None:
        """How many more jobs the setting may have beside those that are queued; None for any number."""
        return max(0, self.queued - queued) if self.queued else None

    def gpus_for(self, setting: Setting) -> int:
        """GPUs that a training task asks for."""
        return self.gpus if self.gpus is not None else int(setting.recipe.device == "cuda")

    def workers_for(self, setting: Setting) -> int:
        """Groups of rows that a training task has in training at a time."""
        gpus = self.gpus_for(setting)
        return gpus * (self.workers or 1) if gpus else max(1, self.cpus // setting.recipe.threads)


TEXT_KEYS = frozenset(key.name for kind in (Slurm, After) for key in fields(kind) if key.type in (str, str | None))
"""Keys whose values are text as it is written in a cluster file: YAML takes an unquoted 4:00:00 for 14400."""


def slurm_from(content: Mapping[str, Any]) -> Slurm:
    """The Slurm that a parser, or `dataclasses.asdict`, made these values of. Raises UserError."""
    _require(isinstance(content["after"], dict), "after", content["after"], "keys and values")
    refuse_null(Slurm, content, "slurm.")
    refuse_null(After, content["after"], "slurm.after.")
    ours, after = (
        {
            field.name: given[field.name] for field in fields(kind) if field.name in given
        }  # a parser adds keys of its own
        for kind, given in ((Slurm, content), (After, content["after"]))
    )
    return Slurm(**{**ours, "after": After(**after)})
