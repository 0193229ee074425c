"""Other ways of training CIFAR-10's recipe on the same device: seconds a row, evaluation of 60,000 images included.

Not in a peer's time: a store, masks, drawing from a row's own streams. Its data lie on the device from the beginning,
and its libraries may choose the fastest kernels, deterministic or not.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench import plain
from bench.compiled import CompiledLoop
from bench.timing import wall
from datamodels.train.config import Setting
from datamodels.train.data.sources import Dataset
from datamodels.train.masks import subset_size
from datamodels.train.trainer.device import on_gpu

Loop = Callable[..., list[Tensor]]
"""From a subset, and epochs after which to stop, to what it computes of all images."""


def upstream(images: plain.Images, setting: Setting) -> Loop:
    recipe = setting.recipe
    precision = torch.float16 if on_gpu(images.train.device) else torch.bfloat16
    return plain.Loop(images, precision, recipe.width, recipe.epochs, recipe.batch)


def compiled(images: plain.Images, setting: Setting, mode: str) -> Loop:
    recipe = setting.recipe
    backend = "inductor" if on_gpu(images.train.device) else "aot_eager"  # a CPU's would need a C++ compiler
    return CompiledLoop(images, recipe.width, recipe.epochs, recipe.batch, backend, mode)


Maker = Callable[[plain.Images, Setting], Loop]


def makers(mode: str) -> dict[str, Maker]:
    """The peers by name; mode: of torch.compile."""
    return {
        "eager float16 loop as upstream's": upstream,
        f"airbench-style loop, compiled for {mode}": partial(compiled, mode=mode),
    }


def measured(
    make: Maker, setting: Setting, dataset: Dataset, device: torch.device, rows: int, ours: float
) -> dict[str, float]:
    """Seconds of some rows, after one of a single epoch that warms up and compiles, and times ours."""
    images = on_device(dataset, device)
    subset = first(setting, len(images.train), device)
    with algorithms(deterministic=False, benchmark=True):
        loop = make(images, setting)
        loop(subset, 1)
        taken = [wall(lambda: loop(subset), device) for _ in range(rows)]
    torch.compiler.reset()  # what was compiled would keep its memory
    median = statistics.median(taken)
    return {
        "seconds_per_row": median,
        "rows": rows,
        "fastest": min(taken),
        "slowest": max(taken),
        "over_ours": median / ours,
    }


def describe(found: dict[str, float]) -> str:
    return (
        f"{found['seconds_per_row']:.3f} s a row, the median of {found['rows']} ({found['fastest']:.3f} to "
        f"{found['slowest']:.3f}), {found['over_ours']:.2f} times ours"
    )


def on_device(dataset: Dataset, device: torch.device) -> plain.Images:
    arrays = [np.array(part) for split in (dataset.train, dataset.test) for part in (split.images, split.labels)]
    return plain.Images(*(torch.from_numpy(array).to(device) for array in arrays))


def first(setting: Setting, n_train: int, device: torch.device) -> Tensor:
    """As many examples as a row of the setting is trained on."""
    return torch.arange(subset_size(setting.alpha, n_train), device=device)


@contextmanager
def algorithms(deterministic: bool, benchmark: bool) -> Iterator[None]:
    """Other algorithms than the trainer asks for so that rows come out the same twice: not deterministic ones alone, or
    the fastest that cuDNN finds by timing them (`benchmark`).
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    cudnn.deterministic, cudnn.benchmark = deterministic, benchmark
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before[:2]
        torch.use_deterministic_algorithms(before[2], warn_only=True)
