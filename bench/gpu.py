"""Seconds per model on a GPU, its ceilings and its peers: `python -m bench.gpu`, under 8 minutes.

Random images in the shape of the data sets; nothing is downloaded. Sections (`--only`):

ceilings  bf16 matrix product and device-to-device copy, the denominators of all that follows
cifar     seconds a row of the CIFAR-10 settings at alpha 10, 20, 50 and 75 % through the real loop and store
          (bench/rows.py says what is in it), their FLOP/s, and the GPU's idle time between rows
fmow      the same for FMoW's ResNet-18 at alpha 50 %
repeat    a group of rows of each published network, trained twice: the same bytes?
streams   1, 2 and 3 groups at once: ResNet-9 at alpha 10 and 50 %, the digits' groups, ResNet-18 at alpha 10 %
peers     one row of CIFAR-10 at alpha 50 % by an eager float16 loop as upstream's (bench/plain.py) and by an
          airbench-style compiled one (bench/peers.py), evaluation included, store not
profile   the kernels that a training step spends its time in, by torch's profiler

The JSON file is written again after every measurement. What raises an error ends alone; the exit code is then 1.
FLOP/s count what the recipe asks for (bench/flops.py): training and evaluation, over a row's whole time.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bench import cases, peers
from bench.results import Results, refuse
from bench.rows import Rows, describe, measure, rates, repeated
from bench.steps import profiled
from bench.timing import best_matmul, copy_bandwidth
from datamodels.train.config import Setting
from datamodels.train.data import Dataset
from datamodels.train.trainer.device import on_gpu
from datamodels.train.trainer.executor import executor_of


class Bench:
    """One run of the sections on one device."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.executor, self.tiny = options, executor_of(device), options.tiny
        self.results = Results(device, sys.argv[1:], options.out, options.tiny)
        self.began = time.monotonic()
        self._images: dict[str, Dataset] = {}

    @cached_property
    def matmul(self) -> float:
        """FLOP/s of the best bf16 matrix product."""
        product, rate = best_matmul(self.executor, torch.bfloat16, self.tiny)
        self.results.content["ceilings"] = {"matmul_flops": rate, "matmul_side": product.side}
        self.tell(f"matmul {product.side}, bfloat16: {rate / 1e12:.3g} TFLOP/s")
        return rate

    def images(self, name: str) -> Dataset:
        if name not in self._images:
            self._images[name] = cases.random_images(name, self.tiny)
        return self._images[name]

    def section(self, name: str) -> None:
        with self.results.guarded(name):
            SECTIONS[name](self)
        self.results.write()

    def tell(self, line: str) -> None:
        self.results.tell(f"{time.monotonic() - self.began:5.0f} s  {line}")

    def has(self, seconds: float, name: str) -> bool:
        """Whether so much time is left; where it is not, what is left out is told and recorded."""
        left = self.options.seconds - (time.monotonic() - self.began)
        if self.tiny or left >= seconds:
            return True
        self.results.content["left_out"].append(name)
        self.tell(f"{name}: left out, {left:.0f} s are left")
        return False

    def ceilings(self) -> None:
        assert self.matmul
        rate = copy_bandwidth(self.executor, self.tiny)
        self.results.content["ceilings"]["copy_bytes"] = rate
        self.tell(f"copy: {rate / 1e12:.3g} TB/s, bytes read and written")

    def cifar(self) -> None:
        for alpha in (0.5,) if self.tiny else (0.1, 0.2, 0.5, 0.75):
            self.rows(cases.timed("cifar", alpha, self.tiny), 15)

    def fmow(self) -> None:
        self.rows(cases.timed("fmow", 0.5, self.tiny), 25)

    def repeat(self) -> None:
        """With trainings of two epochs: cuDNN chooses its algorithms by shapes, which are those of a whole training."""
        found = self.results.content["repeat"] = []
        for dataset in ("cifar", "fmow", "digits"):
            name, group = f"repeat {dataset}", {"device": "cuda", "group": 8 if self.tiny else 64}
            if not self.has(30, name):
                continue
            with self.results.guarded(name):
                self.reset_memory()
                recipe = {"epochs": 2, "peak_epoch": 1, **(group if dataset == "digits" else {})}
                setting = cases.timed(dataset, 0.5 if self.tiny or dataset == "digits" else 0.1, self.tiny, **recipe)
                found.append(entry := repeated(setting, self.images(dataset), self.executor))
                again, beside = entry["differing_again"], entry["differing_beside_another"]
                self.tell(
                    f"{entry['network']}, rows of {entry['steps']} steps twice: of {entry['values']:,} values "
                    f"{again} differ, {beside} beside another group"
                )
                if again or beside:
                    self.results.fail(name, "a row came out with other bytes")

    def streams(self) -> None:
        digits = cases.timed("digits", 0.5, self.tiny, device="cuda", group=8 if self.tiny else 64)
        settings = [(cases.timed("cifar", 0.5, self.tiny), 10), (digits, 4)]
        if not self.tiny:
            settings += [(cases.timed("cifar", 0.1), 4), (cases.timed("fmow", 0.1), 6)]
        for setting, budget in settings:
            for streams in (1, 2) if self.tiny else (1, 2, 3):
                self.rows(setting, budget, streams)

    def rows(self, setting: Setting, budget: float, streams: int = 1) -> dict[str, Any] | None:
        """Measure a setting, whose rows take about `budget` seconds, unless it has been or too little time is left."""
        dataset, recipe = self.images(setting.dataset), setting.recipe
        about = {"dataset": setting.dataset, "alpha": setting.alpha, "network": recipe.network}
        about |= {"width": recipe.width, "group": recipe.group, "epochs": recipe.epochs, "streams": streams}
        known = next((row for row in self.results.content["rows"] if about.items() <= row.items()), None)
        name = f"{setting.dataset} {setting.pct} %, {recipe.network}, {streams} at once"
        if known or not self.has(2 * budget, name):
            return known
        with self.results.guarded(name):
            self.reset_memory()
            with (
                tempfile.TemporaryDirectory() as root,
                Rows(setting, dataset, self.executor, streams, Path(root)) as rows,
            ):
                entry = about | asdict(measure(rows, budget, most=2 if self.tiny else 16))
            entry |= rates(entry, setting, dataset, self.matmul)
            if on_gpu(self.executor.device):
                entry["peak_bytes"] = torch.cuda.max_memory_reserved(self.executor.device)
            self.results.content["rows"].append(entry)
            self.results.write()
            self.tell(f"{name}: {describe(entry)}")
            return entry
        return None

    def reset_memory(self) -> None:
        if on_gpu(self.executor.device):
            gc.collect()  # a trainer that is through, and its graphs
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.executor.device)

    def peers(self) -> None:
        """Against our rows at the same alpha, measured in the same run."""
        setting = cases.timed("cifar", 0.5, self.tiny)
        ours = self.rows(setting, 15)
        if ours is None:
            raise RuntimeError("there are no rows of ours to compare with")
        found = self.results.content["peers"] = {}
        for name, make in peers.makers(self.options.compile_mode).items():
            if not self.has(60, name):
                continue
            with self.results.guarded(name):
                self.reset_memory()
                images, rows = self.images("cifar"), 1 if self.tiny else 3
                found[name] = peers.measured(make, setting, images, self.executor, rows, ours["seconds_per_row"])
                self.tell(f"{name}: {peers.describe(found[name])}")

    def profile(self) -> None:
        if not self.has(15, "profile"):
            return
        setting = cases.timed("cifar", 0.5, self.tiny)
        found = profiled(setting, self.images("cifar"), self.executor, steps=2 if self.tiny else 10)
        self.results.content["profile"] = found
        self.tell("a training step's kernels, cifar 50 %: microseconds a step, calls a step")
        for each in found[:20]:
            self.tell(f"    {each['microseconds']:9.1f} {each['calls']:6.1f}  {each['name'][:90]}")


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "ceilings": Bench.ceilings,
    "cifar": Bench.cifar,
    "repeat": Bench.repeat,
    "fmow": Bench.fmow,
    "peers": Bench.peers,
    "streams": Bench.streams,
    "profile": Bench.profile,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="every section in miniature: what --device cpu is for")
    parser.add_argument("--seconds", type=float, default=450, help="no setting is begun that would take longer")
    parser.add_argument("--out", type=Path, help="folder of the JSON file; default bench/results, of --tiny its `tiny`")
    parser.add_argument("--compile-mode", choices=peers.MODES, default=peers.MODES[0], help="of the compiled peer")
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
