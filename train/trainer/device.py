"""What a recipe runs on, and what to remember of it."""

import ctypes
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import deterministic

from datamodels.train.config import Recipe
from datamodels.train.store import versions


def pick_device(recipe: Recipe, wanted: str | None = None) -> torch.device:
    """`wanted` (such as `cuda:1`), or the recipe's own: a GPU where there is one and the recipe allows it."""
    if wanted:
        return torch.device(wanted)
    return torch.device("cuda", 0) if recipe.device == "cuda" and torch.cuda.is_available() else torch.device("cpu")


def precision(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The precision of convolutions; `auto` is bfloat16 where the device has instructions for it."""
    if recipe.precision != "auto":
        return getattr(torch, recipe.precision)
    return torch.bfloat16 if on_gpu(device) or "bf16" in cpu_features() else torch.float32


def make_deterministic(device: torch.device) -> None:
    """Have a GPU's libraries use only algorithms that give the same bytes every time."""
    if on_gpu(device):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        _keep_float32()
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Or every fresh tensor is written twice.
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _keep_float32() -> None:
    """Float32 is float32, not TensorFloat-32. Some versions of torch warn of this way to say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = False


def on_gpu(device: torch.device) -> bool:
    """Whether work on the device runs beside the host's, in streams."""
    return device.type == "cuda"


def pinned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory of the host that a GPU copies from and to by itself; torch keeps it while a copy is under way."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device; a GPU fetches it in its stream's own time, and nobody waits."""
    host = torch.from_numpy(array)
    if not on_gpu(device):
        return host
    return pinned(host.shape, host.dtype).copy_(host).to(device, non_blocking=True)


def fetched(value: Tensor, device: torch.device) -> Tensor:
    """A tensor of a device as one of the host; a GPU fills it in its stream's own time."""
    return pinned(value.shape, value.dtype).copy_(value, non_blocking=True) if on_gpu(device) else value


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, so that the same buffers serve every step (5-15 % of a ResNet-9 step on a CPU).

    By default it gives large buffers back to the system at once, which then has to clear their pages again.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@cache
def cpu_features() -> tuple[str, ...]:
    """The instruction sets that change how a CPU rounds, as short names."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "").split()
    except OSError:
        return ()
    named = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "avx512": ("avx512f",), "avx2": ("avx2",)}
    return tuple(name for name, alternatives in named.items() if any(flag in flags for flag in alternatives))


def device_name(device: torch.device) -> str:
    """The device model, as precisely as a row's bytes depend on it."""
    if on_gpu(device):
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()} ({' '.join(cpu_features()) or platform.machine()})"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


ARITHMETIC = 2
"""Goes up with every change of the trainer after which a row comes out with other bytes."""


def environment(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """What byte equality depends on: rows made with equal environments are equal."""
    return {
        "arithmetic": ARITHMETIC,
        "device": device_name(device),
        "precision": str(precision(recipe, device)).removeprefix("torch."),
        "threads": recipe.threads,
        "versions": versions() | ({"cudnn": str(torch.backends.cudnn.version())} if on_gpu(device) else {}),
    }
