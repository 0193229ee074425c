"""FMoW as the published datamodels were made on: WILDS' data set with one year in distribution."""

from fmow.dataset import Examples, FMoWDataset, read_image
from fmow.upstream import CATEGORIES

__all__ = ["CATEGORIES", "Examples", "FMoWDataset", "read_image"]
