"""Triton: the end of a convolution block that is pooled by 3x3 windows two pixels apart, with a border of one.

A pixel lies in up to four windows. The forward pass keeps a byte a window that tells its first maximum, as in torch,
and what x is there: the gradient's sums are then over the windows alone, and each pixel gathers its gradient from the
windows that chose it, in a fixed order. That moves less than to choose again: 11 bytes a pixel and channel, not 11.5.

Window (i, j) has pixel (2i, 2j) in its middle, so that there are as many windows as blocks of 2x2 pixels, with half
blocks at the end of odd sides; window and block have the same number.
"""

import triton
import triton.language as tl

from datamodels.train.kernels.device.norm import affine, per_channel, rectify, slope
from datamodels.train.kernels.device.pool import greater, pixel_of

SHUT: tl.constexpr = tl.constexpr(9)
"""In the place of a window's choice (0-8), where the ReLU let nothing through."""


@triton.jit(do_not_specialize=["windows"])
def normalise_pool(
    x,
    y,
    chosen,
    choice,
    mean,
    rstd,
    weight,
    bias,
    windows,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    RELU: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y = max_pool2d(relu(bn(x)), 3, 2, 1); of each window, where that is asked for, its pixel and what x is there."""
    window = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < C
    m, _, scale, b = per_channel(mean, rstd, weight, bias, channel, there, EPS)
    inside = (window < windows)[:, None] & there[None, :]
    across = (W + 1) // 2
    row = window // across % ((H + 1) // 2) * 2
    column = window % across * 2
    middle, _ = pixel_of(window, 0, H, W)
    best = tl.full((BLOCK_P, BLOCK_C), float("-inf"), tl.float32)
    found = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    winner = tl.zeros((BLOCK_P, BLOCK_C), tl.int32)
    for place in tl.static_range(9):
        down = place // 3 - 1
        right = place % 3 - 1
        exists = (row + down >= 0) & (row + down < H) & (column + right >= 0) & (column + right < W)
        real = exists[:, None] & inside
        at = (middle + down * W + right)[:, None] * C + channel[None, :]
        value = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
        activation = affine(value, m, scale, b).to(x.dtype.element_ty).to(tl.float32)
        better = real & greater(activation, best)
        best = tl.where(better, activation, best)
        found = tl.where(better, value, found)
        winner = tl.where(better, place, winner)
    if RELU:
        winner = tl.where(best > 0, winner, SHUT)
        best = rectify(best)
    at = window[:, None] * C + channel[None, :]
    tl.store(y + at, best.to(y.dtype.element_ty), mask=inside)
    if chosen is not None:
        tl.store(chosen + at, found.to(chosen.dtype.element_ty), mask=inside)
        tl.store(choice + at, winner.to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["windows", "pixels"])
def backward_pool(
    x,
    choice,
    dy,
    dx,
    mean,
    rstd,
    weight,
    bias,
    sums,
    products,
    windows,
    pixels,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The second launch of norm.backward, where g is the sum of dy over the windows that chose a pixel."""
    block = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = channel < C
    m, r, scale, _ = per_channel(mean, rstd, weight, bias, channel, there)
    across = (W + 1) // 2
    row = block // across % ((H + 1) // 2)
    column = block % across
    for corner in tl.static_range(4):
        pixel, exists = pixel_of(block, corner, H, W)
        at = pixel[:, None] * C + channel[None, :]
        inside = (exists & (block < windows))[:, None] & there[None, :]
        g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for down in tl.static_range(corner // 2 + 1):
            for right in tl.static_range(corner % 2 + 1):
                known = (row + down < (H + 1) // 2) & (column + right < across)
                window = (block + down * across + right)[:, None] * C + channel[None, :]
                real = inside & known[:, None]
                place = (corner // 2 + 1 - 2 * down) * 3 + corner % 2 + 1 - 2 * right
                mine = tl.load(choice + window, mask=real, other=SHUT) == place
                g += tl.where(mine, tl.load(dy + window, mask=real, other=0.0).to(tl.float32), 0.0)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        gradient = slope(value, g, m, r, scale, sums, products, pixels, channel, there)
        tl.store(dx + at, gradient.to(dx.dtype.element_ty), mask=inside)
