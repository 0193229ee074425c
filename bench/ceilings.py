"""What a device does at best, measured through torch: a large matrix product, and a large copy. Random data."""

import torch

from bench.timing import seconds
from datamodels.train.trainer.device import on_gpu


class Matmul:
    """A square product of random matrices, in the precision that the trainer computes in."""

    def __init__(self, side: int, device: torch.device, dtype: torch.dtype) -> None:
        self.side = side
        self.a, self.b = (torch.randn(side, side, device=device).to(dtype) for _ in "ab")
        self.out = torch.empty(side, side, device=device, dtype=dtype)
        self.flops = 2 * side**3

    def __call__(self) -> None:
        torch.matmul(self.a, self.b, out=self.out)


def matmul(device: torch.device, dtype: torch.dtype, tiny: bool = False) -> tuple[Matmul, float]:
    """The best product of a few sizes, and its FLOP/s: the median of its readings."""
    sides = (256,) if tiny else (4096, 8192, 16384) if on_gpu(device) else (1024, 2048, 3072)
    repeats = 3 if tiny else 50 if on_gpu(device) else 7
    found = []
    for side in sides:
        product = Matmul(side, device, dtype)
        found.append((product, product.flops / seconds(product, device, repeats, warm_up=3)))
    return max(found, key=lambda pair: pair[1])


def copy_bandwidth(device: torch.device, tiny: bool = False) -> float:
    """Bytes a second, read and written, of copying a buffer that no cache holds."""
    size = 1 << (20 if tiny else 32 if on_gpu(device) else 28)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device, repeats=3 if tiny else 20)
