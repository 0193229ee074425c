"""Processes that end badly, or meet: kill -9 of real training, many processes on one store.

Children come from a server process that has imported torch already, so that hundreds of them start quickly.
"""

import contextlib
import filecmp
import io
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.launch.cli import main
from datamodels.train.exchange import merge
from datamodels.train.npy_file import HEADER_BYTES
from datamodels.train.store.journal import RECORD_BYTES
from datamodels.train.store.layout import Layout
from datamodels.train.store.store import Store
from datamodels.train.store.verify import verify
from tests.conftest import DIGITS
from tests.faults.stores import check, create, fill, first_salt, layout, result, setting, writing

SMALL = [
    "--eval_models=16",
    "--recipe.epochs=1",
    "--recipe.peak_epoch=0.5",
    "--recipe.width=4",
    "--recipe.group=8",
    "--data.test=60",
]

WRITERS_ROWS = 200

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "torch",
        "sklearn.datasets",
        "datamodels.launch.parser",
        "datamodels.launch.local",
        "datamodels.train.trainer.trainer",
        "datamodels.train.run_rows",
        "tests.faults.kills",
    ]
)


def command(name: str, root: Path, models: int, *options: str) -> list[str]:
    return [name, str(DIGITS), f"--root={root}", f"--models={models}", *SMALL, *options]


def _quiet(arguments: Sequence[str], begin: Barrier | None) -> None:
    if begin:
        begin.wait(300)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os._exit(main(arguments))


def _init(root: Path, models: int) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(command("init", root, models)) == 0


def start(arguments: Sequence[str], begin: Barrier | None = None) -> BaseProcess:
    process = _SERVER.Process(target=_quiet, args=(arguments, begin))
    process.start()
    return process


def ended(process: BaseProcess) -> int:
    """Wait for a process; its exit code."""
    process.join(300)
    assert process.exitcode is not None, "a process hangs"
    return process.exitcode


def kill_training(folder: Path, kills: int, models: int, seed: int) -> tuple[int, int, int]:
    """Kill `train` on digits at random moments until it has died `kills` times, each time judging what is left.

    Returns how often it was killed, how often of these after its first commit, and how many stores were finished on
    the way, all equal to an undisturbed one.
    """
    rng = random.Random(seed)
    for name in ("warm", "calm"):  # the first process waits for the server to start
        _init(folder / name, models)
        began = time.monotonic()
        assert ended(start(command("train", folder / name, models, "--workers=1"))) == 0
        whole = time.monotonic() - began
    times = Store.open(_place(folder / "calm")).states.time
    training = float(times.max() - times.min())
    died = late = stores = 0
    while died < kills:
        root = folder / f"stormy-{stores}"
        _init(root, models)
        code = -9
        while code:
            process = start(command("train", root, models, "--workers=1"))
            committed = False
            if died < kills:
                committed = _wait(rng, process, root, whole, training)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid or 0, signal.SIGKILL)
            code = ended(process)
            died += code == -9
            late += code == -9 and committed
            _judge(root, folder / "calm")
        _assert_equal(root, folder / "calm")
        stores += 1
    return died, late, stores


def _wait(rng: random.Random, process: BaseProcess, root: Path, whole: float, training: float) -> bool:
    """Until a random moment of a process: of its start, or mostly of its training; whether it has committed by then.

    On average it then has done an eighth of the whole training, so that a store sees many kills.
    """
    journals = _place(root).journals
    before = len(os.listdir(journals))
    if rng.random() < 0.2:
        process.join(rng.uniform(0.0, whole / 2))
        return len(os.listdir(journals)) > before
    while process.is_alive() and len(os.listdir(journals)) == before:
        process.join(0.001)
    process.join(rng.uniform(0.0, training / 4))
    return True


def _place(root: Path) -> Layout:
    return Layout(root, "digits", "50pct")


def _judge(root: Path, calm: Path) -> None:
    """Rows whose flag is up, and rows that the journals call done, are those of the undisturbed store."""
    place, other = _place(root), _place(calm)
    flags = np.fromfile(place.completed, np.uint8, offset=HEADER_BYTES) == 1
    store = Store.open(place)
    claimed = np.flatnonzero(flags | store.completed())
    for name in store.arrays:
        found, expected = (np.load(each.array(name), mmap_mode="r")[claimed] for each in (place, other))
        assert found.tobytes() == expected.tobytes(), f"{name}: wrong rows"
    finding = verify(store)
    assert finding.fine, (finding.reasons, finding.files)


def _assert_equal(root: Path, calm: Path) -> None:
    for path in [*_place(calm).data.glob("*.npy")]:
        assert filecmp.cmp(path, _place(root).data / path.name, shallow=False), f"{path.name} differs"


