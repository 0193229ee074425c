"""Sums over rows: counts X'X of the masks and sums X'Y with the margins, kept on disk between fits."""

from datamodels.lasso.gram.cache import GramCache, disk_bytes, target_batches
from datamodels.lasso.gram.counts import Counts, MemoryCounts
from datamodels.lasso.gram.matrices import MaskBits, Matrices, bits_of, has_few_rows
from datamodels.lasso.gram.nested import curve_disk_bytes, nested_subsets
from datamodels.lasso.gram.sums import Cross, Gram

__all__ = [
    "Counts",
    "Cross",
    "Gram",
    "GramCache",
    "MaskBits",
    "Matrices",
    "MemoryCounts",
    "bits_of",
    "curve_disk_bytes",
    "disk_bytes",
    "has_few_rows",
    "nested_subsets",
    "target_batches",
]
