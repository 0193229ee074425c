"""Launches of the batch norm kernels, for activations [B, C, H, W] in channels_last order."""

import torch
from torch import Tensor, nn

from datamodels.train.kernels.device import norm as plain
from datamodels.train.kernels.device import overlap, pool
from datamodels.train.kernels.form import Form, Kept, Moments
from datamodels.train.kernels.runtime import OPTIONS, TILE, Tiling, ceil_div, image_tiling, power_of_two, tiling

POOL_TILE = 2048
"""Windows x channels of a program; each has four activations."""
FEW_CHANNELS = 8
"""Channels of a program that combines what the programs of a pass have found: 32 bytes of float32."""
PLACES = {None: 0, "before": plain.BEFORE.value, "after": plain.AFTER.value}


def statistics(x: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Mean and 1/sqrt(variance + eps) [C] of x, also into the running statistics of `norm`."""
    channels = x.shape[1]
    tiles = tiling(x.numel() // channels, channels, TILE)
    means, squares = x.new_empty((2, tiles.splits, channels), dtype=torch.float32)
    mean, rstd = x.new_empty((2, channels), dtype=torch.float32)
    plain.statistics[tiles.splits, tiles.channel_blocks](x, means, squares, tiles.items, tiles.chunk, **tiles.blocks)
    running = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    sizes = (tiles.items, tiles.chunk, tiles.splits)
    grid, blocks = _few_channels(tiles)
    plain.finalise[grid](x, means, squares, mean, rstd, *running, *sizes, norm.eps, norm.momentum, **blocks)
    return mean, rstd


def evaluated(x: Tensor, norm: nn.BatchNorm2d, residual: Tensor | None, form: Form) -> Tensor:
    """What `form` makes of x with the running statistics of `norm`, in one pass."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return normalise(x, (norm.running_mean, norm.running_var, norm.weight, norm.bias), residual, form, norm.eps)[0]


def normalise(
    x: Tensor, moments: Moments, residual: Tensor | None, form: Form, eps: float | None = None
) -> tuple[Tensor, Kept]:
    """What `form` makes of x, and what is to be kept for the gradient.

    eps: of an evaluation; the second moment is then the variance, and nothing is kept.
    """
    batch, channels, height, width = x.shape
    tiles = _tiles(x, form)
    grid = (tiles.steps, tiles.channel_blocks)
    how = {"RELU": form.relu, "EPS": eps, **tiles.blocks}
    kept: Kept = ()
    if form.pool == "global":
        y = x.new_empty((batch, channels))
        pool.normalise_amax[grid](x, y, *moments, HW=height * width, **how)
    elif form.pool == "2x2":
        y = _empty(x, height // 2, width // 2)
        pool.normalise_pool[grid](x, y, *moments, tiles.items, H=height, W=width, **how)
    elif form.pool == "3x3":
        y = _empty(x, ceil_div(height, 2), ceil_div(width, 2))
        if eps is None:
            kept = torch.empty_like(y), torch.empty_like(y, dtype=torch.uint8)
        overlap.normalise_pool[grid](x, y, *(kept or (None, None)), *moments, tiles.items, H=height, W=width, **how)
    else:
        y = _empty(x, height, width)
        plain.normalise[grid](x, residual, y, *moments, tiles.items, RESIDUAL=PLACES[form.residual], **how)
        if form.relu and form.residual == "before" and eps is None:
            kept = (y,)  # the next block's input, which is kept anyway
    return y, kept


def backward(
    x: Tensor, kept: Kept, dy: Tensor, moments: Moments, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight, bias and the residual, from that of the result and what `normalise` kept."""
    channels, height, width = x.shape[1:]
    tiles = _tiles(x, form)
    dx, dresidual = _empty(x, height, width), None
    if form.residual:
        dresidual = _empty(x, height, width) if kept else dy
    operands = (x, kept, dy, dx, dresidual, moments)
    sums, products = x.new_empty((2, tiles.splits, channels), dtype=torch.float32)
    _backward_pass(*operands, (sums, products), tiles, form, apply=False)
    dbias, dweight = x.new_empty((2, channels), dtype=torch.float32)
    grid, blocks = _few_channels(tiles)
    plain.total[grid](sums, products, dbias, dweight, tiles.splits, **blocks)
    _backward_pass(*operands, (dbias, dweight), tiles, form, apply=True)
    return dx, dweight, dbias, dresidual


def _backward_pass(
    x: Tensor,
    kept: Kept,
    dy: Tensor,
    dx: Tensor,
    dresidual: Tensor | None,
    moments: Moments,
    sums: tuple[Tensor, Tensor],
    tiles: Tiling,
    form: Form,
    apply: bool,
) -> None:
    _, channels, height, width = x.shape
    grid = (tiles.steps if apply else tiles.splits, tiles.channel_blocks)
    sizes = (tiles.items, tiles.step if apply else tiles.chunk)
    blocks = {"RELU": form.relu, "APPLY": apply, **tiles.blocks}
    if form.pool == "global":
        pool.backward_amax[grid](x, dy, dx, *moments, *sums, *sizes, HW=height * width, **blocks)
    elif form.pool == "2x2":
        pixels = x.numel() // channels
        pool.backward_pool[grid](x, dy, dx, *moments, *sums, *sizes, pixels, H=height, W=width, **blocks)
    elif form.pool == "3x3" and apply:
        shape = {"H": height, "W": width, **tiles.blocks}
        overlap.backward_pool[grid](x, kept[1], dy, dx, *moments, *sums, tiles.items, x.numel() // channels, **shape)
    else:
        # What a pool has chosen is all that its sums are over.
        x, y = (kept[0], None) if form.pool else (x, kept[0] if kept else None)
        place = PLACES[form.residual]
        plain.backward[grid](x, y, dy, dx, dresidual, *moments, *sums, *sizes, RESIDUAL=place, **blocks)


def _tiles(x: Tensor, form: Form) -> Tiling:
    batch, channels, height, width = x.shape
    if form.pool == "global":
        return image_tiling(batch, height * width, channels)
    if form.pool in ("2x2", "3x3"):
        return tiling(batch * ceil_div(height, 2) * ceil_div(width, 2), channels, POOL_TILE)
    return tiling(batch * height * width, channels, TILE)


def _empty(x: Tensor, height: int, width: int) -> Tensor:
    shape = (*x.shape[:2], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _few_channels(tiles: Tiling) -> tuple[tuple[int], dict[str, int | bool]]:
    """Grid and block sizes of a launch that combines the results of a pass."""
    blocks = {"C": tiles.channels, "SPLITS": power_of_two(tiles.splits), "BLOCK_C": FEW_CHANNELS, **OPTIONS}
    return (ceil_div(tiles.channels, FEW_CHANNELS),), blocks
