"""Launches of Triton's batch norm, for activations [B, C, H, W] in channels_last order, and its gradient.

It takes four passes over the activation in training. Forward: one for the statistics, one that writes the result, which
is the only one in evaluation. Backward: one for the two sums that the gradient needs, one that writes it; the ReLU's
mask is computed again from the input. Arithmetic is float32, activations are stored in their own precision, and the
same input gives the same bytes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from datamodels.train.kernels import norm_triton as kernels
from datamodels.train.kernels.tiling import OPTIONS, Tiling, ceil_div, power_of_two, require_indices, tiling

FEW_CHANNELS = 8
"""Channels of a program that combines what the programs of a pass have found: 32 bytes of float32."""

Moments = tuple[Tensor, Tensor, Tensor, Tensor]
"""Mean, 1/sqrt(variance + eps) (in evaluation the variance), weight and bias, [C] each."""


def batch_norm_act(
    x: Tensor, norm: nn.BatchNorm2d, *, relu: bool = True, before: Tensor | None = None, after: Tensor | None = None
) -> Tensor:
    """kernels.norm.batch_norm_act by Triton, in evaluation without a gradient. Copies x unless it is channels_last.

    Against float64 on the same x, in the norm of the difference over the norm, activations and their gradients are
    within 1e-6 in float32, 5e-4 in float16 and 4e-3 in bfloat16, which is how they are stored; statistics and the
    parameters' gradients within 1e-6 of the norm of what they sum. A mean of r standard deviations adds 1e-7 r.
    Raises UserError where x has more numbers than the kernels index.
    """
    require_indices(x)
    place, residual = (kernels.AFTER.value, after) if before is None else (kernels.BEFORE.value, before)
    if residual is None:
        place = 0
    with torch.cuda.device_of(x):
        if norm.training:
            return BatchNormAct.apply(x, norm.weight, norm.bias, residual, norm, relu, place)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        moments = norm.running_mean, norm.running_var, norm.weight, norm.bias
        residual = None if residual is None else _channels_last(residual)
        return _normalised(_channels_last(x), moments, residual, relu, place, eps=norm.eps)


class BatchNormAct(torch.autograd.Function):
    """Batch norm in training mode, ReLU and residual, with their gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        norm: nn.BatchNorm2d,
        relu: bool,
        place: int,
    ) -> Tensor:
        x, residual = _channels_last(x), None if residual is None else _channels_last(residual)
        mean, rstd = _statistics(x, norm)
        y = _normalised(x, (mean, rstd, weight, bias), residual, relu, place)
        # Where a residual came before the ReLU, its mask is read from the result, which the next block keeps anyway.
        masked = relu and place == kernels.BEFORE.value
        ctx.form = relu, place, masked
        ctx.save_for_backward(x, mean, rstd, weight, bias, *([y] if masked else []))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias, *results = ctx.saved_tensors
        relu, place, masked = ctx.form
        with torch.cuda.device_of(x):
            dy = _channels_last(dy)
            dx = torch.empty_like(x)
            dresidual = torch.empty_like(x) if masked else dy if place else None
            operands = x, results[0] if masked else None, dy, dx, dresidual, mean, rstd, weight, bias
            form = {"RELU": relu, "RESIDUAL": place}

            tiles = tiling(x)
            sums, products = x.new_empty((2, tiles.splits, tiles.channels), dtype=torch.float32)
            sizes, blocks = (tiles.pixels, tiles.chunk), {**form, **tiles.blocks}
            reducing = tiles.splits, tiles.channel_blocks
            kernels.backward[reducing](*operands, sums, products, *sizes, APPLY=False, **blocks)

            dbias, dweight = x.new_empty((2, tiles.channels), dtype=torch.float32)
            grid, few = _few_channels(tiles)
            kernels.total[grid](sums, products, dbias, dweight, tiles.splits, **few)

            writing = tiles.pixel_blocks, tiles.channel_blocks
            kernels.backward[writing](*operands, dbias, dweight, *sizes, APPLY=True, **blocks)
        return dx, dweight, dbias, dresidual, None, None, None


def _statistics(x: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Mean and 1/sqrt(variance + eps) [C] of x, also into the running statistics of `norm`."""
    tiles = tiling(x)
    means, squares = x.new_empty((2, tiles.splits, tiles.channels), dtype=torch.float32)
    mean, rstd = x.new_empty((2, tiles.channels), dtype=torch.float32)
    sizes = tiles.pixels, tiles.chunk
    kernels.statistics[tiles.splits, tiles.channel_blocks](x, means, squares, *sizes, **tiles.blocks)
    running = norm.running_mean, norm.running_var, norm.num_batches_tracked
    grid, few = _few_channels(tiles)
    partial = x, means, squares, mean, rstd
    kernels.finalise[grid](*partial, *running, *sizes, tiles.splits, norm.eps, norm.momentum, **few)
    return mean, rstd


def _normalised(
    x: Tensor, moments: Moments, residual: Tensor | None, relu: bool, place: int, eps: float | None = None
) -> Tensor:
    """eps: of an evaluation; the second moment is then the variance."""
    tiles, y = tiling(x), torch.empty_like(x)
    grid, form = (tiles.pixel_blocks, tiles.channel_blocks), {"RELU": relu, "RESIDUAL": place, "EPS": eps}
    kernels.normalise[grid](x, residual, y, *moments, tiles.pixels, **form, **tiles.blocks)
    return y


def _few_channels(tiles: Tiling) -> tuple[tuple[int], dict[str, int | bool]]:
    """Grid and constants of a launch that combines the results of a pass."""
    constants = {"C": tiles.channels, "SPLITS": power_of_two(tiles.splits), "BLOCK_C": FEW_CHANNELS, **OPTIONS}
    return (ceil_div(tiles.channels, FEW_CHANNELS),), constants


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
