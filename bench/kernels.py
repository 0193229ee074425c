"""Batch norm and what follows it, forward and backward: own kernels and PyTorch's operations, at ResNet-9's sizes.

On a GPU, steps are replayed from a CUDA graph over input sets that together exceed its cache, and timed with events;
bytes are counted as in bench.traffic. On a CPU both columns are PyTorch's operations, and show only that this runs.

    python -m bench.kernels [--batch 512] [--dtype float16] [--rounds 20]
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from bench.traffic import Unit, own_norm, units
from datamodels.train.kernels.form import composition
from datamodels.train.kernels.norm import BatchNormAct, batch_norm_act

CACHED = 256e6
"""Bytes of inputs that are more than a GPU's cache holds."""
WARM_UP = 3


def steps(unit: Unit, dtype: torch.dtype, device: torch.device) -> tuple[list[Callable[[], object]], int]:
    """Our step and PyTorch's, each over all input sets, and how many sets these are."""
    sets = max(1, math.ceil(CACHED / (4 * unit.made))) if device.type == "cuda" else 1
    norm = BatchNormAct(unit.shape[1], unit.form).to(device)
    inputs = [_inputs(unit, norm, dtype, device) for _ in range(sets)]

    def run(path: Callable[..., Tensor]) -> Callable[[], object]:
        def step() -> object:
            kept = [path(x, norm, unit.form, residual) for x, residual, _ in inputs]
            leaves = [norm.weight, norm.bias]
            return [
                torch.autograd.grad(y, [x, *leaves, *([] if residual is None else [residual])], dy)
                for y, (x, residual, dy) in zip(kept, inputs, strict=True)
            ]

        return step

    return [run(batch_norm_act), run(composition)], sets


def _inputs(
    unit: Unit, norm: BatchNormAct, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor]:
    def fresh() -> Tensor:
        values = torch.randn(unit.shape, device=device, dtype=dtype)
        return values.contiguous(memory_format=torch.channels_last)

    x, residual = fresh().requires_grad_(), fresh().requires_grad_() if unit.form.residual else None
    return x, residual, torch.randn_like(batch_norm_act(x, norm, unit.form, residual))


def seconds(step: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median time of a step."""
    if device.type != "cuda":
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        return statistics.median(times)
    replay = _captured(step)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    for mark in marks:
        mark.record()
        replay()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) / 1e3 for a, b in pairwise(marks))


def _captured(step: Callable[[], object]) -> Callable[[], None]:
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    return graph.replay


def main() -> None:
    parser = argparse.ArgumentParser(description="Own batch norm kernels against PyTorch's operations.")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, options.dtype)
    print(torch.cuda.get_device_name() if device.type == "cuda" else "CPU: PyTorch's operations in both columns")
    print("| activation | then | own ms | GB/s counted | PyTorch ms | ratio |\n|---|---|---|---|---|---|")
    for unit in dict.fromkeys(Unit(0, unit.shape, unit.left, unit.form) for unit in units(options.batch)):
        (ours, theirs), sets = steps(unit, dtype, device)
        own, plain = (seconds(step, device, options.rounds) / sets for step in (ours, theirs))
        rate = own_norm(unit) * dtype.itemsize / 2 / own / 1e9
        then = f"pool {unit.form.pool}" if unit.form.pool else "residual" if unit.form.residual else "ReLU"
        print(f"| {unit.shape} | {then} | {own * 1e3:.3f} | {rate:.0f} | {plain * 1e3:.3f} | {plain / own:.2f} |")


if __name__ == "__main__":
    main()
