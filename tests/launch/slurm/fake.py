"""A stand-in for SLURM's commands within one process: takes jobs, lists and cancels them, and fails when told to."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Trouble = Callable[["FakeSlurm"], None]


@dataclass
class Submitted:
    number: str
    script: Path
    options: list[str]
    state: str = "PENDING"
    reason: str = "Priority"
    elements: list[int | None] = field(default_factory=list)

    def lines(self) -> list[str]:
        rest = f"{self.number}|{self.state}|n1|{self.reason}|{self.script}"
        return [f"{self.number}|{'N/A' if element is None else element}|{rest}" for element in self.elements]


class FakeSlurm:
    """Put its `ask` in the place of `slurm_queue._ask`."""

    def __init__(self, config: str = "MaxArraySize = 4\nMaxJobCount = 1000\n") -> None:
        self.config = config
        self.jobs: list[Submitted] = []
        self.troubles: dict[str, list[Trouble | None]] = {}
        """For each command what it does on its next calls, before it does anything else."""

    def ask(self, command: list[str], patience: float = 0.0) -> str:
        name, *options = command
        if self.troubles.get(name) and (trouble := self.troubles[name].pop(0)):
            trouble(self)
        if name == "scontrol":
            return self.config
        return {"sbatch": self._take, "squeue": self._list, "scancel": self._cancel}[name](options)

    def take(self, script: Path, *options: str) -> str:
        number = str(len(self.jobs) + 1)
        array = re.search(r"^#SBATCH --array=0-(\d+)", script.read_text(), re.MULTILINE)
        elements = list(range(int(array[1]) + 1)) if array else [None]
        self.jobs.append(Submitted(number, script, list(options), elements=elements))
        return number

    def _take(self, options: list[str]) -> str:
        return self.take(Path(options[-1]), *options[:-1]) + "\n"

    def _list(self, options: list[str]) -> str:
        known = [job for job in self.jobs if "all" in options or job.state in ("PENDING", "RUNNING", "COMPLETING")]
        return "".join(f"{line}\n" for job in known for line in job.lines())

    def _cancel(self, options: list[str]) -> str:
        for job in self.jobs:
            if job.number in options:
                job.state = "CANCELLED"
        return ""

    def end(self) -> None:
        """Let all jobs be over."""
        for job in self.jobs:
            job.state = "COMPLETED"

    def waiting(self, script: str = "") -> list[str]:
        """Numbers of the jobs that wait, of those with a script of this name."""
        return [job.number for job in self.jobs if job.state == "PENDING" and job.script.name.startswith(script)]


def say(error: Exception) -> Trouble:
    """A command that says so and does nothing."""

    def trouble(slurm: FakeSlurm) -> None:
        raise error

    return trouble
