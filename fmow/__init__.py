"""FMoW as the published datamodels were made on: WILDS' data set with one year in distribution.

Importing this package imports neither torch nor wilds: they are imported when a name that needs them is first used.
"""

from typing import TYPE_CHECKING, Any

from fmow.torchvision_compat import mend_torchvision_imports, torchvision

if TYPE_CHECKING:
    from fmow.dataset import CATEGORIES, Examples, FMoWDataset, read_image

__all__ = ["CATEGORIES", "Examples", "FMoWDataset", "mend_torchvision_imports", "read_image", "torchvision"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fmow' has no attribute {name!r}")
    from fmow import dataset

    return getattr(dataset, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
