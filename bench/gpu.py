"""Seconds per model on a GPU, its ceilings and its peers: `python -m bench.gpu [--data-root DIR]`, under 8 minutes.

Random images in the shape of the data sets; nothing is downloaded. Sections (`--only`):

ceilings  bf16 matrix product and device-to-device copy, the denominators of all that follows
cifar     seconds a row of the CIFAR-10 settings at alpha 10, 20, 50 and 75 % through the real loop and store
          (bench/rows.py says what is in it), their FLOP/s, the GPU's idle time, and where a row's time goes
fmow      the same for FMoW's ResNet-18 at alpha 50 %
streams   1, 2 and 3 rows at once: ResNet-9, a narrow one, ResNet-18 at alpha 10 %, and the digits' groups
peers     one row of CIFAR-10 at alpha 50 % by an eager float16 loop as upstream's (bench/plain.py) and by an
          airbench-style compiled one (bench/compiled.py), evaluation included, store not
profile   the kernels that a training step spends its time in, by torch's profiler
accuracy  with --data-root: accuracies of rows of real CIFAR-10, ours and those of a plain float32 loop

FLOP/s count what the recipe asks for (bench/flops.py): training and evaluation, over a row's whole time.
"""

import argparse
import gc
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch

from bench import accuracy, cases, peers
from bench.ceilings import copy_bandwidth, matmul
from bench.entry import describe, identity, name_of, rates
from bench.parts import parts_of
from bench.profiled import table
from bench.results import FOLDER, Results, refuse
from bench.rows import Rows, measure
from train.config import Data, Setting
from train.data import Dataset
from train.device import on_gpu

ALPHAS = (0.1, 0.2, 0.5, 0.75)


class Bench:
    """One run of the sections on one device."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device, self.tiny = options, device, options.tiny
        self.results = Results(device, sys.argv[1:])
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

    def section(self, name: str) -> bool:
        """Run one; what it raises ends it alone, since a run on a machine that is lent is hard to have again."""
        try:
            SECTIONS[name](self)
        except Exception as error:
            traceback.print_exc()
            self.tell(f"{name} FAILED: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            return False
        return True

    def tell(self, line: str) -> None:
        self.results.tell(f"{time.monotonic() - self.began:5.0f} s  {line}")

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.options.seconds - (time.monotonic() - self.began)

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

    def streams(self) -> None:
        alpha = 0.5 if self.tiny else 0.1
        settings = [
            cases.timed("cifar", alpha, self.tiny),
            cases.timed("cifar", alpha, self.tiny, width=2 if self.tiny else 16),
            cases.timed("digits", 0.5, self.tiny, device="cuda", group=8 if self.tiny else 64),
        ]
        if not self.tiny:  # where it would be the section `fmow` again
            settings.append(cases.timed("fmow", alpha))
        for setting in settings:
            for streams in (1, 2, 3) if on_gpu(self.device) else (1,):
                self.rows(setting, 6, streams=streams)

    def rows(self, setting: Setting, budget: float, streams: int = 1, parts: bool = False) -> None:
        """Measure one setting, unless too little time is left; its rows take about `budget` seconds."""
        name = name_of(setting, streams)
        if self.left() < 2 * budget:
            self.tell(f"{name}: left out, {self.left():.0f} s are left")
            return
        dataset = self.images(setting.dataset)
        entry = identity(setting, dataset, streams)
        try:
            self.reset_memory()
            with (
                tempfile.TemporaryDirectory() as root,
                Rows(setting, dataset, self.device, streams, Path(root)) as rows,
            ):
                entry |= asdict(measure(rows, budget, most=2 if self.tiny else 16))
                if parts:
                    entry["parts"] = parts_of(rows.trainer, repeats=2 if self.tiny else 20)
        except torch.cuda.OutOfMemoryError:
            self.tell(f"{name}: more memory than the GPU has")
            return
        if on_gpu(self.device):
            entry["peak_bytes"] = torch.cuda.max_memory_reserved(self.device)
        entry |= rates(entry, setting, dataset, self.matmul)
        self.results.content["rows"].append(entry)
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
        ours = self.seconds_of(setting)
        found = self.results.content["peers"] = {}
        for name, make in peers.PEERS.items():
            if self.left() < 60 and not self.tiny:
                self.tell(f"{name}: left out, {self.left():.0f} s are left")
                continue
            taken = peers.seconds_per_row(make, setting, self.images("cifar"), self.device, 1 if self.tiny else 2)
            found[name] = {"seconds_per_row": taken, "over_ours": taken / ours}
            self.tell(f"{name}: {taken:.3f} s a row, {found[name]['over_ours']:.2f} times ours")

    def seconds_of(self, setting: Setting) -> float:
        """Of one of our rows, which are measured now unless they have been."""
        wanted = identity(setting, self.images(setting.dataset), 1)
        for measure_first in (False, True):
            if measure_first:
                self.rows(setting, 15)
            for row in self.results.content["rows"]:
                if wanted.items() <= row.items():
                    return row["seconds_per_row"]
        raise RuntimeError("there was no time for our own rows")

    def profile(self) -> None:
        setting = cases.timed("cifar", 0.5, self.tiny)
        found = table(setting, self.images("cifar"), self.device, steps=2 if self.tiny else 10)
        self.results.content["profile"] = found
        self.tell("a training step's kernels, cifar 50 %: microseconds a step, calls a step")
        for each in found[:20]:
            self.tell(f"    {each['microseconds']:9.1f} {each['calls']:6.1f}  {each['name'][:90]}")

    def accuracy(self) -> None:
        options = self.options
        if not options.data_root and not self.tiny:
            return
        setting = cases.setting("cifar", options.alpha, self.tiny)
        train, test = (96, 32) if self.tiny else (None, None)
        setting = replace(setting, data=Data(root=options.data_root or "", form="original", train=train, test=test))
        dataset = None if options.data_root else self.images("cifar")
        found = accuracy.compare(setting, dataset, self.device, options.rows)
        self.results.content["accuracy"] = found
        self.tell(accuracy.describe(found))


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "ceilings": Bench.ceilings,
    "cifar": Bench.cifar,
    "peers": Bench.peers,
    "fmow": Bench.fmow,
    "streams": Bench.streams,
    "profile": Bench.profile,
    "accuracy": Bench.accuracy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="every section in miniature: what --device cpu is for")
    parser.add_argument("--seconds", type=float, default=450, help="no setting is begun that would take longer")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the JSON file")
    parser.add_argument("--fmow-share", type=float, default=1.0, help="part of FMoW's images, where memory is short")
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
    failed = [name for name in options.only or SECTIONS if not bench.section(name)]
    path = bench.results.write(options.out)
    print("\n" + "\n".join([f"{bench.results.content['device']}, torch {torch.__version__}", *bench.results.lines]))
    print(path)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
