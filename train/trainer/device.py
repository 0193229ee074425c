"""Which device and precision a recipe trains with, and what is recorded of them with every row."""

import platform
from functools import cache
from typing import Any

import torch

from datamodels.train.config import Recipe
from datamodels.train.store import versions
from datamodels.train.trainer.models import has_units

ARITHMETIC = 2
"""Goes up with every change of the trainer after which a row comes out with other bytes."""

UNITS_ARITHMETIC = 3
"""The same for networks of units in half precision or on a GPU, whose bytes changed last."""


def pick_device(recipe: Recipe, wanted: str | None = None) -> torch.device:
    """`wanted` (such as `cuda:1`), or the recipe's own: a GPU where there is one and the recipe allows it."""
    if wanted:
        return torch.device(wanted)
    return torch.device("cuda", 0) if recipe.device == "cuda" and torch.cuda.is_available() else torch.device("cpu")


def on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def precision(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The precision of convolutions; `auto` is bfloat16 where the device has instructions for it."""
    if recipe.precision != "auto":
        return getattr(torch, recipe.precision)
    return torch.bfloat16 if on_gpu(device) or "bf16" in cpu_features() else torch.float32


@cache
def cpu_features() -> tuple[str, ...]:
    """The instruction sets that change how a CPU rounds, as short names."""
    lines = _cpu_info()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    named = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "avx512": ("avx512f",), "avx2": ("avx2",)}
    return tuple(name for name, alternatives in named.items() if any(flag in flags for flag in alternatives))


def device_name(device: torch.device) -> str:
    """The device model, as precisely as a row's bytes depend on it."""
    if on_gpu(device):
        return torch.cuda.get_device_name(device)
    models = [line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model} ({' '.join(cpu_features()) or platform.machine()})"


def _cpu_info() -> list[str]:
    try:
        with open("/proc/cpuinfo") as file:
            return file.readlines()
    except OSError:
        return []


def environment(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """What byte equality depends on: rows made with equal environments are equal."""
    changed = has_units(recipe) and (on_gpu(device) or precision(recipe, device) != torch.float32)
    return {
        "arithmetic": UNITS_ARITHMETIC if changed else ARITHMETIC,
        "device": device_name(device),
        "precision": str(precision(recipe, device)).removeprefix("torch."),
        "threads": recipe.threads,
        "versions": versions() | ({"cudnn": str(torch.backends.cudnn.version())} if on_gpu(device) else {}),
    }
