"""The long form of the fault tests: `python -m tests.faults.long`, or with names of some of them. Prints a table.

A name may be followed by how much of it to do, as in `call:300`, where time is short.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults import flips, inject, kills, power
from tests.faults.stores import create, setting, workplace


def kill(folder: Path, count: int = 1000) -> str:
    """count: kills."""
    died = late = stores = 0
    for seed, begun in enumerate(range(0, count, 100)):
        (folder / str(seed)).mkdir()
        more = kills.kill_training(folder / str(seed), kills=min(100, count - begun), models=400, seed=seed)
        died, late, stores = (a + b for a, b in zip((died, late, stores), more, strict=True))
        print(f"{died:,} kills, {late:,} after a commit, {stores} stores", file=sys.stderr, flush=True)
    return f"{died:,} kills of `train` (kill -9, random moments), {late:,} after its first commit, over {stores} stores"


def call(folder: Path, count: int = 10**6) -> str:
    """count: points, drawn at random."""
    if not inject.available():
        return "skipped: strace is not installed, or not permitted here"
    found = inject.points(folder)
    seen = inject.inject(folder, inject.sample(found, count, seed=1))
    kinds = {text: sum(count for key, count in seen.items() if text in key.split()) for text in inject.FAULTS}
    calls = {text: sum(count for key, count in seen.items() if text in key.split()) for text in inject.CALLS}
    told = [", ".join(f"{count} {text}" for text, count in each.items()) for each in (kinds, calls)]
    return f"{seen.total():,} of {len(found):,} points: {told[0]}; {told[1]}"


def power_loss(folder: Path, count: int = 60) -> str:
    """count: disks after each event."""
    states, rows = power.power_loss(folder, each=count, seed=1)
    return f"{states:,} disks, {rows:,} completed rows on them"


def flip(folder: Path, count: int = 6000) -> str:
    """count: bits."""
    seen = flips.flip_bits(folder / "store", count=count, seed=1)
    return f"{sum(seen.values()):,} bits: " + ", ".join(f"{count:,} {kind}" for kind, count in seen.items())


def together(folder: Path, count: int = 20) -> str:
    """count: processes."""
    kills.train_together(folder, processes=count, models=400)
    merged = kills.merge_beside_training(folder, models=400)
    create(folder / "made-up", setting(models=kills.WRITERS_ROWS))
    kills.write_together(folder / "made-up", processes=count)
    trained = (
        f"{count} `train` processes on 416 rows, {count} writers on 204, a merge beside a `train` ({merged} of 416)"
    )
    return f"{trained}: every row once, byte-equal to one process alone"


def merge(folder: Path, count: int = 200) -> str:
    """count: kills."""
    calls, brought = kills.kill_merge(folder, kills=count)
    return f"{count} kills of `merge` (kill -9) over its {calls} calls, {brought} rows brought by then"


FORMS: dict[str, Callable[..., str]] = {
    "kill": kill,
    "call": call,
    "power": power_loss,
    "flip": flip,
    "together": together,
    "merge": merge,
}


def main() -> int:
    """Run the forms named on the command line, or all; a wrong or lost row ends it with an AssertionError."""
    print("| form | done, with 0 wrong rows accepted and 0 lost | seconds |\n|---|---|---|", flush=True)
    for argument in sys.argv[1:] or FORMS:
        name, _, count = argument.partition(":")
        started = time.monotonic()
        with workplace() as folder:
            told = FORMS[name](folder, *map(int, count.split()))
        print(f"| {name} | {told} | {time.monotonic() - started:,.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
