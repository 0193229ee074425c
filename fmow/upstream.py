"""WILDS' FMoW, imported beside any torch and without a look at the network.

`wilds.version` starts a thread that asks PyPI for a newer wilds wherever the package `outdated` can be imported, so
wilds is imported here alone, with `outdated` out of reach.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fmow.torchvision_compat import torchvision


@contextmanager
def unimportable(name: str) -> Iterator[None]:
    """Within this context `import name` raises ImportError; afterwards all is as it was."""
    known, before = name in sys.modules, sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if known:
            sys.modules[name] = before  # type: ignore[assignment]


torchvision()
with unimportable("outdated"):
    _fmow = importlib.import_module("wilds.datasets.fmow_dataset")
    _base = importlib.import_module("wilds.datasets.wilds_dataset")

WILDSFMoW: Any = _fmow.FMoWDataset
WILDSSubset: Any = _base.WILDSSubset
CATEGORIES: tuple[str, ...] = tuple(_fmow.categories)
"""The 62 category names; a label is a position in it."""
