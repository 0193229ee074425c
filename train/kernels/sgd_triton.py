"""Triton: a step of SGD on flat parameters, reading and writing each number once."""

import triton
import triton.language as tl
from torch import Tensor

from datamodels.train.kernels.tiling import OPTIONS, ceil_div

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


def launch(
    value: Tensor,
    grad: Tensor,
    momentum: Tensor,
    copy: Tensor | None,
    lr: Tensor,
    row: Tensor | None,
    keep: float,
    decay: float,
    scale: float,
) -> None:
    """What kernels.sgd.sgd_step does."""
    operands = (value, grad, momentum, copy, lr, row, value.numel(), keep, decay, scale)
    sgd[ceil_div(value.numel(), BLOCK),](*operands, BLOCK=BLOCK, **OPTIONS)
