"""A split's images on a device: kept there where they fit, else read and sent while the steps before are computed.

Shape letters: G rows of a group, S steps, B images of a batch, N images of a split, H W C an image.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodels.train.data import Images, chunks, fits, free_host_memory, gather
from datamodels.train.trainer.device import on_gpu, pinned

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
        buffers = itertools.cycle([_Buffer(self.device, self.images.shape[1:]) for _ in range(AHEAD + 2)])
        ahead: deque[tuple[_Buffer, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for pick in picks:
                buffer = next(buffers)
                ahead.append((buffer, reader.submit(self._read, pick, buffer)))
                if len(ahead) > AHEAD:
                    yield _send(*ahead.popleft())
            while ahead:
                yield _send(*ahead.popleft())

    def all(self, batch: int) -> Iterator[Tensor]:
        """All images without their border, in order, `batch` at a time."""
        if self.kept is None:
            yield from self.sent(np.split(np.arange(len(self.images)), range(batch, len(self.images), batch)))
            return
        yield from self.inside(self.kept).split(batch)

    def _read(self, pick: NDArray[np.int64], buffer: "_Buffer") -> Tensor:
        room = buffer.room(len(pick))
        gather(self.images, pick, room.numpy())
        return room

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


class _Buffer:
    """Memory of the host for a batch, and for the batches after it once a device has it: a few serve all of a split.

    To wait for a GPU until then is the reader's part, and costs the GPU nothing: whoever feeds it has AHEAD steps more
    to give it before the batch that waits is asked for.
    """

    def __init__(self, device: torch.device, shape: tuple[int, ...]) -> None:
        self.device, self._shape = device, shape
        self._memory: Tensor | None = None
        self._sent = torch.cuda.Event(blocking=True) if on_gpu(device) else None

    def room(self, count: int) -> Tensor:
        """Room for so many images, once a GPU has fetched what is there."""
        if self._sent is not None:
            self._sent.synchronize()
        if self._memory is None or len(self._memory) < count:
            self._memory = self._allocate((count, *self._shape))
        return self._memory[:count]

    def _allocate(self, shape: tuple[int, ...]) -> Tensor:
        if on_gpu(self.device):
            return pinned(shape, torch.uint8)
        return torch.from_numpy(np.empty(shape, np.uint8))  # NumPy asks for huge pages: copies are a quarter faster

    def note_sent(self) -> None:
        """That a GPU's current stream has been told to fetch what is there."""
        if self._sent is not None:
            self._sent.record()


def _send(buffer: _Buffer, read: "Future[Tensor]") -> Tensor:
    images = read.result().to(buffer.device, non_blocking=True)
    buffer.note_sent()
    return images


def select(images: Tensor, index_GB: Tensor) -> Tensor:
    """The images [G, B, H, W, C] at the given places, copied whole."""
    if images.device.type == "cpu":  # where torch would have its threads meet at every image
        return torch.from_numpy(images.numpy().take(index_GB.numpy(), axis=0))
    return images.index_select(0, index_GB.flatten()).unflatten(0, index_GB.shape)


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if on_gpu(device) else free_host_memory()
