"""Training on a CPU against two peers, in one run: `python bench/cpu.py --data-root DIR`.

1. The whole `datamodels train` command for one row of the full-width CIFAR-10 recipe, everything included, against the
   upstream way (bench/plain.py): images per second of two processes that train and evaluate the same numbers of images.
2. The training phase alone against a bare loop of steps in the same precision: forward, backward and torch.optim.SGD on
   one batch that never changes.

Pairs are interleaved; what is printed is the median of the ratios and their range.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from train.config import Data, Recipe, Setting
from train.data import load
from train.device import device_name, precision
from train.errors import Interrupted
from train.loop import Trainer
from train.model import ResNet9

PROJECT = Path(__file__).parent.parent
TRAIN, TEST, EPOCHS, BATCH = 5000, 500, 2, 512
IMAGES = EPOCHS * (TRAIN // 2 // BATCH) * BATCH
STEPS = 4


def ratios(pairs: int, ours: Callable[[], float], peer: Callable[[], float]) -> str:
    """Run both in turn; `ours` and `peer` return images per second."""
    found = [(ours(), peer()) for _ in range(pairs)]
    quotients = sorted(mine / other for mine, other in found)
    middle = [statistics.median(column) for column in zip(*found, strict=True)]
    return (
        f"{middle[0]:.0f} | {middle[1]:.0f} | {statistics.median(quotients):.2f} "
        f"({quotients[0]:.2f} to {quotients[-1]:.2f}, n = {pairs})"
    )


def command(data_root: str) -> float:
    with tempfile.TemporaryDirectory() as root:
        options = ["--root", root, "--data.root", data_root, "--models=1", "--eval_models=0", "--recipe.device=cpu"]
        options += [
            f"--data.train={TRAIN}",
            f"--data.test={TEST}",
            f"--recipe.epochs={EPOCHS}",
            "--recipe.peak_epoch=1",
        ]
        config = str(PROJECT / "configs" / "cifar_50pct.yaml")
        for name in ("init", "train"):
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "launch.cli", name, config, *options], check=True, capture_output=True
            )
        return IMAGES / (time.perf_counter() - started)


def plain(data_root: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        sizes = [f"--train={TRAIN}", f"--test={TEST}", f"--epochs={EPOCHS}"]
        files = ["--data-root", data_root, "--out", f"{folder}/margins.npy"]
        started = time.perf_counter()
        script = [sys.executable, "-m", "bench.plain", *sizes, *files]
        done = subprocess.run(script, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - started
    assert int(done.stdout) == IMAGES
    return IMAGES / seconds


def steps(trainer: Trainer) -> float:
    """Images per second of our training loop, tables and reset included."""
    left = iter(range(STEPS))
    started = time.perf_counter()
    with contextlib.suppress(Interrupted):
        trainer.fit(range(1), [trainer.masks[0]], lambda: next(left, None) is None)
    return STEPS * BATCH / (time.perf_counter() - started)


def bare_steps(network: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> float:
    images, labels = torch.randn(1, BATCH, 32, 32, 3), torch.randint(0, 10, (BATCH,))
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1)
    started = time.perf_counter()
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = network(images)[0]
        loss_function(logits.float(), labels).backward()
        optimizer.step()
    return STEPS * BATCH / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True, help="folder with cifar-10-batches-py")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    recipe = Recipe(device="cpu")
    data = Data(root=options.data_root, train=TRAIN, test=TEST)
    setting = Setting(alpha=0.5, models=1, eval_models=0, recipe=recipe, data=data)
    trainer = Trainer(setting, load(setting), torch.device("cpu"))
    dtype = precision(recipe, torch.device("cpu"))
    network: nn.Module = ResNet9(64, 3, 10)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    bare_steps(network, optimizer, dtype)
    steps(trainer)
    print(f"{device_name(torch.device('cpu'))}, {recipe.threads} threads, torch {torch.__version__}, {dtype}\n")
    print("| what | ours, images/s | peer, images/s | ratio: median (range) |\n|---|---|---|---|", flush=True)
    phase = ratios(options.pairs, lambda: steps(trainer), lambda: bare_steps(network, optimizer, dtype))
    print(f"| training phase against a bare step loop | {phase} |", flush=True)
    whole = ratios(options.pairs, lambda: command(options.data_root), lambda: plain(options.data_root))
    print(f"| `datamodels train` against a plain float32 loop | {whole} |")


if __name__ == "__main__":
    main()
