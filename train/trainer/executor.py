"""How work and data get to a device and back: at once on a CPU, beside the host's own work on a GPU."""

import contextlib
import ctypes
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import deterministic

from datamodels.train.data import free_host_memory
from datamodels.train.trainer.cuda_graph import captured

Moment = Any
"""What Executor.moment returns: seconds of the host's clock, or an event of a GPU."""


class Executor:
    """A CPU: work is done when it is called. Tests give the trainer one that behaves as a GPU does."""

    overlaps = False
    """Whether work is queued in streams, and runs beside the host's."""
    capability: tuple[int, int] | None = None
    """A GPU's compute capability, such as (8, 0); None of a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        keep_freed_memory()

    def send(self, array: NDArray[Any]) -> Tensor:
        """An array as a tensor on the device; a GPU copies it in its stream's order, and nobody waits."""
        return torch.from_numpy(array)

    def fetch(self, value: Tensor) -> Tensor:
        """A tensor of the device as one of the host; a GPU fills it in its stream's order."""
        return value

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the host for images, which the device copies from."""
        memory = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)  # has huge pages: copies are a quarter faster
        return torch.from_numpy(memory).view(dtype).view(shape)

    def event(self) -> Any:
        """A CUDA event to record and to wait for; None where nothing is queued."""
        return None

    def moment(self) -> Moment:
        """Now; on a GPU, when the current stream will have come here."""
        return time.perf_counter()

    def seconds(self, began: Moment, ended: Moment) -> float:
        """Seconds between two moments; waits for the second."""
        return ended - began

    def stream(self) -> Any:
        """A new stream, for `on`."""
        return None

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        """Within it, work is queued in the stream."""
        yield

    def synchronize(self) -> None:
        """Wait until the device has done all that is queued."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """The function as one launch. It reads and writes the same tensors on every call; these lose their values."""
        return function

    def free_memory(self) -> int:
        """Bytes."""
        return free_host_memory()

    def refused_memory(self) -> int:
        """How often memory was asked for and there was none, which cuDNN takes as a reason for another algorithm."""
        return 0


class CudaExecutor(Executor):
    """A GPU, whose libraries are asked for deterministic algorithms."""

    overlaps = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.capability = torch.cuda.get_device_capability(device)
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # bytes depend on it; cuBLAS reads it at its first product
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        keep_float32()
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # else all memory is written twice

    def send(self, array: NDArray[Any]) -> Tensor:
        host = torch.from_numpy(array)
        return self._pinned(host.shape, host.dtype).copy_(host).to(self.device, non_blocking=True)

    def fetch(self, value: Tensor) -> Tensor:
        return self._pinned(value.shape, value.dtype).copy_(value, non_blocking=True)

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self._pinned(shape, dtype)

    def _pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory that a GPU copies from and to by itself; torch keeps it while a copy is under way."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def event(self) -> Any:
        return torch.cuda.Event(enable_timing=True, blocking=True)  # who waits for it leaves the core to others

    def moment(self) -> Moment:
        event = self.event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, began: Moment, ended: Moment) -> float:
        ended.synchronize()
        return began.elapsed_time(ended) / 1000

    def stream(self) -> Any:
        return torch.cuda.Stream(self.device)

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            yield

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        return captured(function, self.device)

    def free_memory(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0]

    def refused_memory(self) -> int:
        return torch.cuda.memory_stats(self.device).get("num_ooms", 0)


def executor_of(device: torch.device) -> Executor:
    """The executor of a CPU or GPU."""
    return CudaExecutor(device) if device.type == "cuda" else Executor(device)


def keep_float32() -> None:
    """Have float32 convolutions computed in float32, not in TensorFloat-32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch warn of this way to say so
        torch.backends.cudnn.allow_tf32 = False


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, so that the same buffers serve every step (5-15 % of a ResNet-9 step on a CPU).

    By default it gives large buffers back to the system at once, which then has to clear their pages again.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
