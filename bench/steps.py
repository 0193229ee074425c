"""Training steps on a CPU in turn with others: so that all meet the same neighbours on the machine.

Seconds by wall and CPU time. Where other processes share the cores, CPU time is the one to believe, and with several
threads neither is: torch's convolutions then have threads wait for each other in loops that cost CPU time.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from bench import cases, flops, plain
from bench.ceilings import Matmul, matmul
from bench.profiled import WARM_UP
from bench.results import Results
from datamodels.train.config import Setting
from datamodels.train.data.sources import Dataset
from datamodels.train.errors import Interrupted
from datamodels.train.trainer.device import precision
from datamodels.train.trainer.trainer import Trainer

CPU = torch.device("cpu")
TRAIN_IMAGES = 5000
"""Training images: enough for the augmentation to find them outside of every cache."""

KINDS = {"": 0, "_of_cpu_time": 1}

Reading = tuple[float, float]
"""Wall and CPU seconds."""


class Clock:
    def __init__(self) -> None:
        self.at = self._now()

    def lap(self) -> Reading:
        """Since the last lap."""
        before, self.at = self.at, self._now()
        return self.at[0] - before[0], self.at[1] - before[1]

    @staticmethod
    def _now() -> Reading:
        return time.perf_counter(), time.process_time()


def phase(options: argparse.Namespace, results: Results) -> None:
    """Our steps, bare steps in the same precision, and matrix products that take about as long."""
    setting, dataset = recipe_and_images(options)
    trainer = Trainer(setting, dataset, CPU)
    dtype = precision(setting.recipe, CPU)
    product, _ = matmul(CPU, dtype, options.tiny)
    per_step = flops.per_image(setting.recipe, dataset.train.images.shape[1:], 10)[0] * trainer.batch
    times = max(1, round(per_step / product.flops))
    others: list[Callable[[], None]] = [Bare(setting, trainer.batch, dtype), lambda: repeated(product, times)]
    found = in_turn(trainer, others, options.pairs * (1 if options.tiny else 5))
    entry = {
        "dataset": "cifar",
        "alpha": setting.alpha,
        "network": "resnet9",
        "threads": setting.recipe.threads,
        "precision": str(dtype).removeprefix("torch."),
        "seconds_per_row": None,
        "steps": len(found),
        "images_per_step": trainer.batch,
        "matmul_side": product.side,
        **figures(found, per_step, times * product.flops),
    }
    results.content["rows"].append(entry)
    tell(entry, results)


def figures(found: Sequence[Sequence[Reading]], step_flops: float, matmul_flops: float) -> dict[str, Any]:
    """Medians; of ratios, which are taken step by step, their quartiles too."""
    entry: dict[str, Any] = {"quartiles": {}}
    for kind, at in KINDS.items():
        ours, bare, product = ([lap[at] for lap in laps] for laps in zip(*found, strict=True))
        entry[f"seconds_per_step{kind}"] = statistics.median(ours)
        entry[f"matmul_flops{kind}"] = matmul_flops / statistics.median(product)
        scale = step_flops / matmul_flops
        ratios = {
            f"fraction_of_matmul{kind}": [scale * other / mine for mine, other in zip(ours, product, strict=True)],
            f"fraction_of_bare{kind}": [other / mine for mine, other in zip(ours, bare, strict=True)],
        }
        for name, values in ratios.items():
            entry["quartiles"][name] = quartiles(values)
            entry[name] = entry["quartiles"][name][1]
    return entry


def tell(entry: dict[str, Any], results: Results) -> None:
    for name in ("fraction_of_matmul", "fraction_of_bare"):
        wall, cpu = (", ".join(f"{each:.3f}" for each in entry["quartiles"][name + kind]) for kind in KINDS)
        results.tell(f"{name}, quartiles: {wall}; of CPU time {cpu} (n = {entry['steps']}, {entry['threads']} threads)")
    for kind in KINDS:
        results.tell(
            f"{entry['seconds_per_step' + kind]:.3f} s a step of {entry['images_per_step']} images, matmul of "
            f"{entry['matmul_side']} at {entry['matmul_flops' + kind] / 1e9:.0f} GFLOP/s{kind.replace('_', ' ')}"
        )


def recipe_and_images(options: argparse.Namespace) -> tuple[Setting, Dataset]:
    setting = cases.timed("cifar", 0.5, options.tiny, device="cpu", threads=options.threads)
    share = 1 if options.tiny else TRAIN_IMAGES / cases.SHAPES["cifar"][0]
    return setting, cases.random_images("cifar", options.tiny, share)


class Bare:
    """A training step without a recipe around it."""

    def __init__(self, setting: Setting, batch: int, dtype: torch.dtype) -> None:
        self.dtype, self.network = dtype, plain.network(setting.recipe.width)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
        self.images = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 10, (batch,))

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            logits = self.network(self.images)
        F.cross_entropy(logits.float(), self.labels, label_smoothing=0.1).backward()
        self.optimizer.step()


def repeated(product: Matmul, times: int) -> None:
    for _ in range(times):
        product()


def in_turn(trainer: Trainer, others: Sequence[Callable[[], None]], count: int) -> list[list[Reading]]:
    """Of `count` steps: what each took, then each of the others after it. Steps before that warm up are left out."""
    found: list[list[Reading]] = []
    clock, step = Clock(), -1

    def between() -> bool:
        nonlocal step
        laps = [clock.lap()]
        step += 1
        if step > WARM_UP:
            for other in others:
                other()
                laps.append(clock.lap())
            found.append(laps)
        elif step == WARM_UP:
            for other in others:  # what they do for the first time is over, too
                other()
        clock.lap()
        return len(found) == count

    plan = trainer.plan(range(1), [trainer.masks[0]])
    with contextlib.suppress(Interrupted):
        while len(found) < count:
            trainer.lanes[0].begin(plan, range(1))
            trainer.lanes[0].train(between)
    return found


def quartiles(values: Sequence[float]) -> list[float]:
    ordered = torch.tensor(sorted(values), dtype=torch.float64)
    return torch.quantile(ordered, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
