"""Work that a GPU does again and again: captured once as a CUDA graph, so that a step costs the host one launch."""

from collections.abc import Callable

import torch

from train.device import on_gpu

WARM_UP = 3
"""Calls before the capture: libraries choose their kernels and reserve their memory in the first ones."""


class Replay:
    """A function without arguments that reads and writes the same tensors on every call.

    On a GPU `prepare` captures it; what its tensors hold afterwards means nothing. Elsewhere, and without `prepare`,
    calls are calls.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self.function = function
        self.device = device
        self.graph: torch.cuda.CUDAGraph | None = None

    def prepare(self) -> None:
        """Capture the function on the current stream, where there is something to capture."""
        if not on_gpu(self.device) or self.graph is not None:
            return
        for _ in range(WARM_UP):
            self.function()
        torch.cuda.current_stream(self.device).synchronize()
        self.graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(self.device)
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self.function()

    def __call__(self) -> None:
        if self.graph is None:
            self.function()
        else:
            self.graph.replay()
