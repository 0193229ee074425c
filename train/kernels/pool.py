"""Max pooling whose gradient has the same bytes every time.

PyTorch's own gradient on a GPU is not deterministic (it adds by atomics, and warns where determinism is asked for); on
a CPU it is.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def max_pool2d(x: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """torch.nn.functional.max_pool2d of x [B, C, H, W]."""
    if x.device.type == "cpu":
        return F.max_pool2d(x, kernel, stride, padding)
    return MaxPool2d.apply(x, kernel, stride, padding)


class MaxPool2d(torch.autograd.Function):
    """Max pooling whose gradient takes kernel * kernel passes: one for each place in a window, in a fixed order.

    It equals that of PyTorch on a CPU bit for bit: where a pixel lies in several windows, theirs are added in order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
        y, index = F.max_pool2d(x, kernel, stride, padding, return_indices=True)
        ctx.sizes = x.shape, kernel, stride, padding
        ctx.save_for_backward(index)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        shape, kernel, stride, padding = ctx.sizes
        height, width = shape[2:]

        # Where in its window each maximum is: at row * width + column from the window's first pixel.
        rows, columns = (torch.arange(count, device=dy.device) * stride - padding for count in dy.shape[2:])
        place = index - (rows[:, None] * width + columns)

        dx = torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last).zero_()
        for row in reversed(range(kernel)):
            down, y = _inside(row - padding, stride, height, dy.shape[2])
            for column in reversed(range(kernel)):
                across, x = _inside(column - padding, stride, width, dy.shape[3])
                others = place[:, :, down, across] != row * width + column
                dx[:, :, y, x] += dy[:, :, down, across].masked_fill(others, 0)
        return dx, None, None, None


def _inside(start: int, stride: int, size: int, count: int) -> tuple[slice, slice]:
    """Of pixels start, start + stride, ..., one for each of `count` windows: which lie in [0, size), and those."""
    first = max(0, -(start // stride))
    last = min(count - 1, (size - 1 - start) // stride)
    return slice(first, last + 1), slice(start + first * stride, start + last * stride + 1, stride)
