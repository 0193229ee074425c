"""How the work of Triton kernels is divided among programs.

Everything depends on shapes alone: a kernel is compiled at its first call with a shape, and no variant is timed, so
that calls after the first one can be captured in a CUDA graph and a row's bytes follow from nothing else.
"""

from dataclasses import dataclass

import torch

from datamodels.train.errors import UserError

OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
"""How every kernel is compiled; named in full since Triton's defaults change between versions."""
TILE = 4096
"""Elements that a program has in registers at a time: two loads of 16 bytes a thread in half precision."""
CHANNELS = 64
"""Channels of a program: 128 bytes of a pixel in half precision, a cache line."""
PROGRAMS = 512
"""Programs of a pass that reduces, nearly 4 for each of a Hopper GPU's 132 multiprocessors."""


def require_indices(values: torch.Tensor) -> None:
    """Raises UserError where a tensor has more numbers than the kernels index, 2**31 - 1."""
    if values.numel() >= 2**31:
        raise UserError(
            f"a step has a tensor {list(values.shape)} of {values.numel():,} numbers, expected fewer than 2**31 for "
            "recipe.kernels: triton; make recipe.batch, recipe.eval_batch or recipe.group smaller, or use torch"
        )


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below the number."""
    return 1 << (number - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Tiling:
    """How passes over activations [pixels, channels] are divided: blocks of `block_p` pixels x `block_c` channels."""

    pixels: int
    channels: int
    block_p: int
    block_c: int

    @property
    def channel_blocks(self) -> int:
        return ceil_div(self.channels, self.block_c)

    @property
    def pixel_blocks(self) -> int:
        return ceil_div(self.pixels, self.block_p)

    @property
    def chunk(self) -> int:
        """Pixels of one program of a pass that reduces."""
        splits = max(1, PROGRAMS // self.channel_blocks)
        return ceil_div(self.pixel_blocks, splits) * self.block_p

    @property
    def splits(self) -> int:
        """Programs of a pass that reduces, for each block of channels."""
        return ceil_div(self.pixels, self.chunk)

    @property
    def blocks(self) -> dict[str, int | bool]:
        """Constants and options of a launch."""
        return {"C": self.channels, "BLOCK_P": self.block_p, "BLOCK_C": self.block_c, **OPTIONS}


def tiling(x: torch.Tensor) -> Tiling:
    """For passes over activations [B, C, H, W] in channels_last order."""
    channels = x.shape[1]
    block_c = min(CHANNELS, power_of_two(channels))
    return Tiling(x.numel() // channels, channels, TILE // block_c, block_c)
