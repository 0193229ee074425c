"""Batch norm on a CPU by the kernels of datamodels.train.kernels.host: what norm_launch is on a GPU.

PyTorch's own operations take more passes over the activations, and about twice the time.
"""

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datamodels.train.kernels.form import Form, Kept, Moments

PIECE = 1024
"""Pixels that one thread does at a time; a multiple of host.norm.BLOCK."""
CHANNELS, NUMBERS = 32, 1 << 21
"""With fewer channels, which fill no vectors, or fewer activations, PyTorch is as fast or faster."""


def supported(x: Tensor) -> bool:
    """Whether the kernels take x [B, C, H, W], and are the faster way."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[1] >= CHANNELS and x.numel() >= NUMBERS


def statistics(x: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Mean and 1/sqrt(variance + eps) [C] of x, also into the running statistics of `norm`."""
    from datamodels.train.kernels.host import norm as kernels

    bits = _bits(x)
    count, channels = bits.shape
    sums, squares = np.empty((2, _pieces(count), channels))
    _spread(lambda *span: kernels.statistics(bits, sums, squares, PIECE, *span), len(sums))
    mean = sums.sum(0) / count
    var = np.maximum(squares.sum(0) / count - mean**2, 0)
    for running, value in ((norm.running_mean, mean), (norm.running_var, var * (count / (count - 1)))):
        assert running is not None
        assert norm.momentum is not None
        running.lerp_(torch.from_numpy(value).float(), norm.momentum)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    return torch.from_numpy(mean).float(), torch.from_numpy(1 / np.sqrt(var + norm.eps)).float()


def normalise(x: Tensor, moments: Moments, residual: Tensor | None, form: Form) -> tuple[Tensor, Kept]:
    """What `form`, without a pool, makes of x, and what is to be kept for the gradient."""
    from datamodels.train.kernels.host import norm as kernels

    y = torch.empty_like(x)
    added = None if residual is None else _bits(residual)
    before, after = (added if form.residual == place else None for place in ("before", "after"))
    operands = _bits(x), before, after, _bits(y), _affine(moments), _shut(form), PIECE
    _spread(lambda *span: kernels.normalise(*operands, *span), _pieces(len(operands[0])))
    return y, (y,) if form.relu and form.residual == "before" else ()


def backward(
    x: Tensor, kept: Kept, dy: Tensor, moments: Moments, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight, bias and the residual, from that of the result and what `normalise` kept."""
    from datamodels.train.kernels.host import norm as kernels

    affine, rstd = _affine(moments), moments[1].numpy()
    dx = torch.empty_like(x)
    dresidual = (torch.empty_like(x) if kept else dy) if form.residual else None
    operands = _bits(x), _bits(kept[0]) if kept else None, _bits(dy)
    count, channels = operands[0].shape
    pieces = _pieces(count)
    sums, products = np.empty((2, pieces, channels))
    totals = affine, _shut(form), sums, products, PIECE
    _spread(lambda *span: kernels.backward_sums(*operands, *totals, *span), pieces)
    dbias, product = sums.sum(0), products.sum(0)
    slope = (-affine[1] * np.stack([rstd**2 * product, dbias]) / count).astype(np.float32)
    results = _bits(dx), _bits(dresidual) if kept and dresidual is not None else None, affine, slope, _shut(form), PIECE
    _spread(lambda *span: kernels.backward(*operands, *results, *span), pieces)
    return dx, torch.from_numpy(product * rstd).float(), torch.from_numpy(dbias).float(), dresidual


def _bits(x: Tensor) -> NDArray[np.uint16]:
    """Activations [B, C, H, W], channels_last, as bits [pixels, C]; not a copy."""
    return x.detach().permute(0, 2, 3, 1).view(-1, x.shape[1]).view(torch.uint16).numpy()


def _affine(moments: Moments) -> NDArray[np.float32]:
    mean, rstd, weight, bias = (part.detach().numpy() for part in moments)
    return np.stack([mean, weight * rstd, bias])


def _shut(form: Form) -> float:
    return 0.0 if form.relu else -math.inf


def _pieces(pixels: int) -> int:
    return -(-pixels // PIECE)


def _spread(kernel: Callable[[int, int], None], parts: int) -> None:
    """Call a kernel on [0, parts), over as many threads as torch has."""
    threads = min(torch.get_num_threads(), parts)
    (first, *rest) = itertools.pairwise(parts * at // threads for at in range(threads + 1))
    others = [_pool().submit(kernel, *span) for span in rest]
    kernel(*first)
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="kernels")
