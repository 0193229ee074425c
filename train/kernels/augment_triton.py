"""Triton: a training batch from the split's bytes, each of which is read once."""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from datamodels.train.kernels.augment import Augment
from datamodels.train.kernels.tiling import OPTIONS, ceil_div

BLOCK = 2048


@triton.jit
def field(draw, number: tl.constexpr):
    """Bits 16 number to 16 number + 15."""
    return ((draw >> (16 * number)) & 0xFFFF).to(tl.int32)


@triton.jit
def augment(
    bordered,
    index,
    draws,
    table,
    fill,
    y,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,
    T: tl.constexpr,
    FLIP: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y [images, H, W, OUT] of bordered [N, H + 2T, W + 2T, C], mirrored, translated, cut out and looked up in `table`.

    table: [256, C], what each value of a byte is normalised to. Channels of y from C on are 0.
    """
    image = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < H * W * OUT
    channel = at % OUT
    column = at // OUT % W
    row = at // (OUT * W)
    draw = tl.load(draws + image)
    shift = field(draw, 1) * ((2 * T + 1) * (2 * T + 1)) >> 16
    source_row = row + shift // (2 * T + 1)
    source_column = column + shift % (2 * T + 1)
    if FLIP:
        source_column = tl.where(field(draw, 0) & 1 == 1, W + 2 * T - 1 - source_column, source_column)
    start = tl.load(index + image) * ((H + 2 * T) * (W + 2 * T) * C)
    real = inside & (channel < C)
    byte = tl.load(bordered + start + (source_row * (W + 2 * T) + source_column) * C + channel, mask=real, other=0)
    if SIDE:
        down = row - (field(draw, 2) * (H - SIDE + 1) >> 16)
        across = column - (field(draw, 3) * (W - SIDE + 1) >> 16)
        hole = (down >= 0) & (down < SIDE) & (across >= 0) & (across < SIDE)
        byte = tl.where(hole, tl.load(fill + channel, mask=real, other=0), byte)
    value = tl.load(table + byte.to(tl.int32) * C + channel, mask=real, other=0.0)
    tl.store(y + image.to(tl.int64) * (H * W * OUT) + at, value, mask=inside)


class TritonAugment(Augment):
    """Augment by Triton, which gives the same bits; images of other types than uint8 are left to PyTorch.

    A byte has 256 values: what each is normalised to is looked up.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        values = torch.arange(256, dtype=torch.uint8, device=self.fill.device)[:, None].expand(256, len(self.fill))
        self.table = self.normalise(values).to(self.dtype).contiguous()

    def __call__(self, bordered: Tensor, index_GB: Tensor, draws_GB: Tensor) -> Tensor:
        if bordered.dtype != torch.uint8:
            return super().__call__(bordered, index_GB, draws_GB)
        recipe, shape = self.recipe, (self.height, self.width, self.channels)
        images = torch.empty((*index_GB.shape, *shape), dtype=self.dtype, device=bordered.device)
        tensors = (bordered, index_GB.contiguous(), draws_GB.contiguous(), self.table, self.fill, images)
        sizes = {"H": self.height, "W": self.width, "C": len(self.fill), "OUT": self.channels}
        changes = {"T": recipe.translate, "FLIP": recipe.flip, "SIDE": recipe.cutout}
        grid = (index_GB.numel(), ceil_div(math.prod(shape), BLOCK))
        with torch.cuda.device_of(bordered):
            augment[grid](*tensors, **sizes, **changes, BLOCK=BLOCK, **OPTIONS)
        return images
