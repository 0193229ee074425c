"""Sums over rows: counts X'X of the masks and X'Y with the margins, kept on disk between fits."""

from datamodels.lasso.gram.cache import Statistics, disk_bytes, slabs
from datamodels.lasso.gram.matrices import Matrices
from datamodels.lasso.gram.moments import Cross
from datamodels.lasso.gram.nested import Prefix, prefixes

__all__ = ["Cross", "Matrices", "Prefix", "Statistics", "disk_bytes", "prefixes", "slabs"]
