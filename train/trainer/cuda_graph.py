"""A function captured as a CUDA graph, so that a training step costs the host one launch."""

import contextlib
import gc
from collections.abc import Callable, Iterator

import torch

WARM_UP = 3
"""Calls before the capture: libraries choose their kernels and reserve their memory in the first ones."""


class CudaGraph:
    """Replays a function that reads and writes the same tensors on every call; the capture loses their values.

    Keeps no reference to the function: a reference cycle with its owner, which owns this too, would leave freeing the
    graph to the garbage collector.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        """Capture the function on the current stream."""
        for _ in range(WARM_UP):
            function()
        stream, self._graph = torch.cuda.current_stream(device), torch.cuda.CUDAGraph()
        stream.synchronize()
        with _nothing_collected(), torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            function()

    def __call__(self) -> None:
        self._graph.replay()


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
