"""From masks and margins to datamodels: `fit`, `evaluate`, `curve`, `load`.

Importing this package imports neither torch nor numba.
"""

from datamodels.lasso.arrays import fit_arrays
from datamodels.lasso.atomic import sync, temporary_beside, write_derived, writing
from datamodels.lasso.compare import Comparison, compare, refuse_other_examples
from datamodels.lasso.components import Components, principal_components
from datamodels.lasso.datamodels import Datamodels, Top, find, load, path_of, piece_of, places, read_report
from datamodels.lasso.evaluation import Curve, Evaluation, Interval, curve, evaluate, evaluate_arrays, staleness
from datamodels.lasso.files import VECTORS, fit_bytes, pieces, storages, write_blocks
from datamodels.lasso.fit import assemble, fit, is_current, is_fresh
from datamodels.lasso.preflight import preflight_check
from datamodels.lasso.rows import (
    FitRows,
    Progress,
    blocks,
    evaluation_rows,
    read_features,
    read_margins,
    read_masks,
    read_rows,
    refuse_unshared_masks,
    silent,
    split_and_output,
    split_name,
    target_count,
)
from datamodels.lasso.scores_file import read_scores
from datamodels.lasso.strongest import COLUMNS, strongest

__all__ = [
    "COLUMNS",
    "VECTORS",
    "Comparison",
    "Components",
    "Curve",
    "Datamodels",
    "Evaluation",
    "FitRows",
    "Interval",
    "Progress",
    "Top",
    "assemble",
    "blocks",
    "compare",
    "curve",
    "evaluate",
    "evaluate_arrays",
    "evaluation_rows",
    "find",
    "fit",
    "fit_arrays",
    "fit_bytes",
    "is_current",
    "is_fresh",
    "load",
    "path_of",
    "piece_of",
    "pieces",
    "places",
    "preflight_check",
    "principal_components",
    "read_features",
    "read_margins",
    "read_masks",
    "read_report",
    "read_rows",
    "read_scores",
    "refuse_other_examples",
    "refuse_unshared_masks",
    "silent",
    "split_and_output",
    "split_name",
    "staleness",
    "storages",
    "strongest",
    "sync",
    "target_count",
    "temporary_beside",
    "write_blocks",
    "write_derived",
    "writing",
]
