"""Where own kernels run, and how their work is divided.

Everything depends on shapes alone: a kernel is compiled at its first call with a shape, and nothing is tried out, so
that calls after a first one can be captured in a CUDA graph.
"""

import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch

OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
"""How every kernel is compiled; named in full since Triton's defaults change between versions."""
TILE = 4096
"""Elements that a program has in registers at a time: two loads of 16 bytes a thread in half precision."""
CHANNELS = 64
"""Channels of a program: 128 bytes of a pixel in half precision, a cache line."""
PROGRAMS = 512
"""Programs of a pass that reduces, nearly 4 for each of a Hopper GPU's 132 multiprocessors."""


def usable(device: torch.device) -> bool:
    """Whether kernels can run on the device: a GPU, or a CPU where TRITON_INTERPRET=1, as in the tests."""
    return _installed() and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below the number."""
    return 1 << (number - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Tiling:
    """How `items` (pixels, windows or images) x `channels` are divided among programs."""

    items: int
    channels: int
    step: int
    """Items that a program takes at a time."""
    block_p: int
    """Pixels or windows that these are, up to a power of two."""
    block_c: int

    @property
    def channel_blocks(self) -> int:
        return ceil_div(self.channels, self.block_c)

    @property
    def steps(self) -> int:
        return ceil_div(self.items, self.step)

    @property
    def chunk(self) -> int:
        """Items of one program of a pass that reduces."""
        splits = max(1, PROGRAMS // self.channel_blocks)
        return ceil_div(self.steps, splits) * self.step

    @property
    def splits(self) -> int:
        return ceil_div(self.items, self.chunk)

    @property
    def blocks(self) -> dict[str, int | bool]:
        return {"C": self.channels, "BLOCK_P": self.block_p, "BLOCK_C": self.block_c, **OPTIONS}


def tiling(items: int, channels: int, tile: int) -> Tiling:
    """For passes over [items, channels], `tile` elements at a time."""
    block_c = min(CHANNELS, power_of_two(channels))
    return Tiling(items, channels, tile // block_c, tile // block_c, block_c)


def image_tiling(images: int, pixels: int, channels: int) -> Tiling:
    """For passes that need all pixels of an image's channel at once."""
    block_p = power_of_two(pixels)
    return Tiling(images, channels, 1, block_p, min(CHANNELS, power_of_two(channels), max(1, TILE // block_p)))
