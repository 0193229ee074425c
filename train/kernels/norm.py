"""Batch norm with the ReLU and the residual after it, in PyTorch's operations."""

from torch import Tensor, nn
from torch.nn import functional as F


def batch_norm_act(
    x: Tensor, norm: nn.BatchNorm2d, *, relu: bool = True, before: Tensor | None = None, after: Tensor | None = None
) -> Tensor:
    """Normalise x [B, C, H, W]; then add `before`, apply a ReLU, add `after`, each if given; at most one residual is.

    In training by the batch's statistics, which update the running ones; in evaluation by the running ones.
    """
    return activated(nn.BatchNorm2d.forward(norm, x), relu=relu, before=before, after=after)


def activated(y: Tensor, *, relu: bool = True, before: Tensor | None = None, after: Tensor | None = None) -> Tensor:
    """Add `before`, apply a ReLU, add `after`; may overwrite y."""
    if before is not None:
        y = y + before
    if relu:
        y = F.relu_(y)
    return y if after is None else y + after
