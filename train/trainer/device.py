"""Which device and precision a recipe trains with, and what is recorded of them with every row."""

from typing import Any

import torch

from datamodels.train.config import Recipe
from datamodels.train.cpu import cpu_features, cpu_name
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


def device_name(device: torch.device) -> str:
    """The device model, as precisely as a row's bytes depend on it."""
    if on_gpu(device):
        return torch.cuda.get_device_name(device)
    return cpu_name()


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
