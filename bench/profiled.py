"""What a training step spends its time in: kernels on a GPU, operators on a CPU, as torch's profiler sees them."""

import contextlib
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from datamodels.train.config import Setting
from datamodels.train.data.sources import Dataset
from datamodels.train.errors import Interrupted
from datamodels.train.trainer.device import on_gpu
from datamodels.train.trainer.trainer import Trainer

WARM_UP = 6
"""Steps before the profile: by then all memory has been touched, and a CPU's page faults are over."""


def table(setting: Setting, dataset: Dataset, device: torch.device, steps: int) -> list[dict[str, Any]]:
    """Name, microseconds a step and calls a step of each, the slowest first."""
    trainer = Trainer(setting, dataset, device)
    rows = range(setting.recipe.group)
    plan = trainer.plan(rows, [trainer.masks[row] for row in rows])
    trainer.lanes[0].begin(plan, rows)
    taken = profile(activities=[ProfilerActivity.CUDA if on_gpu(device) else ProfilerActivity.CPU])
    at = -1

    def between_steps() -> bool:
        nonlocal at
        at += 1
        if at == WARM_UP:
            if on_gpu(device):
                torch.cuda.synchronize(device)
            taken.start()
        return at == WARM_UP + steps

    with contextlib.suppress(Interrupted):
        trainer.lanes[0].train(between_steps)
    assert at == WARM_UP + steps, "a row of the setting takes too few steps"
    if on_gpu(device):
        torch.cuda.synchronize(device)
    taken.stop()
    found = [
        {
            "name": event.key,
            "microseconds": (event.self_device_time_total if on_gpu(device) else event.self_cpu_time_total) / steps,
            "calls": event.count / steps,
        }
        for event in taken.key_averages()
    ]
    return sorted((each for each in found if each["microseconds"] > 0), key=lambda each: -each["microseconds"])
