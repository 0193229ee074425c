"""`python -m bench.lasso gpu`: a slice of the full problem on one device, stage by stage, and what that makes of it.

Masks and margins are generated on the device and kept in memory as a store's statistics keep them, so that reading is
not in the figures. Targets are what a slice has fewer of: every stage but the counts goes through them tile by tile.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from lasso import fista
from lasso.design import GramCounts
from lasso.device_sums import DeviceCross
from lasso.lot import Lot
from lasso.matrices import Matrices
from lasso.moments import Gram
from lasso.popcount import pack
from train.config import Fit

FULL = {"models": 300_000, "examples": 50_000, "targets": 60_000}
"""CIFAR-10 at alpha 0.5, training and test targets."""
_BLOCK = 4096
_TARGETS = 512
_GROWS = {
    "counts": ("models", "examples", "examples"),
    "sums with margins": ("models", "examples", "targets"),
    "correlations": ("examples", "examples"),
    "paths": ("examples", "examples", "targets"),
    "refits and certificates": ("examples", "examples", "targets"),
}
"""What the time of a stage is proportional to."""


def run(options: argparse.Namespace) -> None:
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    size = sizes(options, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{name}: {size['examples']:,} examples, {size['models']:,} models, {size['targets']:,} targets", flush=True)
    seconds: dict[str, float] = {}
    packed, margins = generate(size, options, device)
    held = np.random.default_rng(1).random(size["models"]) < 0.1
    with timed("counts", seconds, device):
        counts = GramCounts(*(count(packed, group, size["examples"], device) for group in (~held, held)))
    with timed("sums with margins", seconds, device):
        crosses = [add_up(packed, margins, group, size, device) for group in (~held, held)]
    bits = pack(np.unpackbits(packed[held], axis=1, count=size["examples"]))
    matrices = Matrices(counts, bits)
    fit = Fit(k=100, eps=options.eps, patience=options.patience)
    lot = Lot(matrices, crosses[0], crosses[1], fit, device=device)
    solve(lot, seconds, device)
    lot.check()
    found = lot.solution
    print(f"lambdas tried {found.tried.mean():.0f}, largest gap along the paths {found.path_gap.max():.1e}, ", end="")
    print(f"of the refits {lot.refit_gap.max():.1e}, as stored {found.gap.max():.1e}")
    if device.type == "cuda":
        print(f"peak device memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")
    tell(seconds, size)


def sizes(options: argparse.Namespace, device: torch.device) -> dict[str, int]:
    """What was asked for, and else as much as memory allows of the full problem; 512 targets are two tiles."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _host_memory() // 4
    largest = next(n for n in range(FULL["examples"], 0, -500) if fista.bytes_needed(n) <= 0.9 * free)
    examples = options.examples or largest
    models = options.models or min(FULL["models"], _host_memory() // 8 // (examples // 8 + 2 * _TARGETS))
    return {"models": models, "examples": examples, "targets": options.targets or _TARGETS}


def _host_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def generate(size: dict[str, int], options: argparse.Namespace, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Masks [M, N / 8] of 8 examples to a byte, float16 margins [M, T], as `bench.lasso.make` makes them."""
    torch.manual_seed(0)
    n_train, targets, alpha, small = size["examples"], size["targets"], options.alpha[0], options.small[0]
    weights = torch.randn(n_train, targets, device=device) * (small / n_train) ** 0.5
    large = min(30, n_train)
    places = torch.rand(n_train, targets, device=device).topk(large, dim=0).indices
    weights.scatter_add_(0, places, torch.randn(large, targets, device=device) * ((1 - small) / large) ** 0.5)
    packed = np.empty((size["models"], (n_train + 7) // 8), np.uint8)
    margins = np.empty((size["models"], targets), np.float16)
    for start in range(0, size["models"], _BLOCK):
        rows = len(packed[start : start + _BLOCK])
        masks = torch.rand(rows, n_train, device=device) < alpha
        z = (masks.float() - alpha) / (alpha * (1 - alpha)) ** 0.5
        noise = torch.randn(rows, targets, device=device)
        margins[start : start + rows] = (3 + z @ weights + noise).half().cpu().numpy()
        packed[start : start + rows] = np.packbits(masks.cpu().numpy(), axis=1)
    return packed, margins


def count(packed: np.ndarray, group: np.ndarray, n_train: int, device: torch.device) -> Gram:
    gram = Gram(n_train, device=device)
    for rows in _blocks(group):
        gram.add(np.unpackbits(packed[rows], axis=1, count=n_train).view(bool))
    return gram.finish()


def add_up(
    packed: np.ndarray, margins: np.ndarray, group: np.ndarray, size: dict[str, int], device: torch.device
) -> DeviceCross:
    cross = DeviceCross(size["examples"], size["targets"], 0, device)
    for rows in _blocks(group):
        cross.add_packed(packed[rows], margins[rows].astype(np.float64))
    cross.finish()
    return cross


def _blocks(group: np.ndarray) -> Iterator[np.ndarray]:
    rows = np.flatnonzero(group)
    yield from (rows[start : start + 8192] for start in range(0, len(rows), 8192))


def solve(lot: Lot, seconds: dict[str, float], device: torch.device) -> None:
    steps: tuple[tuple[bool, str, Callable], ...] = (
        (False, "paths", lot.follow_paths),
        (True, "refits and certificates", lot.refit),
    )
    for whole, stage, step in steps:
        with timed("correlations", seconds, device):
            lot.matrices.on_device(device, whole)
        corr = lot.matrices.on_device(device, whole)
        before = corr.products
        with timed(stage, seconds, device):
            step(lambda done: None)
        tried = lot.solution.tried
        walked = sum(int(tried[at : at + fista.TILE].max()) for at in range(0, len(tried), fista.TILE))
        each = walked if not whole else -(-len(tried) // fista.TILE)
        print(f"products of a tile for each {'tile' if whole else 'lambda'}: {(corr.products - before) / each:.1f}")


@contextmanager
def timed(stage: str, seconds: dict[str, float], device: torch.device) -> Iterator[None]:
    began = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    spent = time.perf_counter() - began
    seconds[stage] = seconds.get(stage, 0.0) + spent
    print(f"{stage}: {spent:.2f} s", flush=True)  # a run that is cut short has told what it found


def tell(seconds: dict[str, float], size: dict[str, int]) -> None:
    print(f"{'stage':26} {'seconds':>9}   extrapolated to M = 300,000, N = 50,000, T = 60,000")
    total = 0.0
    for stage, grows in _GROWS.items():
        whole = seconds[stage] * float(np.prod([FULL[key] / size[key] for key in grows]))
        total += whole
        print(f"{stage:26} {seconds[stage]:9.2f} {whole:11.1f}   as {' x '.join(grows)}")
    print(f"{'all':26} {sum(seconds.values()):9.2f} {total:11.1f}", flush=True)
