"""Triton: a step of SGD on flat parameters, which moves 20 bytes a parameter and 2 for a copy, not 44 and 6 (and 8)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from datamodels.train.kernels.tiling import OPTIONS, ceil_div, require_indices

BLOCK = 2048


@triton.jit
def sgd(value, grad, momentum, copy, lr, row, size, keep, decay, scale, BLOCK: tl.constexpr):
    """torch.optim.SGD's step with the gradient times `scale`; lr [G], indexed by `row`.

    keep: the factor of the momentum. Without `row` all numbers have the first learning rate; without `copy` none is
    written. Where `size` is a multiple of 16, which Triton sees, 16 bytes are moved at a time.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    old = tl.load(value + at, mask=inside, other=0.0)
    g = tl.load(grad + at, mask=inside, other=0.0) * scale + decay * old
    m = tl.load(momentum + at, mask=inside, other=0.0) * keep + g
    if row is None:
        rate = tl.load(lr)
    else:
        rate = tl.load(lr + tl.load(row + at, mask=inside, other=0), mask=inside, other=0.0)
    new = old - rate * m
    tl.store(momentum + at, m, mask=inside)
    tl.store(value + at, new, mask=inside)
    if copy is not None:
        tl.store(copy + at, new.to(copy.dtype.element_ty), mask=inside)


def sgd_step(
    value: Tensor,
    grad: Tensor,
    momentum: Tensor,
    lr: Tensor,
    *,
    keep: float,
    decay: float,
    scale: float = 1.0,
    row: Tensor | None = None,
    copy: Tensor | None = None,
) -> None:
    """kernels.sgd.sgd_step by Triton, within two roundings a number, since products and sums may be fused.

    Raises UserError where there are more numbers than the kernel indexes.
    """
    require_indices(value)
    operands = (value, grad, momentum, copy, lr, row, value.numel(), keep, decay, scale)
    with torch.cuda.device_of(value):
        sgd[ceil_div(value.numel(), BLOCK),](*operands, BLOCK=BLOCK, **OPTIONS)
