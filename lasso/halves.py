"""Matrix products in torch from float16 factors with float32 sums, the fastest that a GPU has, without their error.

Masks, and counts less a plane (see lasso.correlations), are integers that float16 holds exactly. What they are
multiplied with is split into two float16 parts of 11 bits each, so that a product is as good as one in float32, and
exact where its sums are integers below 2**24. TensorFloat-32 is used nowhere.
"""

import torch
from torch import Tensor

_BITS = 12
"""Largest values are scaled to below 2**12, so that small ones do not fall below float16's range."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32 of float16 matrices."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


class Halves:
    """x [N, t] in float64 as scale * (high + low)."""

    def __init__(self, x: Tensor) -> None:
        _, exponent = torch.frexp(x.abs().amax(dim=0))
        self.scale = torch.ldexp(torch.ones_like(x[0]), exponent - _BITS)
        scaled = x / self.scale
        high = scaled.half()
        self.parts = torch.cat([high, (scaled - high.double()).half()], dim=1)

    def times(self, a: Tensor) -> Tensor:
        """a @ x in float64 of a float16 matrix a."""
        high, low = product(a, self.parts).double().chunk(2, dim=1)
        return (high + low) * self.scale
