"""torchvision, importable beside a CPU-only torch as well."""

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType


def torchvision() -> ModuleType:
    """The torchvision package."""
    _operators()
    return importlib.import_module("torchvision")


def mend_torchvision_imports() -> None:
    """Make every `import torchvision` of this process work as `torchvision()` does; nothing is imported now."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing, and prepares the import of torchvision by whatever code."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "torchvision":
            _operators()


_FINDER = _Finder()


@functools.cache
def _operators() -> object:
    """Declare what torchvision's import lacks; returns what must outlive it.

    PyPI's wheel links CUDA, so its extension does not load beside a CPU torch and the import fails at
    `torchvision::nms` (pytorch/vision #9077). Where that is so, the two operators it registers fakes for are declared
    first, without an implementation; where the extension loads, nothing is changed.
    """
    if _extension_loads():
        return None
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _extension_loads() -> bool:
    spec = importlib.machinery.PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    import torch

    try:
        for extension in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(extension))
    except OSError:
        return False
    return True
