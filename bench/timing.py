"""Clocks, and what a device does at best: a large matrix product and a large copy of random data."""

import statistics
import time
from collections.abc import Callable

import torch

from datamodels.train.trainer.executor import Executor


def median_seconds(work: Callable[[], object], executor: Executor, repeats: int, warm_up: int = 1) -> float:
    """Seconds of one call on the device: the median of `repeats` readings."""
    for _ in range(warm_up):
        work()
    taken = []
    for _ in range(repeats):
        began = executor.moment()
        work()
        taken.append((began, executor.moment()))
    return statistics.median(executor.seconds(*pair) for pair in taken)


def wall(work: Callable[[], object], executor: Executor) -> float:
    """Seconds of the host until the device is through with one call."""
    executor.synchronize()
    began = time.perf_counter()
    work()
    executor.synchronize()
    return time.perf_counter() - began


class Matmul:
    """A square product of random matrices, in the precision that the trainer computes in."""

    def __init__(self, side: int, device: torch.device, dtype: torch.dtype) -> None:
        self.side = side
        self.a, self.b = (torch.randn(side, side, device=device).to(dtype) for _ in "ab")
        self.out = torch.empty(side, side, device=device, dtype=dtype)
        self.flops = 2 * side**3

    def __call__(self) -> None:
        torch.matmul(self.a, self.b, out=self.out)


def best_matmul(executor: Executor, dtype: torch.dtype, tiny: bool = False) -> tuple[Matmul, float]:
    """The best product of a few sizes, and its FLOP/s: the median of its readings."""
    gpu = executor.device.type == "cuda"
    sides = (256,) if tiny else (4096, 8192, 16384) if gpu else (1024, 2048, 3072)
    repeats = 3 if tiny else 50 if gpu else 7
    found = []
    for side in sides:
        product = Matmul(side, executor.device, dtype)
        found.append((product, product.flops / median_seconds(product, executor, repeats, warm_up=3)))
    return max(found, key=lambda pair: pair[1])


def copy_bandwidth(executor: Executor, tiny: bool = False) -> float:
    """Bytes a second, read and written, of copying a buffer that no cache holds."""
    size = 1 << (20 if tiny else 32)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=executor.device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), executor, repeats=3 if tiny else 20)
