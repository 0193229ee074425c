"""Bytes that one training step of ResNet-9 moves through a GPU's memory: counted from shapes, not measured.

Every operation is taken to read each of its inputs and write each of its results once a pass, and the cache to keep
nothing from one to the next. Activations and their gradients have 2 bytes, parameters 4 and a copy of 2.

    python -m bench.traffic [--batch 512]
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

from datamodels.train.config import Recipe
from datamodels.train.kernels.form import Form
from datamodels.train.trainer.models import ResNet9, build

SIDE, CHANNELS, PADDED = 32, 3, 8
"""The images, and the channels that a half-precision first layer gets."""
HALF, FLOAT, INDEX = 2, 4, 8
FORMS = [Form(), Form(), Form(), Form(residual="after"), Form(pool="2x2"), Form(), Form(residual="after")]
FORMS += [Form(pool="global")]
"""What ResNet-9's units end with, in their order."""


@dataclass(frozen=True)
class Unit:
    """A convolution and what follows it: sizes of a batch's input, of what comes out in the end, and between them."""

    taken: int
    shape: tuple[int, int, int, int]
    """Of the convolution's result."""
    left: int
    form: Form

    @property
    def made(self) -> int:
        return math.prod(self.shape)


def units(batch: int) -> Iterator[Unit]:
    network = build(Recipe(), (SIDE, SIDE, CHANNELS), 10)
    assert isinstance(network, ResNet9)
    taken, side = batch * SIDE**2 * PADDED, SIDE
    for unit, form in zip(network.units, FORMS, strict=True):
        conv = unit.conv
        side = (side + 2 * int(conv.padding[0]) - conv.kernel_size[0]) // conv.stride[0] + 1
        shape = (batch, conv.out_channels, side, side)
        side = {None: side, "2x2": side // 2, "global": 1}[form.pool]
        left = batch * side**2 * conv.out_channels
        yield Unit(taken, shape, left, form)
        taken = left


def convolutions(layers: list[Unit]) -> int:
    """Result, weight gradient and, but for the first layer, input gradient."""
    return HALF * sum((3 if place else 2) * (unit.taken + unit.made) for place, unit in enumerate(layers))


def torch_norm(unit: Unit) -> int:
    """PyTorch's operations: batch norm, ReLU in place, then a sum or a pool; their gradients in reverse."""
    norm, relu = 3 + 5, 2 + 3
    numbers = (norm + relu) * unit.made
    if unit.form.residual:
        numbers += 3 * unit.made
    if unit.form.pool:
        numbers += 2 * (unit.made + unit.left)
    return HALF * numbers + (2 * INDEX * unit.left if unit.form.pool == "2x2" else 0)


def own_norm(unit: Unit) -> int:
    """train/kernels/norm.py: statistics, result; sums, gradient."""
    forward = 2 * unit.made + unit.left + (unit.made if unit.form.residual else 0)
    backward = 2 * (unit.made + unit.left) + unit.made
    return HALF * (forward + backward)


def forks(layers: list[Unit]) -> int:
    """Where a residual left, the sum of the two gradients."""
    return HALF * 3 * sum(unit.made for unit in layers if unit.form.residual)


def images(batch: int) -> tuple[int, int]:
    """Augmentation: PyTorch's gather, cutout, cast, scaling, cast and padding; one kernel."""
    numbers = batch * SIDE**2 * CHANNELS
    written = batch * SIDE**2 * PADDED * HALF
    steps = 2 + 2 + (1 + FLOAT) + 2 * FLOAT + (FLOAT + HALF) + HALF
    return numbers * steps + written, numbers + written


def counted(batch: int) -> dict[str, tuple[int, int]]:
    """Bytes of a step by PyTorch's operations and with own kernels."""
    layers = list(units(batch))
    same = convolutions(layers), forks(layers)
    parameters = sum(parameter.numel() for parameter in build(Recipe(), (SIDE, SIDE, CHANNELS), 10).parameters())
    return {
        "convolutions": (same[0], same[0]),
        "batch norm, ReLU, residual, pool": (sum(map(torch_norm, layers)), sum(map(own_norm, layers))),
        "gradients of residuals added": (same[1], same[1]),
        "optimiser": (parameters * (11 * FLOAT + FLOAT + HALF), parameters * (5 * FLOAT + HALF)),
        "augmentation": images(batch),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes of one ResNet-9 training step, counted from shapes.")
    parser.add_argument("--batch", type=int, default=512)
    table = counted(parser.parse_args().batch)
    print("| GB a step, counted, not measured | PyTorch's operations | own kernels |\n|---|---|---|")
    for name, sizes in [*table.items(), ("together", tuple(map(sum, zip(*table.values(), strict=True))))]:
        print(f"| {name} | " + " | ".join(f"{size / 1e9:.3f}" for size in sizes) + " |")


if __name__ == "__main__":
    main()
