"""Speed of the store against plain peers: commit, verify, masks; and a store of 1,510,000 rows."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from datamodels.train.config import Outputs, Recipe, Setting
from datamodels.train.outputs import Declared, image_outputs
from datamodels.train.run_rows import train_rows
from datamodels.train.store.create import create_store
from datamodels.train.store.journal import RECORD, JournalWriter, Kind, encode_header
from datamodels.train.store.layout import Layout
from datamodels.train.store.row_state import RowStates
from datamodels.train.store.store import Store
from datamodels.train.store.verify import is_finite, verify
from datamodels.train.store.writer import RowResult, Writer

PROJECT = Path(__file__).parent.parent
COMMITS = 40


def make(root: Path, setting: Setting, n_train: int, n_test: int) -> Store:
    outputs = image_outputs(setting.outputs, n_train, n_test, 10)
    data = Declared(n_train, n_test, tuple("0123456789"), outputs, "0" * 64, "nowhere")
    layout = Layout(root, setting.dataset, setting.file_tag)
    return create_store(layout, setting, data, lambda text: None)


def seconds(work: Callable[[], object], times: int = 5) -> float:
    """CPU seconds, the median of several runs: what is timed so never waits for a disk, but may for other processes."""
    taken = []
    for _ in range(times):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def commits(folder: Path) -> Store:
    """A CIFAR row with logits, 1.37 MB: Writer.commit against one plain pwrite and fdatasync of as many bytes."""
    setting = Setting(models=COMMITS, eval_models=0, outputs=Outputs(train_logits=True, test_logits=True))
    store = make(folder, setting, 50_000, 10_000)
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(array.shape[1:]).astype(array.dtype) for name, array in store.arrays.items()}
    size = sum(array.nbytes for array in arrays.values())
    content = rng.bytes(size)
    fd = os.open(folder / "plain", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, COMMITS * size)
    os.fsync(fd)
    writer = Writer(store, {})
    ours, plain = [], []
    for row in range(COMMITS):
        result = RowResult(row, {**arrays, "train_masks": store.seeded_masks[row]}, 1.0, 0.5, 0.5)
        with writer.leased(row):
            started = time.perf_counter()
            writer.commit([result])
            ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        os.pwrite(fd, content, row * size)
        os.fdatasync(fd)
        plain.append(time.perf_counter() - started)
    writer.close()
    a, b = statistics.median(ours) * 1e3, statistics.median(plain) * 1e3
    print(f"commit of {size / 1e6:.2f} MB: {a:.1f} ms; plain pwrite + fdatasync {b:.1f} ms; ratio {a / b:.2f}")
    return store


def overlapping(folder: Path) -> None:
    """What commits add to training, which goes on meanwhile: a stand-in for a GPU takes 0.3 s a CIFAR row."""
    setting = Setting(models=20, eval_models=0, outputs=Outputs(train_logits=True, test_logits=True))
    store = make(folder, setting, 50_000, 10_000)
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(array.shape[1:]).astype(array.dtype) for name, array in store.arrays.items()}
    results = [RowResult(row, {**arrays, "train_masks": store.seeded_masks[row]}, 1, 0.5, 0.5) for row in range(20)]

    def trainer(group: int, stop: Callable[[], bool]) -> list[RowResult]:
        time.sleep(0.3)
        return results[group : group + 1]

    writer = Writer(store, {})
    started = time.perf_counter()
    train_rows(store, writer, cast(Any, trainer), range(store.rows), lambda: False, lambda rows: None)
    added = (time.perf_counter() - started) / 20 - 0.3
    writer.close()
    print(f"committed while the next row trains: {added * 1e3:.1f} ms more a row")


def verifying(store: Store) -> None:
    """Checksums and finiteness of rows in the page cache on one core, and the masks, against zlib.crc32 alone."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    store.refresh()
    names = [name for name in store.arrays if name != "train_masks"]
    size = sum(array.bytes for array in store.arrays.values())

    def ours() -> None:
        for row in range(store.rows):
            for name in names:
                content = store.read(name, row, row + 1)
                assert not store.mismatches(name, row, content).any()
                assert is_finite(content)

    def plain() -> None:
        for row in range(store.rows):
            for name in names:
                zlib.crc32(store.read(name, row, row + 1).data)

    a, b = seconds(ours), seconds(plain)
    print(f"checksum + finiteness: {size / a / 1e6:,.0f} MB/s on one core; read + crc32 {size / b / 1e6:,.0f} MB/s")
    print(f"  ratio {a / b:.2f}")
    c = seconds(lambda: [store.seeded_masks[row] for row in range(store.rows)]) / store.rows * 1e3
    print(f"mask of a CIFAR row: {c:.2f} ms")
    whole = seconds(lambda: verify(store), 3)
    print(f"verify, everything: {size / whole / 1e6:,.0f} MB/s on one core")


