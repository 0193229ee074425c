"""Executors for tests: a CPU that behaves as a GPU does, and a GPU that captures nothing."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodels.train.trainer.cuda_graph import WARM_UP
from datamodels.train.trainer.executor import CudaExecutor, Executor


class Event:
    """The time at which the host recorded it, which here is the time at which the work before it was done."""

    at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass


class FakeGpu(Executor):
    """On the CPU, or on torch's meta device, whose tensors hold nothing: to wait for one of them raises."""

    overlaps = True

    def __init__(self, device: torch.device | None = None, capability: tuple[int, int] | None = None) -> None:
        super().__init__(device or torch.device("cpu"))
        self.capability = capability
        self.refused = 0
        self.threads: set[int] = set()
        """Those that put work into streams."""

    def send(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def fetch(self, value: Tensor) -> Tensor:
        return torch.zeros(value.shape, dtype=value.dtype) if value.is_meta else value

    def event(self) -> Any:
        return Event()

    def moment(self) -> Any:
        event = self.event()
        event.record()
        return event

    def seconds(self, began: Any, ended: Any) -> float:
        return ended.at - began.at

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self.threads.add(threading.get_ident())
        yield

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        for _ in range(WARM_UP + 1):
            function()
        return function

    def free_memory(self) -> int:
        return 1 << 30

    def refused_memory(self) -> int:
        return self.refused


class Eager(CudaExecutor):
    """A GPU on which nothing is captured."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        return function
