"""What a batch norm is followed by, and PyTorch's own operations for it."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Form:
    """What follows batch norm: a ReLU, a residual added before or after it, or a pooling."""

    relu: bool = True
    residual: Literal["before", "after"] | None = None
    pool: Literal["2x2", "3x3", "global"] | None = None
    """`2x2`: MaxPool2d(2); `3x3`: MaxPool2d(3, 2, 1); `global`: the maximum of each image and channel, [B, C]."""

    def __post_init__(self) -> None:
        if self.pool and self.residual:
            raise ValueError(f"pool={self.pool!r} with residual={self.residual!r}: expected at most one of them")


RELU = Form()

Kept = tuple[Tensor, ...]
"""What a backward needs besides x: the result of a sum's ReLU, or what an overlapping pool has chosen."""
Moments = tuple[Tensor, Tensor, Tensor, Tensor]
"""Mean, 1/sqrt(variance + eps) (in evaluation the variance), weight and bias, [C] each."""


def composition(x: Tensor, norm: nn.BatchNorm2d, form: Form, residual: Tensor | None = None) -> Tensor:
    """Batch norm and what `form` says, in PyTorch's operations."""
    return finish(nn.BatchNorm2d.forward(norm, x), form, residual)


def finish(y: Tensor, form: Form, residual: Tensor | None = None) -> Tensor:
    """What `form` says, from normalised activations, which it may overwrite."""
    if residual is not None and form.residual == "before":
        y = y + residual
    if form.relu:
        y = F.relu_(y)
    if residual is not None and form.residual == "after":
        y = y + residual
    if form.pool == "2x2":
        return F.max_pool2d(y, 2)
    if form.pool == "3x3":
        return F.max_pool2d(y, 3, stride=2, padding=1)
    return y.amax((2, 3)) if form.pool == "global" else y
