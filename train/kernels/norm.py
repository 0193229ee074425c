"""Batch norm with the ReLU and the residual after it.

Triton takes four passes over the activation in training. Forward: one for the statistics, one that writes the result,
which is the only one in evaluation. Backward: one for the two sums that the gradient needs, one that writes it; the
ReLU's mask is computed again from the input. Arithmetic is float32, activations are stored in their own precision, and
the same input gives the same bytes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodels.train.kernels.tiling import usable

INT32 = 2**31


def batch_norm_act(
    x: Tensor, norm: nn.BatchNorm2d, *, relu: bool = True, before: Tensor | None = None, after: Tensor | None = None
) -> Tensor:
    """Normalise x [B, C, H, W]; then add `before`, apply a ReLU, add `after`, each if given.

    In training by the batch's statistics, which update the running ones; in evaluation by the running ones. Uses Triton
    if it can run (in evaluation only if no gradient is needed), which copies x unless it is channels_last; else
    `plain_batch_norm_act`. Against float64 on the same x, in the norm of the difference over the norm, Triton's
    activations and their gradients are within 1e-6 in float32, 5e-4 in float16 and 4e-3 in bfloat16, which is how they
    are stored; statistics and the parameters' gradients within 1e-6 of the norm of what they sum. A mean of r
    standard deviations adds 1e-7 r. Raises ValueError where both `before` and `after` are given.
    """
    if before is not None and after is not None:
        raise ValueError("a residual before the ReLU and one after it: expected at most one of them")
    if not (usable(x.device) and _supported(x, norm)):
        return plain_batch_norm_act(x, norm, relu=relu, before=before, after=after)
    from datamodels.train.kernels import norm_launch

    with torch.cuda.device_of(x):
        return norm_launch.batch_norm_act(x, norm, relu, before, after)


def plain_batch_norm_act(
    x: Tensor, norm: nn.BatchNorm2d, *, relu: bool = True, before: Tensor | None = None, after: Tensor | None = None
) -> Tensor:
    """What batch_norm_act computes, in PyTorch's operations."""
    return activated(nn.BatchNorm2d.forward(norm, x), relu=relu, before=before, after=after)


def activated(y: Tensor, *, relu: bool = True, before: Tensor | None = None, after: Tensor | None = None) -> Tensor:
    """Add `before`, apply a ReLU, add `after`; may overwrite y."""
    if before is not None:
        y = y + before
    if relu:
        y = F.relu_(y)
    return y if after is None else y + after


def _supported(x: Tensor, norm: nn.BatchNorm2d) -> bool:
    return (
        x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and x.numel() < INT32
        and x.numel() > x.shape[1]
        and (norm.training or not torch.is_grad_enabled())
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
    )
