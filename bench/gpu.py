"""Seconds per model on a GPU, its ceilings and its peers, in two runs: `python -m bench.gpu first`, then `second`.

Random images in the shape of the data sets; nothing is downloaded. `first`, 330 s, is whether results can be trusted:

tests     the kernels' tests and those of tests/train/trainer/test_gpu.py
check     the check before the first row: its seconds, and the kernels that it comes to
profile   the GPU's kernels that a training step spends its time in, by torch's profiler, with Triton's and without
repeat    a group of rows of each published network, trained twice: the same bytes?

`second`, 420 s, is speed, through the real loop and store (bench/rows.py says what is in it), and what is worth it:

ceilings  bf16 matrix product and device-to-device copy, the denominators of all that follows
keep      a row of CIFAR-10 at alpha 50 % with recipe.kernels triton and torch, and with PyTorch's operations compiled
          by a deterministic inductor, within our CUDA graph; a table says whether Triton's kernels stay
peers     the same row by an eager float16 loop as upstream's (bench/plain.py) and by an airbench-style compiled one
          (bench/peers.py), evaluation included, store not
cifar     seconds a row at alpha 10, 20 and 75 %
fmow      FMoW's ResNet-18 at alpha 50 %
streams   1, 2 and 3 groups at once: ResNet-9 at alpha 10 and 50 %, the digits' groups, ResNet-18 at alpha 10 %

`--only` names sections. The JSON file is written again after every measurement. What raises an error ends alone; the
exit code is then 1. FLOP/s count what the recipe asks for (bench/flops.py): training and evaluation, over a row's whole
time.
"""

import argparse
import gc
import subprocess
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
from datamodels.train.kernels import TORCH, Kernels
from datamodels.train.trainer import choose_kernels, executor_of, on_gpu

BETTER = 0.08
"""Triton's kernels stay if a row takes less than both others by at least this share."""


