"""Matrix products in torch from float16 factors, the fastest that a GPU has, without their error.

Masks, and counts less a plane (see datamodels.lasso.solver.correlations), are integers that float16 holds exactly. What they are
multiplied with is split into two float16 parts of 11 bits each. Tensor cores cut off what their float32 sums cannot
hold instead of rounding it (Fasi, Higham, Mikaitis & Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ
Comput. Sci. 7:e330, 2021), an error that grows with the terms of a sum. So few are added up at a time, and the sums of
those in float64. TensorFloat-32 is used nowhere.
"""

import torch
from torch import Tensor

_BITS = 12
"""Largest values are scaled to below 2**12, so that small ones do not fall below float16's range."""
_TERMS = 4096
"""Terms of a sum in float32."""
_ROWS = 8192
"""Rows of a factor that one call of a device's library is given: they fail where a matrix has 2**31 elements."""
_CPU_ROWS = 512
"""The same on a CPU, where float16 is made float32 first."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32 of float16 matrices, or of stacks of them."""
    if not a.is_cuda:
        return a.float() @ b.float()
    return (torch.bmm if a.dim() == 3 else torch.mm)(a, b, out_dtype=torch.float32)


def summed(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float64 of float16 matrices [m, k] and [k, t], from sums of _TERMS terms in float32."""
    found = torch.empty((len(a), b.shape[1]), dtype=torch.float64, device=a.device)
    height = _ROWS if a.is_cuda else _CPU_ROWS
    whole = len(b) - len(b) % _TERMS
    stacked = b[:whole].unflatten(0, (-1, _TERMS)) if whole else None
    for start in range(0, len(a), height):
        rows = a[start : start + height]
        part = product(rows[:, whole:], b[whole:]).double()
        if stacked is not None:
            stack = rows[:, :whole].unflatten(1, (-1, _TERMS)).transpose(0, 1)
            part += product(stack, stacked).sum(dim=0, dtype=torch.float64)
        found[start : start + height] = part
    return found


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
        high, low = summed(a, self.parts).chunk(2, dim=1)
        return (high + low) * self.scale
