"""What it costs to have rows come out the same twice: seconds of one training step with three choices of algorithms.

The trainer's (deterministic ones, chosen without timing them), any, and the fastest that cuDNN finds by timing them.
Each is measured in a process of its own: PyTorch keeps what it chose for a convolution, in each thread and in
autograd's, by a key that holds `deterministic` but not `benchmark` (aten/src/ATen/native/cudnn/Conv_v8.cpp).
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from bench import cases
from bench.peers import algorithms
from bench.timing import median_seconds
from datamodels.train.config import Setting
from datamodels.train.trainer.cuda_graph import Replay
from datamodels.train.trainer.device import on_gpu
from datamodels.train.trainer.engine import Lane
from datamodels.train.trainer.trainer import Trainer

CHOICES = {"deterministic": (True, False), "any": (False, False), "fastest": (False, True)}
"""`deterministic` and `benchmark` of each."""


def compared(setting: Setting, device: torch.device, tiny: bool, share: float) -> dict[str, Any]:
    """Seconds of a step by choice, and ours over the others'; share: of the images, which a step does not notice."""
    found = {}
    for name, choice in CHOICES.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found[name] = process.submit(seconds, setting, device, tiny, share, *choice).result()
    return {
        "dataset": setting.dataset,
        "network": setting.recipe.network,
        "seconds_per_step": found,
        "over_any": found["deterministic"] / found["any"],
        "over_fastest": found["deterministic"] / found["fastest"],
    }


def describe(found: dict[str, Any]) -> str:
    told = ", ".join(f"{name} {1e3 * taken:.3f} ms" for name, taken in found["seconds_per_step"].items())
    return (
        f"a step of {found['network']} by its algorithms: {told}; deterministic ones take {found['over_any']:.3f} "
        f"times as long as any, {found['over_fastest']:.3f} times as long as the fastest"
    )


def seconds(
    setting: Setting, device: torch.device, tiny: bool, share: float, deterministic: bool, benchmark: bool
) -> float:
    """Of a step, captured anew with these algorithms on a GPU."""
    trainer = Trainer(setting, cases.random_images(setting.dataset, tiny, share), device)
    with algorithms(deterministic, benchmark):
        if not on_gpu(device):
            return _timed(trainer, trainer.lanes[0], repeats=2)
        torch.cuda.synchronize(device)
        with torch.cuda.stream(torch.cuda.Stream(device)):
            return _timed(trainer, trainer.lanes[0], repeats=20)


def _timed(trainer: Trainer, lane: Lane, repeats: int) -> float:
    rows = range(trainer.recipe.group)
    lane.begin(trainer.plan(rows, [trainer.masks[row] for row in rows]), rows)
    step, each = Replay(lane._one_step, trainer.device), min(10, lane._order.shape[1])
    step.prepare()

    def steps() -> None:
        for _ in range(each):
            step()

    return median_seconds(steps, trainer.device, repeats, before=lane._at.zero_) / each