def train_together(folder: Path, processes: int, models: int) -> None:
    """Real training of one store by many processes at once gives the store that one process gives."""
    for name in ("alone", "together"):
        _init(folder / name, models)
    assert ended(start(command("train", folder / "alone", models, "--workers=1"))) == 0
    begin, train = _SERVER.Barrier(processes), command("train", folder / "together", models, "--workers=1")
    running = [start(train, begin) for _ in range(processes)]
    assert [ended(process) for process in running] == [0] * processes
    took_part = len(list(_place(folder / "together").journals.glob("*.bin")))
    assert took_part >= max(2, processes // 2), f"only {took_part} of {processes} processes did something"
    _assert_equal(folder / "together", folder / "alone")
    store = Store.open(_place(folder / "together"))
    assert verify(store).fine
    _assert_once(store)


def merge_beside_training(folder: Path, models: int) -> int:
    """Merge the store of `train_together` into one that is being trained; returns how many of its rows came from there.

    What is left out, because it is being trained, comes with the next merge, or from the training.
    """
    _init(folder / "beside", models)
    training = start(command("train", folder / "beside", models, "--workers=1"))
    while not os.listdir(_place(folder / "beside").journals):
        training.join(0.001)
    arguments = command("merge", folder / "beside", models)
    arguments.insert(2, str(folder / "alone"))
    with contextlib.redirect_stdout(io.StringIO()):  # here: a process would start too late
        while (code := main(arguments)) == 75:
            pass
    assert (code, ended(training)) == (0, 0)
    _assert_equal(folder / "beside", folder / "alone")
    store = Store.open(_place(folder / "beside"))
    assert verify(store).fine
    _assert_once(store)
    return sum("merged" in store.states.readers[journal].provenance for journal in store.states.journal)


def _assert_once(store: Store) -> None:
    records = sum(reader.path.stat().st_size - HEADER_BYTES for reader in store.states.readers) // RECORD_BYTES
    assert records == store.rows, "rows were done twice"


def _fill_alone(root: Path, begin: Barrier) -> None:
    begin.wait(300)
    store = Store.open(layout(root), setting(models=WRITERS_ROWS))
    with writing(store) as writer:
        while len(store.missing()):
            fill(store, writer)
            store.refresh()


def write_together(root: Path, processes: int) -> None:
    """Many writers of one store (made-up rows, created beforehand) until none is missing."""
    begin = _SERVER.Barrier(processes)
    running = [_SERVER.Process(target=_fill_alone, args=(root, begin)) for _ in range(processes)]
    for process in running:
        process.start()
    assert [ended(process) for process in running] == [0] * processes
    store = Store.open(layout(root), setting(models=WRITERS_ROWS))
    assert verify(store).fine
    assert store.completed().all()
    assert len(store.states.readers) >= max(2, processes // 2), "most processes did nothing"
    _assert_once(store)


def _merge_and_die(root: Path, sources: Sequence[Path], calls: "Synchronized[int]", last: int) -> None:
    """Merge, and count the calls that change the disk; at the last one, if there are so many, the process is killed."""

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.value += 1
            if calls.value == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in ("pwrite", "fdatasync", "fsync", "ftruncate", "link", "unlink"):
        setattr(os, name, counting(getattr(os, name)))
    merge(layout(root), setting(), sources, {}, lambda *told: None, lambda text: None)


def kill_merge(folder: Path, kills: int) -> tuple[int, int]:
    """Kill `merge` at moments spread over it, each time judging what is left and letting it go on.

    Returns how many calls that change the disk a merge makes, and how many rows the killed ones had brought.
    """
    sources = [folder / "one", folder / "two"]
    for root, groups in zip(sources, (range(3), range(1, 4)), strict=True):
        store = create(root)
        for group in groups:
            with writing(store, group=group) as writer, writer.leased(group):
                rows = range(4 * group, min(4 * group + 4, store.rows))
                writer.commit([result(store, row, first_salt(row)) for row in rows])

    def merged(root: Path, last: int) -> tuple[int, int]:
        calls = _SERVER.Value("i", 0)
        process = _SERVER.Process(target=_merge_and_die, args=(root, sources, calls, last))
        process.start()
        return ended(process), calls.value

    code, calls = merged(folder / "calm", 0)
    assert code == 0
    brought = 0
    for last in np.linspace(1, calls, kills).astype(int).tolist():
        root = folder / f"killed-{last}"
        assert merged(root, last)[0] == -9
        brought += check(root)
        merge(layout(root), setting(), sources, {}, lambda *told: None, lambda text: None)
        assert check(root) == 14
        for path in layout(folder / "calm").data.glob("*.npy"):
            assert filecmp.cmp(path, layout(root).data / path.name, shallow=False), f"{path.name} differs"
    return calls, brought
