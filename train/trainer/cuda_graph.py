"""Work that a GPU does again and again: captured once as a CUDA graph, so that a step costs the host one launch."""

import contextlib
import gc
from collections.abc import Callable, Iterator

import torch

from datamodels.train.trainer.device import on_gpu

WARM_UP = 3
"""Calls before the capture: libraries choose their kernels and reserve their memory in the first ones."""


class Replay:
    """A function without arguments that reads and writes the same tensors on every call.

    On a GPU `prepare` captures it; what its tensors hold afterwards means nothing. Elsewhere, and without `prepare`,
    calls are calls. Once captured the function is let go: its owner, who owns this too, then dies with its last
    reference, and a graph is never left to the garbage collector.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._call = function
        self._device = device
        self.captured = False

    def prepare(self) -> None:
        """Capture the function on the current stream, where there is something to capture."""
        if not on_gpu(self._device) or self.captured:
            return
        for _ in range(WARM_UP):
            self._call()
        stream, graph = torch.cuda.current_stream(self._device), torch.cuda.CUDAGraph()
        stream.synchronize()
        with _nothing_collected(), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._call()
        self._call, self.captured = graph.replay, True

    def __call__(self) -> None:
        self._call()


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """Keep the garbage collector out: what it frees of a GPU would end a capture ("operation not permitted")."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
