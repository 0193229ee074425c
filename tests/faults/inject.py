"""Faults of single system calls, by strace: the n-th call of a kind kills the process, fails, or writes nothing."""

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.conftest import PROJECT
from tests.faults.stores import check, check_end, script
from train.errors import UserError, WorkError

CALLS = ("pwrite64", "fdatasync", "fsync", "rename", "ftruncate", "fallocate")
FAULTS = {"KILL": "signal=KILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC", "short": "retval=9"}
"""`short`: the call says that it wrote 9 bytes, and wrote none."""

Point = tuple[str, int, str]
"""(system call, which one of them, fault)"""


def available() -> bool:
    """Whether strace works here."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode == 0


def points(folder: Path) -> list[Point]:
    """Every point of the script at which a fault can strike."""
    _run(folder / "clean", folder / "log", ",".join(CALLS), None)
    calls = Counter(re.findall(r"^\d+ +(\w+)\(", (folder / "log").read_text(), re.MULTILINE))
    return [
        (call, number, fault)
        for call in CALLS
        for number in range(1, calls[call] + 1)
        for fault in FAULTS
        if fault != "short" or call == "pwrite64"
    ]


def inject(folder: Path, chosen: list[Point]) -> Counter[str]:
    """Run the script with each fault, judge what it left, and end it; returns how many runs of each kind were seen."""
    seen: Counter[str] = Counter()
    for call, number, fault in chosen:
        root = folder / "root"
        done = _run(root, folder / "log", call, f"{call}:{FAULTS[fault]}:when={number}")
        assert fault == "KILL" or "(INJECTED)" in (folder / "log").read_text(), (call, number, fault)
        _judge(done, fault, root)
        check(root, _acknowledged(done.stdout))
        check_end(root)
        shutil.rmtree(root, ignore_errors=True)
        seen[fault] += 1
    return seen


def sample(found: list[Point], count: int, seed: int) -> list[Point]:
    return random.Random(seed).sample(found, min(count, len(found)))


def _run(root: Path, log: Path, calls: str, injection: str | None) -> subprocess.CompletedProcess[str]:
    command = ["strace", "-f", "-o", str(log), "-e", f"trace={calls}"]
    if injection:
        command += ["-e", f"inject={injection}"]
    command += [sys.executable, "-B", "-m", "tests.faults.inject", str(root)]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=120)


def _judge(done: subprocess.CompletedProcess[str], fault: str, root: Path) -> None:
    """A fault ends in a kill, in nothing at all (where the call did not matter), or in one line that names a file."""
    if fault == "KILL":
        assert done.returncode in (-9, 137), done
    elif done.returncode:
        assert done.returncode in (1, 2), done
        assert re.fullmatch(rf"error: [^\n]*{re.escape(str(root))}[^\n]*\n", done.stderr), done.stderr
        if re.match("error: cannot (write|make|record) row", done.stderr):
            assert re.search(r" row \d+ (of|in) ", done.stderr), done.stderr
    else:
        assert done.stderr == ""


def _acknowledged(text: str) -> dict[int, int]:
    return {int(row): int(generation) for row, generation in (line.split() for line in text.splitlines())}


def main() -> int:
    """The script in a process of its own; each commit that returned is told on standard output."""
    try:
        script(Path(sys.argv[1]), lambda row, generation: print(row, generation, flush=True))
    except (UserError, WorkError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
