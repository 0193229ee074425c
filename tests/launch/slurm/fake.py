"""A SLURM of four programs for the PATH: they take jobs, list and cancel them, and do what a test tells them to.

Run as a program, this file is one of them: `fake.py FOLDER sbatch OPTIONS SCRIPT`. What they share lies in FOLDER.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")

Step = tuple[str, ...]
"""("fail", words), ("take", script), or ("end", number)."""

TIMED_OUT: Step = ("fail", "Socket timed out on send/recv operation")
REFUSED: Step = ("fail", "Invalid partition name specified")


class FakeSlurm:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self) -> None:
        """Write the programs, for a PATH that begins with the folder."""
        self.folder.mkdir(exist_ok=True)
        for name in PROGRAMS:
            call = f'exec "{sys.executable}" -IS "{__file__}" "{self.folder}" {name} "$@"'
            (self.folder / name).write_text(f"#!/bin/sh\n{call}\n")
            (self.folder / name).chmod(0o755)
        self.configure("MaxArraySize = 4\nMaxJobCount = 1000\n")

    def configure(self, config: str) -> None:
        """What `scontrol show config` says."""
        (self.folder / "config").write_text(config)

    def trouble(self, program: str, *calls: list[Step]) -> None:
        """What a program does on its next calls, before it does anything else; an empty list is no trouble."""
        (self.folder / f"{program}.trouble").write_text(json.dumps(calls))

    def reasons(self, *reasons: str) -> None:
        """Why the next arrays wait, in turn; `None` lets one run, and `Priority` is usual."""
        (self.folder / "reasons").write_text(json.dumps(reasons))

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """Every job that was taken: number, script, options, state, reason, elements."""
        file = self.folder / "jobs"
        return json.loads(file.read_text()) if file.exists() else []

    def change(self, number: str, **values: Any) -> None:
        jobs = self.jobs
        jobs[int(number) - 1] |= values
        (self.folder / "jobs").write_text(json.dumps(jobs))

    def end(self, *numbers: str) -> None:
        """Let jobs be over; all of them by default."""
        for number in numbers or [job["number"] for job in self.jobs]:
            self.change(number, state="COMPLETED")

    def waiting(self, script: str = "") -> list[str]:
        """Numbers of the jobs that wait, of those with a script of this name."""
        waiting = [job for job in self.jobs if job["state"] == "PENDING"]
        return [job["number"] for job in waiting if Path(job["script"]).name.startswith(script)]

    def take(self, script: str, options: list[str] | None = None, cluster: str = "") -> str:
        """Take a job; an array that nothing keeps from starting has begun its log."""
        array = re.search(r"^#SBATCH --array=0-(\d+)", Path(script).read_text(), re.MULTILINE)
        if named := re.search(r"^#SBATCH --clusters=(.*,)?(.+)", Path(script).read_text(), re.MULTILINE):
            cluster = cluster or named[2]  # the last one has most room
        jobs, reason = self.jobs, "Priority"
        if array and (reasons := self._next("reasons")):
            reason = str(reasons)
        elif array:
            (Path(script).parent / "logs" / "begun").touch()
        job = {
            "number": str(len(jobs) + 1),
            "script": script,
            "options": options or [],
            "reason": reason,
            "cluster": cluster,
        }
        job |= {"state": "RUNNING" if reason == "None" else "PENDING"}
        job |= {"elements": list(range(int(array[1]) + 1)) if array else ["N/A"]}
        (self.folder / "jobs").write_text(json.dumps([*jobs, job]))
        return f"{job['number']};{cluster}" if cluster else str(job["number"])

    def _next(self, name: str) -> Any:
        file = self.folder / name
        first, *others = json.loads(file.read_text()) if file.exists() else [None]
        file.write_text(json.dumps(others or [None]))
        return first

    def call(self, program: str, options: list[str]) -> str:
        """What a program prints."""
        for action, what in self._next(f"{program}.trouble") or []:
            if action == "fail":
                sys.exit(f"{program}: error: {what}")
            (self.take if action == "take" else self.end)(what)
        clusters = [option.removeprefix("--clusters=") for option in options if option.startswith("--clusters=")]
        cluster = clusters[0] if clusters else ""
        if program == "scontrol":
            return (self.folder / "config").read_text()
        if program == "sbatch":
            return self.take(options[-1], options[:-1], cluster) + "\n"
        if program == "scancel":
            for number in filter(str.isdecimal, options):
                self.change(number, state="CANCELLED")
            return ""
        alive = ("PENDING", "RUNNING", "COMPLETING")
        line = "{0}\n" if "%A" in options else "{0}|{1}|{0}|{2}|n1|{3}|{4}\n"
        return "".join(
            line.format(job["number"], element, job["state"], job["reason"], job["script"])
            for job in self.jobs
            if job["cluster"] == cluster and ("all" in options or job["state"] in alive)
            for element in job["elements"]
        )


if __name__ == "__main__":
    sys.stdout.write(FakeSlurm(Path(sys.argv[1])).call(sys.argv[2], sys.argv[3:]))
