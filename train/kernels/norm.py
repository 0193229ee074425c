"""Batch norm with the ReLU, residual and pooling around it, in four passes over the activation in training.

Forward: one for the statistics, one that writes the result, which is the only one in evaluation. Backward: one for the
two sums that the gradient needs, one that writes it; the ReLU's mask and the pool's choices are computed again from the
input, but for pools whose windows overlap. Arithmetic is float32, activations are stored in their own precision, and
the same input gives the same bytes.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from datamodels.train.kernels import norm_host
from datamodels.train.kernels.form import RELU, Form, composition, finish
from datamodels.train.kernels.runtime import usable

INT32 = 2**31
AMAX_PIXELS = 512
"""Most pixels of an image that a program can take at once."""


def batch_norm_act(x: Tensor, norm: nn.BatchNorm2d, form: Form = RELU, residual: Tensor | None = None) -> Tensor:
    """Normalise x [B, C, H, W], and do what `form` says.

    In training with the batch's statistics, which update the running ones; in evaluation with those. Own kernels where
    they can run: on a GPU (in evaluation, where no gradient is wanted), and in training on a CPU in bfloat16, where
    PyTorch does the pooling; `composition` otherwise. x that is not channels_last is copied first. Against float64 on
    the same x, in the norm of the difference over the norm, activations and their gradients are within 1e-6 in float32,
    5e-4 in float16 and 4e-3 in bfloat16, which is how they are stored; statistics and the parameters' gradients within
    1e-6 of what they add up. A mean of r standard deviations costs 1e-7 r besides.
    """
    if (residual is None) != (form.residual is None):
        raise ValueError(f"form.residual is {form.residual!r}, but {'no' if residual is None else 'a'} residual came")
    if not _supported(x, norm, form):
        return composition(x, norm, form, residual)
    if not norm.training:
        return _evaluated(x, norm, form, residual)
    if form.pool and not usable(x.device):
        return finish(batch_norm_act(x, norm, Form(form.relu)), Form(relu=False, pool=form.pool))
    return _BatchNormAct.apply(x, norm.weight, norm.bias, residual, norm, form)


class BatchNormAct(nn.BatchNorm2d):
    """nn.BatchNorm2d, and what `form` says after it; parameters and buffers have the same names."""

    def __init__(self, channels: int, form: Form = RELU) -> None:
        super().__init__(channels)
        self.form = form

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return batch_norm_act(x, self, self.form, residual)


def _supported(x: Tensor, norm: nn.BatchNorm2d, form: Form) -> bool:
    batch, _, height, width = x.shape
    return (
        (norm.training or not torch.is_grad_enabled())
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and batch * height * width > 1
        and (_device_supports(x, form) if usable(x.device) else norm.training and norm_host.supported(x))
    )


def _device_supports(x: Tensor, form: Form) -> bool:
    height, width = x.shape[2:]
    return (
        x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and x.numel() < INT32
        and (form.pool != "2x2" or min(height, width) > 1)
        and (form.pool != "global" or height * width <= AMAX_PIXELS)
    )


def _evaluated(x: Tensor, norm: nn.BatchNorm2d, form: Form, residual: Tensor | None) -> Tensor:
    from datamodels.train.kernels import norm_launch

    x, residual = _channels_last(x), None if residual is None else _channels_last(residual)
    with torch.cuda.device_of(x):
        return norm_launch.evaluated(x, norm, residual, form)


def _launches(x: Tensor) -> ModuleType:
    """The launches of the kernels for where x is, in training."""
    if not usable(x.device):
        return norm_host
    from datamodels.train.kernels import norm_launch

    return norm_launch


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, norm: nn.BatchNorm2d, form: Form
    ) -> Tensor:
        launches = _launches(x)
        x, residual = _channels_last(x), None if residual is None else _channels_last(residual)
        with torch.cuda.device_of(x):
            mean, rstd = launches.statistics(x, norm)
            y, kept = launches.normalise(x, (mean, rstd, weight, bias), residual, form)
        ctx.form = form
        ctx.save_for_backward(x, mean, rstd, weight, bias, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias, *kept = ctx.saved_tensors
        dy = dy.contiguous() if ctx.form.pool == "global" else _channels_last(dy)
        with torch.cuda.device_of(x):
            gradients = _launches(x).backward(x, tuple(kept), dy, (mean, rstd, weight, bias), ctx.form)
        return *gradients, None, None


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
