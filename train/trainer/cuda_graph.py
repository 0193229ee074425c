"""A function captured as a CUDA graph, so that a training step costs the host one launch."""

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator

import torch

WARM_UP = 3
"""Calls before the capture: libraries choose their kernels and reserve their memory in the first ones."""


Step = Callable[[], None]


class CudaGraph:
    """Replays a function that reads and writes the same tensors on every call; the capture loses their values.

    Keeps no reference to the function: a reference cycle with its owner, which owns this too, would leave freeing the
    graph to the garbage collector.
    """

    def __init__(self, function: Step, device: torch.device) -> None:
        """Capture the function on the current stream. It has been called before."""
        stream, self._graph = torch.cuda.current_stream(device), torch.cuda.CUDAGraph()
        stream.synchronize()
        with _nothing_collected(), torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            function()

    def __call__(self) -> None:
        self._graph.replay()


def captured(function: Step, device: torch.device, capture: Callable[[Step, torch.device], Step] = CudaGraph) -> Step:
    """The function as a graph, or itself where it cannot be captured, which is slower and gives the same; tells so.

    What the function raises by itself is raised here, and so is a lack of memory.
    """
    for _ in range(WARM_UP):
        function()
    try:
        return capture(function, device)
    except RuntimeError as error:
        cause = error.__context__ or error  # what ended the capture, before torch found that it had ended
        if isinstance(cause, torch.OutOfMemoryError):
            raise cause from None
        first = str(cause).strip().partition("\n")[0]
        told = f"a step cannot be captured on {device}, and is launched operation by operation: {first}"
        print(told, file=sys.stderr, flush=True)
        return function


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
