"""The long form of the fault tests: `python -m tests.faults.long`, or with names of some of them. Prints a table."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults import flips, inject, kills, power
from tests.faults.stores import create, setting, workplace


def kill(folder: Path) -> str:
    died = late = stores = 0
    for seed in range(10):
        (folder / str(seed)).mkdir()
        more = kills.kill_training(folder / str(seed), kills=100, models=400, seed=seed)
        died, late, stores = (a + b for a, b in zip((died, late, stores), more, strict=True))
        print(f"{died:,} kills, {late:,} after a commit, {stores} stores", file=sys.stderr, flush=True)
    return f"{died:,} kills of `train` (kill -9, random moments), {late:,} after its first commit, over {stores} stores"


def call(folder: Path) -> str:
    if not inject.available():
        return "skipped: strace is not installed, or not permitted here"
    seen = inject.inject(folder, inject.points(folder))
    kinds = {text: sum(count for key, count in seen.items() if text in key.split()) for text in inject.FAULTS}
    calls = {text: sum(count for key, count in seen.items() if text in key.split()) for text in inject.CALLS}
    told = [", ".join(f"{count} {text}" for text, count in each.items()) for each in (kinds, calls)]
    return f"{seen.total():,} points: {told[0]}; {told[1]}"


def power_loss(folder: Path) -> str:
    states, rows = power.power_loss(folder, each=60, seed=1)
    return f"{states:,} disks, {rows:,} completed rows on them"


def flip(folder: Path) -> str:
    seen = flips.flip_bits(folder / "store", count=6000, seed=1)
    return f"{sum(seen.values()):,} bits: " + ", ".join(f"{count:,} {kind}" for kind, count in seen.items())


def together(folder: Path) -> str:
    kills.train_together(folder, processes=20, models=400)
    create(folder / "made-up", setting(models=kills.WRITERS_ROWS))
    kills.write_together(folder / "made-up", processes=20)
    return "20 `train` processes on 416 rows, 20 writers on 204: every row once, byte-equal to one process alone"


FORMS: dict[str, Callable[[Path], str]] = {
    "kill": kill,
    "call": call,
    "power": power_loss,
    "flip": flip,
    "together": together,
}


def main() -> int:
    """Run the forms named on the command line, or all; a wrong or lost row ends it with an AssertionError."""
    print("| form | done, with 0 wrong rows accepted and 0 lost | seconds |\n|---|---|---|", flush=True)
    for name in sys.argv[1:] or FORMS:
        started = time.monotonic()
        with workplace() as folder:
            told = FORMS[name](folder)
        print(f"| {name} | {told} | {time.monotonic() - started:,.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
