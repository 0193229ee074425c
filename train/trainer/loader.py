"""A split's images on a device: kept there where they fit, else read and sent while the steps before are computed.

Shape letters: B images of a batch, N images of a split, H W C an image.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodels.train.data import Images, chunks, fits, gather
from datamodels.train.kernels import as_tensor
from datamodels.train.trainer.executor import Executor

AHEAD = 3
"""Batches that are read before they are asked for."""


class Loader:
    """Images of a split as tensors on a device (`as_tensor`), those for training with a border of `fill` around them.

    resident: keep them in the device's memory, or do not, or (None) where they take at most half of what is free; on a
    CPU, an array that is mapped from a file is then read through the system's cache instead. The images are the same
    either way. A batch has to be used before the one after the next is requested.
    """

    def __init__(
        self, images: Images, executor: Executor, resident: bool | None, border: int = 0, fill: Tensor | None = None
    ) -> None:
        self.images = np.ascontiguousarray(images) if type(images) is np.ndarray else images
        self.executor, self.border, self.fill = executor, border, fill
        self.resident: Tensor | None = None
        """All images [N, H + 2 border, W + 2 border, C], where they are kept on the device."""
        self.dtype = as_tensor(np.empty(0, images.dtype)).dtype
        count, height, width, channels = self.images.shape
        size = count * (height + 2 * border) * (width + 2 * border) * channels * self.dtype.itemsize
        cached = executor.device.type == "cpu" and isinstance(images, np.memmap)
        if resident or (resident is None and not cached and fits(size, executor.free_memory())):
            self.resident = self._all_on_device()

    def batches(self, picks: Iterable[NDArray[np.int64]]) -> Iterator[Tensor]:
        """The images of each pick on the device, without their border, read ahead of their use."""
        buffers = itertools.cycle([_Buffer(self.executor, self.images.shape[1:], self.dtype) for _ in range(AHEAD + 2)])
        ahead: deque[tuple[_Buffer, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for pick in picks:
                buffer = next(buffers)
                ahead.append((buffer, reader.submit(self._read, pick, buffer)))
                if len(ahead) > AHEAD:
                    yield _send(*ahead.popleft())
            while ahead:
                yield _send(*ahead.popleft())

    def in_order(self, batch: int) -> Iterator[Tensor]:
        """All images without their border, in order, `batch` at a time."""
        if self.resident is None:
            yield from self.batches(np.split(np.arange(len(self.images)), range(batch, len(self.images), batch)))
        else:
            yield from self.without_border(self.resident).split(batch)

    def empty(self, count: int) -> Tensor:
        """Memory for images with their border [count, H + 2 border, W + 2 border, C], filled where the border is."""
        height, width, channels = self.images.shape[1:]
        shape = (count, height + 2 * self.border, width + 2 * self.border, channels)
        images = torch.empty(shape, dtype=self.dtype, device=self.executor.device)
        if self.border and self.fill is not None:
            images[:] = self.fill
        return images

    def without_border(self, bordered: Tensor) -> Tensor:
        """The images [n, H, W, C] in [n, H + 2 border, W + 2 border, C], as a view."""
        t = self.border
        height, width = self.images.shape[1:3]
        return bordered[:, t : t + height, t : t + width]

    def _all_on_device(self) -> Tensor:
        if type(self.images) is np.ndarray and self.executor.device.type == "cpu" and not self.border:
            return as_tensor(self.images)
        images, start = self.empty(len(self.images)), 0
        for chunk in chunks(self.images):
            self.without_border(images[start : start + len(chunk)]).copy_(as_tensor(chunk))
            start += len(chunk)
        return images

    def _read(self, pick: NDArray[np.int64], buffer: "_Buffer") -> Tensor:
        memory = buffer.memory(len(pick))
        gather(self.images, pick, memory.numpy().view(self.images.dtype))
        return memory


class _Buffer:
    """Host memory for a batch, used again for later batches once the device has copied it: a few serve a whole split.

    The reader waits for that copy, which costs the GPU nothing: it has AHEAD more steps to do before the batch that
    waits is asked for.
    """

    def __init__(self, executor: Executor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.executor, self.shape, self.dtype = executor, shape, dtype
        self.sent = executor.event()
        self._memory: Tensor | None = None

    def memory(self, count: int) -> Tensor:
        """Buffer for `count` images; waits for the previous copy to finish."""
        if self.sent is not None:
            self.sent.synchronize()
        if self._memory is None or len(self._memory) < count:
            self._memory = self.executor.buffer((count, *self.shape), self.dtype)
        return self._memory[:count]


def _send(buffer: _Buffer, read: "Future[Tensor]") -> Tensor:
    images = read.result().to(buffer.executor.device, non_blocking=True)
    if buffer.sent is not None:
        buffer.sent.record()
    return images