def scale(folder: Path) -> None:
    """1,510,000 rows in the manifest, sparse files; empty, then with every row recorded, then with 5,000 journals."""
    setting = Setting(
        dataset="digits",
        models=1_500_000,
        eval_models=10_000,
        recipe=Recipe(network="convnet", group=8),
        outputs=Outputs(preallocate=False),
    )
    store = make(folder, setting, 10, 5)

    def reopen() -> Store:
        return Store.open(store.layout)

    config = folder / "big.yaml"
    config.write_text(
        "dataset: digits\nmodels: 1500000\neval_models: 10000\nrecipe: {network: convnet, group: 8}\n"
        "outputs: {preallocate: false}\n"
    )
    print(f"status of {store.rows:,} empty rows: {status(config, folder)}")
    print(f"  missing rows found in {seconds(store.missing):.3f} s, opened in {seconds(reopen):.3f} s")
    records = np.zeros(store.rows, RECORD)
    records["row"], records["time"], records["kind"] = np.arange(store.rows), time.time(), Kind.DONE
    JournalWriter(store.layout.journals, {"store": store.manifest.id}).append(records)
    reopen()  # raises the flags
    print(f"status with all rows done: {status(config, folder)}; opened in {seconds(reopen):.3f} s")
    writer = Writer(reopen(), {})
    started = time.perf_counter()
    writer.invalidate(range(20_000))
    print(f"20,000 rows invalidated in {time.perf_counter() - started:.2f} s")
    writer.close()
    header = encode_header({"store": store.manifest.id})
    for index in range(5000):
        (store.layout.journals / f"{index}.bin").write_bytes(header + records[index : index + 1].tobytes())
    states = RowStates(store.layout.journals, store.rows, store.manifest.id)
    first = seconds(states.refresh, 1)
    print(f"5,001 journals: read in {first:.2f} s; refresh with nothing new {seconds(states.refresh) * 1e3:.1f} ms")


_STATUS = """
import re, sys, time
from datamodels.launch.cli import main
code = main(sys.argv[1:])
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
print(f"{time.process_time():.2f} s of CPU, {peak // 1024} MiB", file=sys.stderr)
sys.exit(code)
"""


def status(config: Path, root: Path) -> str:
    """Seconds and peak memory of `datamodels status`, from the start of its process."""
    started = time.perf_counter()
    command = [sys.executable, "-c", _STATUS, "status", str(config), "--root", str(root), "--json"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, encoding="utf-8", check=True)
    return f"{time.perf_counter() - started:.2f} s, {done.stderr.strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__)
    where = "where a temporary folder is made: commits are as slow as its disk's fdatasync"
    parser.add_argument("folder", nargs="?", help=where)
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        for name in ("commit", "overlap", "scale"):
            (Path(folder) / name).mkdir()
        scale(Path(folder) / "scale")
        overlapping(Path(folder) / "overlap")
        verifying(commits(Path(folder) / "commit"))


if __name__ == "__main__":
    main()
