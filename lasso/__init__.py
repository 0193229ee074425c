"""From masks and margins to datamodels: `fit`, `evaluate`, `curve`, `load`.

Importing this package imports neither torch nor numba.
"""

from datamodels.lasso.datamodels import Datamodels, Top, find, load, path_of, piece_of, places, read_report
from datamodels.lasso.design import divide
from datamodels.lasso.evaluation import Curve, Evaluation, Interval, curve, evaluate
from datamodels.lasso.files import EXAMPLES, VECTORS, aside, pieces, remove_orphans, storages, sync, writing
from datamodels.lasso.fit import assemble, fit, is_current, is_fresh
from datamodels.lasso.preflight import foresee
from datamodels.lasso.rows import (
    Progress,
    Split,
    blocks,
    evaluation_rows,
    file_name,
    margin_array,
    read_margins,
    read_masks,
    read_rows,
    refuse_unshared_masks,
    silent,
    target_count,
)

__all__ = [
    "EXAMPLES",
    "VECTORS",
    "Curve",
    "Datamodels",
    "Evaluation",
    "Interval",
    "Progress",
    "Split",
    "Top",
    "aside",
    "assemble",
    "blocks",
    "curve",
    "divide",
    "evaluate",
    "evaluation_rows",
    "file_name",
    "find",
    "fit",
    "foresee",
    "is_current",
    "is_fresh",
    "load",
    "margin_array",
    "path_of",
    "piece_of",
    "pieces",
    "places",
    "read_margins",
    "read_masks",
    "read_report",
    "read_rows",
    "refuse_unshared_masks",
    "remove_orphans",
    "silent",
    "storages",
    "sync",
    "target_count",
    "writing",
]
