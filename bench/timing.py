"""Clocks: device events on a GPU, whose work the host does not wait for; the host's own clock elsewhere."""

import statistics
import time
from collections.abc import Callable

import torch

from datamodels.train.trainer import trainer as loop
from datamodels.train.trainer.device import on_gpu
from datamodels.train.trainer.trainer import Moment


def moment(device: torch.device) -> Moment:
    """Now; on a GPU, when the current stream will have come here."""
    if not on_gpu(device):
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def between(began: Moment, ended: Moment) -> float:
    """Seconds between two moments of one device; waits for the second."""
    if isinstance(ended, torch.cuda.Event):
        ended.synchronize()
    return loop.between(began, ended)


def seconds(work: Callable[[], object], device: torch.device, repeats: int, each: int = 1, warm_up: int = 1) -> float:
    """Seconds of one call on the device: the median of `repeats` readings, with `each` calls between two readings."""
    for _ in range(warm_up):
        work()
    return median_seconds(lambda: [work() for _ in range(each)], device, repeats) / each


def median_seconds(
    work: Callable[[], object], device: torch.device, repeats: int, before: Callable[[], object] = lambda: None
) -> float:
    """The median of `repeats` readings of one call; `before` each of them, something that is not in it."""
    taken = []
    for _ in range(repeats):
        before()
        began = moment(device)
        work()
        taken.append((began, moment(device)))
    return statistics.median(between(*pair) for pair in taken)


def wall(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the host until the device is through with one call."""
    if on_gpu(device):
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if on_gpu(device):
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
