"""Which device and precision a recipe trains with, and what is recorded of them with every row."""

from typing import Any

import torch

from datamodels.train.config import Recipe
from datamodels.train.cpu import cpu_features, cpu_name
from datamodels.train.store import versions
from datamodels.train.trainer.executor import Executor
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


def precision(recipe: Recipe, executor: Executor) -> torch.dtype:
    """The precision of convolutions; `auto` is bfloat16 where the device has instructions for it."""
    if recipe.precision != "auto":
        return getattr(torch, recipe.precision)
    if executor.capability is not None:
        return torch.bfloat16 if executor.capability >= (8, 0) else torch.float16
    return torch.bfloat16 if "bf16" in cpu_features() else torch.float32


def device_name(device: torch.device) -> str:
    """The device model, as precisely as a row's bytes depend on it."""
    if on_gpu(device):
        return torch.cuda.get_device_name(device)
    return cpu_name()


def describe(recipe: Recipe, executor: Executor, kernels: str) -> str:
    """What a GPU trains with, for people."""
    major, minor = executor.capability or (0, 0)
    name = f"{executor.device}: {device_name(executor.device)}, compute capability {major}.{minor}"
    return f"{name}, {precision(recipe, executor)}, kernels {kernels}".replace("torch.", "")


def environment(recipe: Recipe, executor: Executor, kernels: str) -> dict[str, Any]:
    """What byte equality depends on: rows made with equal environments are equal.

    kernels: what recipe.kernels came to on a GPU.
    """
    device = executor.device
    changed = has_units(recipe) and (on_gpu(device) or precision(recipe, executor) != torch.float32)
    return ({} if executor.capability is None else {"kernels": kernels}) | {
        "arithmetic": UNITS_ARITHMETIC if changed else ARITHMETIC,
        "device": device_name(device),
        "precision": str(precision(recipe, executor)).removeprefix("torch."),
        "threads": recipe.threads,
        "versions": versions() | ({"cudnn": str(torch.backends.cudnn.version())} if on_gpu(device) else {}),
    }
