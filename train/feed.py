"""A split's images on a device: kept there where they fit, else read and sent while the steps before are computed.

Shape letters: G rows of a group, S steps, B images of a batch, N images of a split, H W C an image.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.device import on_gpu, pinned
from train.images import Images, chunks, fits, free_host_memory, gather

AHEAD = 3
"""Batches that are read before they are asked for."""


class Feed:
    """uint8 images of a split as tensors on a device, those for training with a border of `fill` around them.

    resident: keep them in the device's memory, or do not, or (None) where they take at most half of what is free; on a
    CPU, an array that is mapped from a file is then read through the system's cache instead. What is fed is the same
    either way. A batch is to be used before the next but one is asked for.
    """

    def __init__(
        self, images: Images, device: torch.device, resident: bool | None, border: int = 0, fill: Tensor | None = None
    ) -> None:
        self.images = np.ascontiguousarray(images) if type(images) is np.ndarray else images
        self.device, self.border, self.fill = device, border, fill
        self.kept: Tensor | None = None
        """[N, H + 2 border, W + 2 border, C]"""
        cached = device.type == "cpu" and isinstance(images, np.memmap)
        if resident or (resident is None and not cached and fits(self._size(), _free(device))):
            self.kept = self._whole()

    def sent(self, picks: Iterable[NDArray[np.int64]]) -> Iterator[Tensor]:
        """The images of each pick on the device, without their border, read ahead of their use."""
        ahead: deque[Future[Tensor]] = deque()
        buffers: list[Tensor] = []
        with ThreadPoolExecutor(1) as reader:
            for number, pick in enumerate(picks):
                ahead.append(reader.submit(self._read, pick, self._buffer(buffers, number, len(pick))))
                if len(ahead) > AHEAD:
                    yield ahead.popleft().result().to(self.device, non_blocking=True)
            while ahead:
                yield ahead.popleft().result().to(self.device, non_blocking=True)

    def all(self, batch: int) -> Iterator[Tensor]:
        """All images without their border, in order, `batch` at a time."""
        if self.kept is None:
            yield from self.sent(np.split(np.arange(len(self.images)), range(batch, len(self.images), batch)))
            return
        yield from self.inside(self.kept).split(batch)

    def _buffer(self, buffers: list[Tensor], number: int, count: int) -> Tensor:
        """Memory for a batch: on a CPU that of an earlier one, for a GPU pinned, which torch keeps while it is sent."""
        shape = (count, *self.images.shape[1:])
        if on_gpu(self.device):
            return pinned(shape, torch.uint8)
        if len(buffers) < AHEAD + 2:
            buffers.append(_host_buffer(shape))
        place = number % (AHEAD + 2)
        if len(buffers[place]) < count:
            buffers[place] = _host_buffer(shape)
        return buffers[place][:count]

    def _read(self, pick: NDArray[np.int64], buffer: Tensor) -> Tensor:
        gather(self.images, pick, buffer.numpy())
        return buffer

    def _size(self) -> int:
        count, height, width, channels = self.images.shape
        return count * (height + 2 * self.border) * (width + 2 * self.border) * channels

    def empty(self, count: int) -> Tensor:
        """Room for images with their border [count, H + 2 border, W + 2 border, C], all border."""
        height, width, channels = self.images.shape[1:]
        shape = (count, height + 2 * self.border, width + 2 * self.border, channels)
        images = torch.empty(shape, dtype=torch.uint8, device=self.device)
        if self.border and self.fill is not None:
            images[:] = self.fill
        return images

    def _whole(self) -> Tensor:
        if type(self.images) is np.ndarray and self.device.type == "cpu" and not self.border:
            return torch.from_numpy(self.images)
        whole, start = self.empty(len(self.images)), 0
        for chunk in chunks(self.images):
            self.inside(whole[start : start + len(chunk)]).copy_(torch.from_numpy(chunk))
            start += len(chunk)
        return whole

    def inside(self, bordered: Tensor) -> Tensor:
        """The images in [n, H + 2 border, W + 2 border, C], as a view."""
        t = self.border
        height, width = self.images.shape[1:3]
        return bordered[:, t : t + height, t : t + width]


def _host_buffer(shape: tuple[int, ...]) -> Tensor:
    """Memory from NumPy, which asks the system for huge pages: copies into it are a quarter faster."""
    return torch.from_numpy(np.empty(shape, np.uint8))


def select(images: Tensor, index_GB: Tensor) -> Tensor:
    """The images [G, B, H, W, C] at the given places, copied whole."""
    if images.device.type == "cpu":  # where torch would have its threads meet at every image
        return torch.from_numpy(images.numpy().take(index_GB.numpy(), axis=0))
    return images.index_select(0, index_GB.flatten()).unflatten(0, index_GB.shape)


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if on_gpu(device) else free_host_memory()
