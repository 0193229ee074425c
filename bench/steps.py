"""Training steps one by one: on a CPU in turn with others, so that all meet the same neighbours on the machine; and
what torch's profiler sees of them.

Seconds by wall and CPU time. Where other processes share the cores, CPU time is the one to believe, and with several
threads neither is: torch's convolutions then have threads wait for each other in loops that cost CPU time.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from bench import plain
from datamodels.train.config import Setting
from datamodels.train.data import Dataset
from datamodels.train.errors import Interrupted
from datamodels.train.kernels import Kernels
from datamodels.train.trainer.executor import Executor
from datamodels.train.trainer.trainer import Trainer

WARM_UP = 6
"""Steps before the first that counts: by then all memory has been touched, and a CPU's page faults are over."""

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
            logits = self.network.logits(self.images)
        F.cross_entropy(logits.float(), self.labels, label_smoothing=0.1).backward()
        self.optimizer.step()


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

    (engine,), schedule = trainer.engines, trainer.draw(range(1)).schedule
    with contextlib.suppress(Interrupted):
        while len(found) < count:
            engine.begin(schedule, range(1))
            engine.train(between)
    return found


def profiled(
    setting: Setting, dataset: Dataset, executor: Executor, steps: int, kernels: Kernels | None = None
) -> list[dict[str, Any]]:
    """Kernels of a GPU or operators of a CPU: name, microseconds and calls a step of each, the slowest first."""
    trainer = Trainer(setting, dataset, executor, kernels=kernels)
    rows, gpu = range(setting.recipe.group), executor.overlaps
    trainer.engines[0].begin(trainer.draw(rows).schedule, rows)
    profiler = profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU])
    at = -1

    def between_steps() -> bool:
        nonlocal at
        at += 1
        if at == WARM_UP:
            executor.synchronize()
            profiler.start()
        return at == WARM_UP + steps

    with contextlib.suppress(Interrupted):
        trainer.engines[0].train(between_steps)
    assert at == WARM_UP + steps, "a row of the setting takes too few steps"
    executor.synchronize()
    profiler.stop()
    found = [
        {
            "name": event.key,
            "microseconds": (event.self_device_time_total if gpu else event.self_cpu_time_total) / steps,
            "calls": event.count / steps,
        }
        for event in profiler.key_averages()
    ]
    return sorted((each for each in found if each["microseconds"] > 0), key=lambda each: -each["microseconds"])
