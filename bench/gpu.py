"""Seconds per model on a GPU, its ceilings and its peers: `python -m bench.gpu [--data-root DIR]`, under 8 minutes.

Random images in the shape of the data sets; nothing is downloaded. Sections (`--only`):

ceilings     bf16 matrix product and device-to-device copy, the denominators of all that follows
cifar        seconds a row of the CIFAR-10 settings at alpha 10, 20, 50 and 75 % through the real loop and store
             (bench/rows.py says what is in it), their FLOP/s, the GPU's idle time, and where a row's time goes
fmow         the same for FMoW's ResNet-18 at alpha 50 %
repeat       a group of rows of each published network, twice: the same bytes? (bench/repeat.py)
streams      1, 2 and 3 groups at once, and which number is the fastest: ResNet-9 at alpha 10 and 50 %, a narrow one,
             the digits' groups, ResNet-18 at alpha 10 %
peers        one row of CIFAR-10 at alpha 50 % by an eager float16 loop as upstream's (bench/plain.py) and by an
             airbench-style compiled one (bench/compiled.py), evaluation included, store not
determinism  a training step with deterministic algorithms, with any, and with the fastest (bench/determinism.py)
profile      the kernels that a training step spends its time in, by torch's profiler
accuracy     with --data-root: accuracies of rows of real CIFAR-10, ours and those of a plain float32 loop

The JSON file is written again after every measurement. What raises an error ends alone; the exit code is then 1.
FLOP/s count what the recipe asks for (bench/flops.py): training and evaluation, over a row's whole time.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bench import accuracy, cases, determinism, peers, repeat
from bench.ceilings import copy_bandwidth, matmul
from bench.compiled import MODES
from bench.entry import describe, fastest_streams, identity, name_of, rates
from bench.parts import parts_of
from bench.profiled import table
from bench.results import Results, refuse
from bench.rows import Rows, measure
from datamodels.train.config import Data, Setting
from datamodels.train.data.sources import Dataset
from datamodels.train.trainer.device import on_gpu

ALPHAS = (0.1, 0.2, 0.5, 0.75)


class Bench:
    """One run of the sections on one device."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device, self.tiny = options, device, options.tiny
        self.results = Results(device, sys.argv[1:], options.out, options.tiny)
        self.began = time.monotonic()
        self._images: dict[str, Dataset] = {}

    @cached_property
    def matmul(self) -> float:
        """FLOP/s of the best bf16 matrix product."""
        product, rate = matmul(self.device, torch.bfloat16, self.tiny)
        self.results.content["ceilings"] = {"matmul_flops": rate, "matmul_side": product.side}
        self.tell(f"matmul {product.side}, bfloat16: {rate / 1e12:.3g} TFLOP/s")
        return rate

    def images(self, name: str) -> Dataset:
        if name not in self._images:
            self._images[name] = cases.random_images(name, self.tiny, self.options.fmow_share if name == "fmow" else 1)
        return self._images[name]

    def section(self, name: str) -> None:
        with self.results.guarded(name):
            SECTIONS[name](self)
        self.results.write()

    def tell(self, line: str) -> None:
        self.results.tell(f"{time.monotonic() - self.began:5.0f} s  {line}")

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.options.seconds - (time.monotonic() - self.began)

    def has(self, seconds: float, name: str) -> bool:
        """Whether so much time is left; where it is not, what is left out is told and recorded."""
        if self.tiny or self.left() >= seconds:
            return True
        self.results.content["left_out"].append(name)
        self.tell(f"{name}: left out, {self.left():.0f} s are left")
        return False

    def ceilings(self) -> None:
        assert self.matmul
        rate = copy_bandwidth(self.device, self.tiny)
        self.results.content["ceilings"]["copy_bytes"] = rate
        self.tell(f"copy: {rate / 1e12:.3g} TB/s, bytes read and written")

    def cifar(self) -> None:
        for alpha in (0.5,) if self.tiny else ALPHAS:
            self.rows(cases.timed("cifar", alpha, self.tiny), 15, parts=True)

    def fmow(self) -> None:
        self.rows(cases.timed("fmow", 0.5, self.tiny), 25, parts=True)

    def repeat(self) -> None:
        found = self.results.content["repeat"] = []
        for setting in repeat.settings(self.tiny):
            name = f"repeat {setting.dataset}"
            if not self.has(30, name):
                continue
            with self.results.guarded(name):
                self.reset_memory()
                found.append(entry := repeat.repeated(setting, self.images(setting.dataset), self.device))
                self.tell(repeat.describe(entry))
                if entry["differing_again"] or entry["differing_beside_another"]:
                    self.results.fail(name, "a row came out with other bytes")

    def streams(self) -> None:
        digits = cases.timed("digits", 0.5, self.tiny, device="cuda", group=8 if self.tiny else 64)
        settings = [(cases.timed("cifar", 0.5, self.tiny), 10), (digits, 4)]
        if not self.tiny:
            settings += [(cases.timed("cifar", 0.1), 4), (cases.timed("cifar", 0.1, width=16), 4)]
            settings += [(cases.timed("fmow", 0.1), 6)]
        for setting, budget in settings:
            for streams in (1, 2) if self.tiny else (1, 2, 3):
                self.rows(setting, budget, streams=streams)
        self.results.content["streams"] = fastest_streams(self.results.content["rows"])
        for one in self.results.content["streams"]:
            name = f"{one['dataset']} {one['alpha']:.0%}, {one['network']} of width {one['width']}"
            self.tell(f"{name}: fastest with {one['fastest']} groups at once")

    def rows(self, setting: Setting, budget: float, streams: int = 1, parts: bool = False) -> None:
        """Measure one setting, unless it has been or too little time is left; its rows take about `budget` seconds."""
        name = name_of(setting, streams)
        if self.measured(setting, streams) or not self.has(2 * budget, name):
            return
        dataset = self.images(setting.dataset)
        entry = identity(setting, dataset, streams)
        with self.results.guarded(name):
            self.reset_memory()
            with (
                tempfile.TemporaryDirectory() as root,
                Rows(setting, dataset, self.device, streams, Path(root)) as rows,
            ):
                entry |= asdict(measure(rows, budget, most=2 if self.tiny else 16))
                if parts:
                    with self.results.guarded(f"parts of {name}"):
                        entry["parts"] = parts_of(rows.trainer, repeats=2 if self.tiny else 20)
            self.add(name, entry | rates(entry, setting, dataset, self.matmul))

    def measured(self, setting: Setting, streams: int = 1) -> dict[str, Any] | None:
        wanted = identity(setting, self.images(setting.dataset), streams)
        return next((row for row in self.results.content["rows"] if wanted.items() <= row.items()), None)

    def add(self, name: str, entry: dict[str, Any]) -> None:
        if on_gpu(self.device):
            entry["peak_bytes"] = torch.cuda.max_memory_reserved(self.device)
        self.results.content["rows"].append(entry)
        self.results.write()
        self.tell(f"{name}: {describe(entry)}")
        for part, taken in entry.get("parts", {}).items():
            self.tell(f"    {part:10} {taken:8.4f} s {taken / entry['seconds_per_row']:7.1%}")

    def reset_memory(self) -> None:
        if on_gpu(self.device):
            gc.collect()  # a trainer that is through, and its graphs
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peers(self) -> None:
        """Against our rows at the same alpha, measured in the same run."""
        setting = cases.timed("cifar", 0.5, self.tiny)
        self.rows(setting, 15)
        ours = self.measured(setting)
        if ours is None:
            raise RuntimeError("there are no rows of ours to compare with")
        found = self.results.content["peers"] = {}
        for name, make in peers.makers(self.options.compile_mode).items():
            if not self.has(60, name):
                continue
            with self.results.guarded(name):
                self.reset_memory()
                images, rows = self.images("cifar"), 1 if self.tiny else 3
                found[name] = peers.measured(make, setting, images, self.device, rows, ours["seconds_per_row"])
                self.tell(f"{name}: {peers.describe(found[name])}")

    def determinism(self) -> None:
        found = self.results.content["determinism"] = []
        for dataset, share in (("cifar", 1.0),) if self.tiny else (("cifar", 1.0), ("fmow", 0.25)):
            name = f"determinism {dataset}"
            if not self.has(60, name):
                continue
            with self.results.guarded(name):
                self.reset_memory()
                setting = cases.timed(dataset, 0.5, self.tiny)
                found.append(determinism.compared(setting, self.device, self.tiny, share))
                self.tell(determinism.describe(found[-1]))

    def profile(self) -> None:
        if not self.has(15, "profile"):
            return
        setting = cases.timed("cifar", 0.5, self.tiny)
        found = table(setting, self.images("cifar"), self.device, steps=2 if self.tiny else 10)
        self.results.content["profile"] = found
        self.tell("a training step's kernels, cifar 50 %: microseconds a step, calls a step")
        for each in found[:20]:
            self.tell(f"    {each['microseconds']:9.1f} {each['calls']:6.1f}  {each['name'][:90]}")

    def accuracy(self) -> None:
        options = self.options
        if not (options.data_root or self.tiny) or not self.has(60, "accuracy"):
            return
        setting = cases.setting("cifar", options.alpha, self.tiny)
        train, test = (96, 32) if self.tiny else (None, None)
        setting = replace(setting, data=Data(root=options.data_root or "", form="original", train=train, test=test))
        dataset = None if options.data_root else self.images("cifar")
        found = accuracy.compare(setting, dataset, self.device, options.rows, self.left)
        self.results.content["accuracy"] = found
        self.tell(accuracy.describe(found))


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "ceilings": Bench.ceilings,
    "cifar": Bench.cifar,
    "repeat": Bench.repeat,
    "fmow": Bench.fmow,
    "peers": Bench.peers,
    "streams": Bench.streams,
    "determinism": Bench.determinism,
    "profile": Bench.profile,
    "accuracy": Bench.accuracy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="every section in miniature: what --device cpu is for")
    parser.add_argument("--seconds", type=float, default=450, help="no setting is begun that would take longer")
    parser.add_argument("--out", type=Path, help="folder of the JSON file; default bench/results, of --tiny its `tiny`")
    parser.add_argument("--fmow-share", type=float, default=1.0, help="part of FMoW's images, where memory is short")
    parser.add_argument("--compile-mode", choices=MODES, default=MODES[0], help="of the compiled peer")
    parser.add_argument("--data-root", help="folder with cifar-10-batches-py, for accuracies")
    parser.add_argument("--alpha", type=float, default=0.5, help="of the accuracies")
    parser.add_argument("--rows", type=int, default=10, help="of the accuracies, of each kind")
    options = parser.parse_args()
    device = torch.device(options.device)
    if on_gpu(device) and not torch.cuda.is_available():
        refuse("no GPU here (--device cpu --tiny runs every section in miniature)")
    if not on_gpu(device) and not options.tiny:
        refuse("--device cpu is for --tiny alone: bench.cpu measures a CPU")
    bench = Bench(options, device)
    for name in options.only or SECTIONS:
        bench.section(name)
    print("\n" + "\n".join([f"{bench.results.content['device']}, torch {torch.__version__}", *bench.results.lines]))
    print(bench.results.path)
    sys.exit(1 if bench.results.content["failed"] else 0)


if __name__ == "__main__":
    main()
