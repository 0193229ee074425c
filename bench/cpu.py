"""Training on a CPU against two peers, in one run: `python -m bench.cpu --data-root DIR`.

1. The whole `datamodels train` command for one row of the full-width CIFAR-10 recipe, everything included, against the
   upstream way (bench/plain.py): images per second of two processes that train and evaluate the same numbers of images.
2. The training phase alone against bare steps in the same precision: forward, backward and torch.optim.SGD on one batch
   that never changes. Step by step in turn.

Pairs are interleaved; what is printed is the median of the ratios, and their range or quartiles.
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
from torch import Tensor, nn
from torch.nn import functional as F

from train.config import Data, Recipe, Setting
from train.data import load
from train.device import device_name, precision
from train.errors import Interrupted
from train.loop import Trainer
from train.model import ResNet9

PROJECT = Path(__file__).parent.parent
TRAIN, TEST, EPOCHS, BATCH = 5000, 500, 2, 512
IMAGES = EPOCHS * (TRAIN // 2 // BATCH) * BATCH


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


def steps(trainer: Trainer, peer: Callable[[], None], count: int) -> tuple[float, list[tuple[float, float]]]:
    """Seconds from the start of a row to its first step, and of each of its first steps and of the peer's between them.

    Step by step in turn, so that both meet the same neighbours on the machine.
    """
    pairs: list[tuple[float, float]] = []
    mark = time.perf_counter()
    first: float | None = None

    def between() -> bool:
        nonlocal mark, first
        ours = time.perf_counter() - mark
        if first is None:
            first = ours
        else:
            began = time.perf_counter()
            peer()
            pairs.append((ours, time.perf_counter() - began))
        mark = time.perf_counter()
        return len(pairs) == count

    with contextlib.suppress(Interrupted):
        trainer.lanes[0].begin(trainer.plan(range(1), [trainer.masks[0]]), range(1))
        trainer.lanes[0].train(between)
    return first or 0.0, pairs[1:]


def bare_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype, images: Tensor, labels: Tensor
) -> None:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = network(images)[0]
    F.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True, help="folder with cifar-10-batches-py")
    parser.add_argument("--pairs", type=int, default=5, help="of commands; five times as many of steps")
    parser.add_argument("--only", choices=["phase", "command"], help="one of the two comparisons")
    options = parser.parse_args()
    print(f"{device_name(torch.device('cpu'))}, {Recipe().threads} threads, torch {torch.__version__}\n")
    print("| what | ours, images/s | peer, images/s | ratio: median (range) |\n|---|---|---|---|", flush=True)
    if options.only != "command":
        phase(options.data_root, 5 * options.pairs)
    if options.only != "phase":
        whole = ratios(options.pairs, lambda: command(options.data_root), lambda: plain(options.data_root))
        print(f"| `datamodels train` against a plain float32 loop | {whole} |")


def phase(data_root: str, pairs: int) -> None:
    recipe = Recipe(device="cpu")
    data = Data(root=data_root, train=TRAIN, test=TEST)
    setting = Setting(alpha=0.5, models=1, eval_models=0, recipe=recipe, data=data)
    trainer = Trainer(setting, load(setting), torch.device("cpu"))
    dtype = precision(recipe, torch.device("cpu"))
    network: nn.Module = ResNet9(64, 3, 10)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    images, labels = torch.randn(1, BATCH, 32, 32, 3), torch.randint(0, 10, (BATCH,))
    first, found = steps(trainer, lambda: bare_step(network, optimizer, dtype, images, labels), pairs + 1)
    rates = [BATCH / statistics.median(column) for column in zip(*found, strict=True)]
    quotients = sorted(bare / ours for ours, bare in found)
    low, high = (quotients[round(share * (len(found) - 1))] for share in (0.25, 0.75))
    print(
        f"| training steps against bare steps, {dtype} | {rates[0]:.0f} | {rates[1]:.0f} | "
        f"{statistics.median(quotients):.3f} (quartiles {low:.3f} to {high:.3f}, n = {len(found)}) |"
    )
    print(f"| seconds before the first step of a row | {first:.2f} | | |", flush=True)


if __name__ == "__main__":
    main()
