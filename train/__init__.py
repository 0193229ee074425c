"""Masks, trainer and store of a datamodels setting; `train.open` opens a store for reading.

Importing this package imports nothing heavy, torch in particular.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.data import Dataset
    from train.errors import UserError, WorkError
    from train.opening import open
    from train.readable import ReadableStore, Records

_HOMES = {
    "Dataset": "train.data",
    "ReadableStore": "train.readable",
    "Records": "train.readable",
    "UserError": "train.errors",
    "WorkError": "train.errors",
    "open": "train.opening",
}

__all__ = ["Dataset", "ReadableStore", "Records", "UserError", "WorkError", "open"]


def __getattr__(name: str) -> Any:
    """Names of the front, imported when they are first used: submodules are imported by way of this package."""
    if name not in _HOMES:
        raise AttributeError(f"module 'train' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
