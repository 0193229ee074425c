"""`python -m bench.lasso gpu`: a slice of the full problem on one device, stage by stage, and what that makes of it.

A table comes last, and after every stage a JSON file: bench/results/{date}-{device}.json, key `lasso` (on a CPU in the
folder `tiny` there). The gaps of some targets are checked from the rows, by code that shares nothing with the solver's.
Masks and margins are generated on the device and kept in memory as a store's statistics keep them, so that reading is
not in the figures. Targets are what a slice has fewer of: every stage but the counts goes through them tile by tile.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from bench.gaps import relative_gaps
from bench.results import Results
from datamodels.lasso.design import GramCounts
from datamodels.lasso.gram.device_sums import DeviceCross
from datamodels.lasso.gram.matrices import Matrices
from datamodels.lasso.gram.moments import Gram
from datamodels.lasso.gram.popcount import pack
from datamodels.lasso.solver import fista, tiles
from datamodels.lasso.solver.batch import Lot
from datamodels.train.config import Fit
from datamodels.train.trainer.device import on_gpu

FULL = {"models": 300_000, "examples": 50_000, "targets": 60_000}
"""CIFAR-10 at alpha 0.5, training and test targets."""
_BLOCK = 4096
_TARGETS = 512
_CHECKED = 16
"""Targets whose gaps are checked, at most."""
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
    results = Results(device, sys.argv[1:], options.out, tiny=not on_gpu(device))
    truth = {"alpha": options.alpha[0], "small": options.small[0], "eps": options.eps, "patience": options.patience}
    results.content["lasso"] = {**size, **truth, "seconds": {}}
    results.tell(", ".join([results.content["device"], *(f"{number:,} {name}" for name, number in size.items())]))
    packed, margins = generate(size, options, device)
    lot = add_all_up(packed, margins, size, Fit(k=100, eps=options.eps, patience=options.patience), results, device)
    solve(lot, results, device)
    judge(lot, packed, margins, results, device)
    content = results.content["lasso"]
    content["extrapolated_seconds"] = extrapolated(content["seconds"], size)
    table(content["seconds"], content["extrapolated_seconds"])
    print(results.write())
    if results.content["failed"]:
        sys.exit(1)


def sizes(options: argparse.Namespace, device: torch.device) -> dict[str, int]:
    """What was asked for, and else as much as memory allows of the full problem; 512 targets are two tiles."""
    free = torch.cuda.mem_get_info(device)[0] if on_gpu(device) else _host_memory() // 4
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


def add_all_up(
    packed: np.ndarray, margins: np.ndarray, size: dict[str, int], fit: Fit, results: Results, device: torch.device
) -> Lot:
    """The sums of a fit, with a tenth of the rows held out."""
    held = np.random.default_rng(1).random(size["models"]) < 0.1
    with timed("counts", results, device):
        counts = GramCounts(*(count(packed, group, size["examples"], device) for group in (~held, held)))
    with timed("sums with margins", results, device):
        crosses = [add_up(packed, margins, group, size, device) for group in (~held, held)]
    bits = pack(np.unpackbits(packed[held], axis=1, count=size["examples"]))
    return Lot(Matrices(counts, bits), crosses[0], crosses[1], fit, device=device)


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


def solve(lot: Lot, results: Results, device: torch.device) -> None:
    steps: tuple[tuple[bool, str, Callable], ...] = (
        (False, "paths", tiles.follow_paths),
        (True, "refits and certificates", tiles.refit),
    )
    for whole, stage, step in steps:
        with timed("correlations", results, device):
            lot.matrices.on_device(device, whole)
        corr = lot.matrices.on_device(device, whole)
        before = corr.products
        with timed(stage, results, device):
            step(lot, device, lambda done: None)
        tried = lot.solution.tried
        walked = sum(int(tried[at : at + fista.TILE].max()) for at in range(0, len(tried), fista.TILE))
        each = (corr.products - before) / (-(-len(tried) // fista.TILE) if whole else walked)
        unit = "tile" if whole else "lambda"
        results.content["lasso"][f"products_a_{unit}_of_{stage.split()[0]}"] = each
        results.tell(f"products of a tile for each {unit}: {each:.1f}")


def judge(lot: Lot, packed: np.ndarray, margins: np.ndarray, results: Results, device: torch.device) -> None:
    content, found = results.content["lasso"], lot.solution
    content["lambdas_tried"] = float(found.tried.mean())
    checked = gaps_from_rows(packed, margins, lot, device)
    gaps = {"paths": found.path_gap, "refits": lot.refit_gap, "stored": found.gap, "checked": checked}
    content["largest_gap"] = {name: float(each.max()) for name, each in gaps.items()}
    told = ", ".join(f"{name} {gap:.1e}" for name, gap in content["largest_gap"].items())
    results.tell(f"lambdas tried {content['lambdas_tried']:.0f}, largest gaps: {told}")
    if on_gpu(device):
        content["peak_bytes"] = torch.cuda.max_memory_allocated(device)
        results.tell(f"peak device memory {content['peak_bytes'] / 2**30:.1f} GiB")
    with results.guarded("a fit to its gap"):
        lot.check()


def gaps_from_rows(packed: np.ndarray, margins: np.ndarray, lot: Lot, device: torch.device) -> np.ndarray:
    """Relative duality gaps of some targets' stored weights, from the rows alone, in float64 throughout.

    Nothing of what `lasso` computed enters but the weights and their lambdas.
    """
    n_train, targets = lot.matrices.n_train, len(lot.solution.lam)
    these = np.arange(0, targets, -(-targets // _CHECKED))
    weights = torch.from_numpy(lot.solution.weight[these].T.astype(np.float64)).to(device)
    y = torch.from_numpy(margins[:, these].astype(np.float64)).to(device)
    y -= y.mean(dim=0)

    def masks() -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(packed), _BLOCK):
            rows = slice(start, start + _BLOCK)
            block = np.unpackbits(packed[rows], axis=1, count=n_train)
            yield rows, torch.from_numpy(block).to(device).double()

    mean, predicted = torch.zeros(n_train, 1, dtype=torch.float64, device=device), torch.empty_like(y)
    for rows, block in masks():
        mean += block.sum(dim=0)[:, None] / len(packed)
        predicted[rows] = block @ weights
    residual = y - (predicted - predicted.mean(dim=0))
    grad = -mean * residual.sum(dim=0)
    for rows, block in masks():
        grad += block.T @ residual[rows]
    deviation = (mean * (1 - mean)).sqrt()
    grad = torch.where(deviation > 0, grad / (len(packed) * deviation), 0.0)
    var, along, squares = (y * y).mean(dim=0), (y * residual).mean(dim=0), (residual * residual).mean(dim=0)
    parts = grad.abs().amax(dim=0), var, along, squares, (weights * deviation).abs().sum(dim=0)
    return relative_gaps(lot.solution.lam[these].astype(np.float64), *(part.cpu().numpy() for part in parts))


@contextmanager
def timed(stage: str, results: Results, device: torch.device) -> Iterator[None]:
    began = time.perf_counter()
    yield
    if on_gpu(device):
        torch.cuda.synchronize(device)
    spent = time.perf_counter() - began
    seconds = results.content["lasso"]["seconds"]
    seconds[stage] = seconds.get(stage, 0.0) + spent
    results.tell(f"{stage}: {spent:.2f} s")  # a run that is cut short has told what it found
    results.write()


def extrapolated(seconds: dict[str, float], size: dict[str, int]) -> dict[str, float]:
    """Seconds of every stage of the full problem."""
    return {
        stage: seconds[stage] * float(np.prod([FULL[key] / size[key] for key in grows]))
        for stage, grows in _GROWS.items()
    }


def table(seconds: dict[str, float], whole: dict[str, float]) -> None:
    print(f"{'stage':26} {'seconds':>9}   extrapolated to M = 300,000, N = 50,000, T = 60,000")
    for stage, grows in _GROWS.items():
        print(f"{stage:26} {seconds[stage]:9.2f} {whole[stage]:11.1f}   as {' x '.join(grows)}")
    print(f"{'all':26} {sum(seconds.values()):9.2f} {sum(whole.values()):11.1f}", flush=True)
