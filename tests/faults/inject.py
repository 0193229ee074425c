"""Faults of single system calls, by strace: the n-th call of a kind kills the process, fails, or writes nothing."""

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datamodels.train.errors import UserError, WorkError
from tests.faults.power import one_after_the_other
from tests.faults.stores import check, check_end, script

CALLS = ("pwrite64", "fdatasync", "fsync", "rename", "link", "unlink", "ftruncate", "fallocate")
FAULTS = {"KILL": "signal=KILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC", "short": "retval=9"}
"""`short`: the call says that it wrote 9 bytes, and wrote none."""

PROJECT = Path(__file__).parents[2]

Point = tuple[str, int, str, bool]
"""(system call, which one of them, fault, whether space is reserved at `init`)"""


def available() -> bool:
    """Whether strace works here."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode == 0


def points(folder: Path) -> list[Point]:
    """Every point of the script at which a fault can strike: all of it with space reserved, and what differs without.

    Fails where the script makes no call of some kind.
    """
    found = []
    for reserve, kinds in ((True, CALLS), (False, ("ftruncate",))):
        root = folder / f"clean-{reserve}"
        done = _run(root, folder / "log", ",".join(CALLS), None, reserve)
        assert done.returncode == 0, done.stderr
        calls = Counter(re.findall(r"^\d+ +(\w+)\(", (folder / "log").read_text(), re.MULTILINE))
        found += [
            (call, number, fault, reserve)
            for call in kinds
            for number in range(1, calls[call] + 1)
            for fault in FAULTS
            if fault != "short" or call == "pwrite64"
        ]
        shutil.rmtree(root)
    lacking = set(CALLS) - {call for call, *_ in found}
    assert not lacking, f"no fault can strike {lacking}"
    return found


def inject(folder: Path, chosen: list[Point]) -> Counter[str]:
    """Run the script with each fault, judge what it left, and end it; returns how many runs of each kind were seen."""
    seen: Counter[str] = Counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done in [pool.submit(_strike, folder, point) for point in chosen]:
            call, _, fault, _ = done.result()
            seen[f"{call} {fault}"] += 1
            if seen.total() % 50 == 0:
                print(f"{seen.total()} of {len(chosen)} points", file=sys.stderr, flush=True)
    return seen


def _strike(folder: Path, point: Point) -> Point:
    call, number, fault, reserve = point
    root = folder / f"{call}-{number}-{fault}-{reserve}" / "root"
    root.parent.mkdir()
    log = root.parent / "log"
    done = _run(root, log, call, f"{call}:{FAULTS[fault]}:when={number}", reserve)
    assert fault == "KILL" or "(INJECTED)" in log.read_text(), point
    _judge(done, fault, root)
    check(root, _acknowledged(done.stdout))
    check_end(root)
    shutil.rmtree(root.parent)
    return point


def sample(found: list[Point], count: int, seed: int) -> list[Point]:
    return random.Random(seed).sample(found, min(count, len(found)))


def _run(root: Path, log: Path, calls: str, injection: str | None, reserve: bool) -> subprocess.CompletedProcess[str]:
    command = ["strace", "-f", "-o", str(log), "-e", f"trace={calls}"]
    if injection:
        command += ["-e", f"inject={injection}"]
    command += [sys.executable, "-B", "-m", "tests.faults.inject", str(root), str(int(reserve))]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=120)


def _judge(done: subprocess.CompletedProcess[str], fault: str, root: Path) -> None:
    """A fault ends in a kill, in nothing at all (where the call did not matter), or in one line that names the file,
    and the row wherever rows are what was being written.
    """
    if fault == "KILL":
        assert done.returncode in (-9, 137), done
    elif done.returncode:
        assert done.returncode in (1, 2), done
        whole = r"cannot (create|lengthen|replace|write to|write the header of) "
        part = r"cannot (write|record|make|read)( row| rows) \d+( to \d+)? ?(of|in|durable)? ?"
        assert re.fullmatch(rf"error: ({whole}|{part}){re.escape(str(root.parent))}[^\n]*\n", done.stderr), done.stderr
    else:
        assert done.stderr == ""


def _acknowledged(text: str) -> dict[int, int]:
    return {int(row): int(generation) for row, generation in (line.split() for line in text.splitlines())}


def main() -> int:
    """The script in a process of its own; each commit that returned is told on standard output.

    It has one thread: strace counts the calls of each by themselves.
    """
    try:
        with one_after_the_other():
            script(Path(sys.argv[1]), lambda row, done: print(row, done, flush=True), reserve=sys.argv[2] == "1")
    except (UserError, WorkError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
