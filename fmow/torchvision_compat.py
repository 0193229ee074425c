"""torchvision, importable beside a CPU-only torch as well."""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_kept: list[object] = []
"""Operator libraries that must outlive the import."""


def torchvision() -> ModuleType:
    """The torchvision package.

    PyPI's wheel links CUDA, so its extension does not load beside a CPU torch and the import fails at
    `torchvision::nms` (pytorch/vision #9077). Where that is so, the two operators it registers fakes for are declared
    first, without an implementation; where the extension loads, nothing is changed.
    """
    if not _kept and not _extension_loads():
        import torch

        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
    return importlib.import_module("torchvision")


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the first `import torchvision`, of whatever code, go through `torchvision()`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            torchvision()


def mend_torchvision_imports() -> None:
    """Make `import torchvision` work as `torchvision()` does; nothing is imported now."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _extension_loads() -> bool:
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    try:
        for extension in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(extension))
    except OSError:
        return False
    return True
