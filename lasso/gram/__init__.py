"""Sums over rows: counts X'X of the masks and sums X'Y with the margins, kept on disk between fits."""

from datamodels.lasso.gram.cache import GramCache, disk_bytes, target_batches
from datamodels.lasso.gram.counts import Counts
from datamodels.lasso.gram.matrices import Matrices
from datamodels.lasso.gram.nested import curve_disk_bytes, nested_subsets
from datamodels.lasso.gram.sums import Cross

__all__ = [
    "Counts",
    "Cross",
    "GramCache",
    "Matrices",
    "curve_disk_bytes",
    "disk_bytes",
    "nested_subsets",
    "target_batches",
]
