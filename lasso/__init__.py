"""From a store's masks and margins to datamodels: `fit`, `evaluate`, `curve`, `load`.

Importing this package imports neither torch nor numba.
"""

from lasso.bootstrap import Interval
from lasso.curve import Curve, curve
from lasso.datamodels import Datamodels, Top, find, load, path_of, read_report
from lasso.evaluate import Evaluation, evaluate
from lasso.fit import assemble, fit, is_current
from lasso.foresee import foresee

__all__ = [
    "Curve",
    "Datamodels",
    "Evaluation",
    "Interval",
    "Top",
    "assemble",
    "curve",
    "evaluate",
    "find",
    "fit",
    "foresee",
    "is_current",
    "load",
    "path_of",
    "read_report",
]