class Bench:
    """One run of the sections on one device."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.executor, self.tiny = options, executor_of(device), options.tiny
        self.results = Results(device, sys.argv[1:], options.out, options.tiny)
        self.began = time.monotonic()
        self.results.content["section_seconds"] = {}
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

    @cached_property
    def kernels(self) -> Kernels:
        """What the recipe's `auto` comes to here, checked."""
        return choose_kernels(Setting().recipe, self.executor, tell=self.tell)

    def section(self, name: str) -> None:
        began = time.monotonic()
        with self.results.guarded(name):
            SECTIONS[name](self)
        self.results.content["section_seconds"][name] = time.monotonic() - began
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

    def tests(self) -> None:
        files = ["tests/train/kernels/test_sgd.py"]
        if not self.tiny:
            names = ("kernels/test_norm", "kernels/test_augment", "kernels/test_rows", "kernels/test_self_check")
            files += [f"tests/train/{name}.py" for name in (*names, "trainer/test_gpu")]
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=Path(__file__).parent.parent)
        self.results.content["tests"] = done.stdout.splitlines()[-30:]
        self.tell(f"tests: exit code {done.returncode}, {(done.stdout.splitlines() or [done.stderr])[-1]}")
        if done.returncode:
            print(done.stdout[-4000:], done.stderr[-2000:])
            raise RuntimeError(f"pytest ended with exit code {done.returncode}")

    def check(self) -> None:
        began = time.monotonic()
        found = self.results.content["check"] = {"kernels": self.kernels.name, "seconds": time.monotonic() - began}
        self.tell("check: {seconds:.1f} s, kernels {kernels}".format(**found))

    def ceilings(self) -> None:
        assert self.matmul
        rate = copy_bandwidth(self.executor, self.tiny)
        self.results.content["ceilings"]["copy_bytes"] = rate
        self.tell(f"copy: {rate / 1e12:.3g} TB/s, bytes read and written")

    def keep(self) -> None:
        """A row with each kind of kernels, and what follows for Triton's."""
        setting = cases.timed("cifar", 0.5, self.tiny)
        kinds = [self.kernels, TORCH, peers.compiled_kernels(self.executor)]
        measured = [self.rows(setting, 15, kernels=kind) for kind in {kind.name: kind for kind in kinds}.values()]
        found = {row["kernels"]: row["seconds_per_row"] for row in measured if row}
        self.results.content["keep"] = {"seconds_per_row": found}
        for name, seconds in found.items():
            self.tell(f"    {name:9} {seconds:8.4f} s a row")
        if {"triton", "torch", "compiled"} <= found.keys():
            ahead = 1 - found["triton"] / min(found["torch"], found["compiled"])
            self.results.content["keep"]["triton_ahead"] = ahead
            verdict = "stay" if ahead >= BETTER else "go"
            self.tell(
                f"Triton's kernels {verdict}: a row takes {ahead:.1%} less than the better of the others, at least "
                f"{BETTER:.0%} is asked for"
            )

    def cifar(self) -> None:
        for alpha in (0.5,) if self.tiny else (0.1, 0.2, 0.75):
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

    def rows(
        self, setting: Setting, budget: float, streams: int = 1, kernels: Kernels | None = None
    ) -> dict[str, Any] | None:
        """Measure a setting, whose rows take about `budget` seconds, unless it has been or too little time is left."""
        dataset, recipe, kernels = self.images(setting.dataset), setting.recipe, kernels or self.kernels
        about = {"dataset": setting.dataset, "alpha": setting.alpha, "network": recipe.network}
        about |= {"width": recipe.width, "group": recipe.group, "epochs": recipe.epochs, "streams": streams}
        about["kernels"] = kernels.name
        known = next((row for row in self.results.content["rows"] if about.items() <= row.items()), None)
        name = f"{setting.dataset} {setting.pct} %, {recipe.network}, kernels {kernels.name}, {streams} at once"
        if known or not self.has(2 * budget, name):
            return known
        with self.results.guarded(name):
            self.reset_memory()
            with (
                tempfile.TemporaryDirectory() as root,
                Rows(setting, dataset, self.executor, streams, Path(root), kernels) as rows,
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
        setting, found = cases.timed("cifar", 0.5, self.tiny), self.results.content.setdefault("profile", {})
        for name, kernels in {self.kernels.name: self.kernels, "torch": TORCH}.items():
            if not self.has(15, f"profile, kernels {name}"):
                continue
            self.reset_memory()
            steps = 2 if self.tiny else 10
            found[name] = profiled(setting, self.images("cifar"), self.executor, steps, kernels)
            total = sum(each["microseconds"] for each in found[name])
            self.tell(f"a step of cifar 50 %, kernels {name}: {total:,.0f} microseconds; microseconds and calls a step")
            for each in found[name][:20]:
                self.tell(f"    {each['microseconds']:9.1f} {each['calls']:6.1f}  {each['name'][:90]}")
            self.results.write()


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "tests": Bench.tests,
    "check": Bench.check,
    "profile": Bench.profile,
    "repeat": Bench.repeat,
    "ceilings": Bench.ceilings,
    "keep": Bench.keep,
    "peers": Bench.peers,
    "cifar": Bench.cifar,
    "fmow": Bench.fmow,
    "streams": Bench.streams,
}
RUNS = {"first": (330, list(SECTIONS)[:4]), "second": (420, list(SECTIONS)[4:])}
"""Seconds and sections of each run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", choices=RUNS, nargs="?", help="default: both")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="every section in miniature: what --device cpu is for")
    parser.add_argument("--seconds", type=float, help="no setting is begun that would take longer; default the run's")
    parser.add_argument("--out", type=Path, help="folder of the JSON file; default bench/results, of --tiny its `tiny`")
    parser.add_argument("--compile-mode", choices=peers.MODES, default=peers.MODES[0], help="of the compiled peer")
    options = parser.parse_args()
    seconds, sections = RUNS.get(options.run, (sum(run[0] for run in RUNS.values()), list(SECTIONS)))
    options.seconds = seconds if options.seconds is None else options.seconds
    device = torch.device(options.device)
    if on_gpu(device) and not torch.cuda.is_available():
        refuse("no GPU here (--device cpu --tiny runs every section in miniature)")
    if not on_gpu(device) and not options.tiny:
        refuse("--device cpu is for --tiny alone: bench.cpu measures a CPU")
    bench = Bench(options, device)
    for name in options.only or sections:
        bench.section(name)
    for name, taken in bench.results.content["section_seconds"].items():
        bench.tell(f"section {name}: {taken:.1f} s")
    print("\n" + "\n".join([f"{bench.results.content['device']}, torch {torch.__version__}", *bench.results.lines]))
    print(bench.results.path)
    sys.exit(1 if bench.results.content["failed"] else 0)


if __name__ == "__main__":
    main()
