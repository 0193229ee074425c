"""numba: batch norm in training mode, ReLU and a residual, on bfloat16 activations that lie as [pixels, channels].

As in device.norm; a bfloat16 comes as uint16. What is added up is float32 within a block of pixels and float64 beyond.
A kernel does the pieces [start, stop) of `piece` pixels, which follow from the shape alone: whichever thread does one,
the bytes are the same. Innermost loops are over channels, which LLVM makes vectors of.

affine [3, C]: mean, weight / sqrt(variance + eps), bias. shut: what a ReLU lets nothing through below: 0, or -inf where
there is no ReLU.
"""

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.compiled import compiled_strictly

Bits = NDArray[np.uint16]
Channels = NDArray[np.float32]
Sums = NDArray[np.float64]

BLOCK = 64
"""Pixels that are added up in float32."""


@compiled_strictly
def wide(bits: np.uint16) -> np.float32:
    """A bfloat16 as float32."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@compiled_strictly
def narrow(value: np.float32) -> np.uint16:
    """The nearest bfloat16, the even one of two; a NaN stays one."""
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
    nearest = np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    return nearest if value == value else np.uint16(0x7FC0)


@compiled_strictly
def rectify(value: np.float32, shut: np.float32) -> np.float32:
    """ReLU that keeps a NaN, so that a run that has diverged is seen."""
    return shut if value <= shut else value


@compiled_strictly
def statistics(x: Bits, sums: Sums, squares: Sums, piece: int, start: int, stop: int) -> None:
    """Sums of x and of x * x [pieces, C]; in a block about its mean, so that a mean far from 0 costs no digits."""
    pixels, channels = x.shape
    total, square, mean = np.empty(channels, np.float32), np.empty(channels, np.float32), np.empty(channels, np.float32)
    for at in range(start, stop):
        sums[at] = 0.0
        squares[at] = 0.0
        for first in range(at * piece, min(at * piece + piece, pixels), BLOCK):
            count = min(BLOCK, pixels - first)
            total[:] = 0.0
            square[:] = 0.0
            for p in range(first, first + count):
                row = x[p]
                for c in range(channels):
                    total[c] += wide(row[c])
            for c in range(channels):
                mean[c] = total[c] / np.float32(count)
            for p in range(first, first + count):
                row = x[p]
                for c in range(channels):
                    away = wide(row[c]) - mean[c]
                    square[c] += away * away
            for c in range(channels):
                sums[at, c] += total[c]
                squares[at, c] += square[c] + np.float64(mean[c]) * (2.0 * total[c] - count * np.float64(mean[c]))


@compiled_strictly
def normalise(
    x: Bits,
    before: Bits | None,
    after: Bits | None,
    y: Bits,
    affine: Channels,
    shut: float,
    piece: int,
    start: int,
    stop: int,
) -> None:
    """y = relu(bn(x) + before) + after, where there are such."""
    pixels, channels = x.shape
    mean, scale, bias = affine[0], affine[1], affine[2]
    shut32 = np.float32(shut)
    for p in range(start * piece, min(stop * piece, pixels)):
        source, target = x[p], y[p]
        for c in range(channels):
            value = (wide(source[c]) - mean[c]) * scale[c] + bias[c]
            if before is not None:
                value += wide(before[p, c])
            value = rectify(value, shut32)
            if after is not None:
                value += wide(after[p, c])
            target[c] = narrow(value)


@compiled_strictly
def backward_sums(
    x: Bits,
    y: Bits | None,
    dy: Bits,
    affine: Channels,
    shut: float,
    sums: Sums,
    products: Sums,
    piece: int,
    start: int,
    stop: int,
) -> None:
    """Sums [pieces, C] of g, which is dy where the ReLU was open, and of g * (x - mean). y: bn(x) + before, if any."""
    pixels, channels = x.shape
    mean, scale, bias = affine[0], affine[1], affine[2]
    total, product = np.empty(channels, np.float32), np.empty(channels, np.float32)
    shut32 = np.float32(shut)
    for at in range(start, stop):
        sums[at] = 0.0
        products[at] = 0.0
        for first in range(at * piece, min(at * piece + piece, pixels), BLOCK):
            total[:] = 0.0
            product[:] = 0.0
            for p in range(first, min(first + BLOCK, pixels)):
                source, gradient = x[p], dy[p]
                for c in range(channels):
                    away = wide(source[c]) - mean[c]
                    if y is None:
                        result = away * scale[c] + bias[c]
                    else:
                        result = wide(y[p, c])
                    g = wide(gradient[c])
                    g = np.float32(0.0) if result <= shut32 else g
                    total[c] += g
                    product[c] += g * away
            for c in range(channels):
                sums[at, c] += total[c]
                products[at, c] += product[c]


@compiled_strictly
def backward(
    x: Bits,
    y: Bits | None,
    dy: Bits,
    dx: Bits,
    dbefore: Bits | None,
    affine: Channels,
    slope: Channels,
    shut: float,
    piece: int,
    start: int,
    stop: int,
) -> None:
    """dx = scale * g + slope[0] * (x - mean) + slope[1], and g itself as the gradient of `before`."""
    pixels, channels = x.shape
    mean, scale, bias = affine[0], affine[1], affine[2]
    tilt, offset = slope[0], slope[1]
    shut32 = np.float32(shut)
    for p in range(start * piece, min(stop * piece, pixels)):
        source, gradient, target = x[p], dy[p], dx[p]
        for c in range(channels):
            away = wide(source[c]) - mean[c]
            if y is None:
                result = away * scale[c] + bias[c]
            else:
                result = wide(y[p, c])
            g = gradient[c]
            g = np.uint16(0) if result <= shut32 else g
            if dbefore is not None:
                dbefore[p, c] = g
            target[c] = narrow(scale[c] * wide(g) + (tilt[c] * away + offset[c]))
