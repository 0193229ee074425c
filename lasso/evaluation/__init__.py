"""Quality of datamodels and other scores on evaluation rows: LDS, intervals, LDS curve."""

from datamodels.lasso.evaluation.arrays import evaluate_arrays
from datamodels.lasso.evaluation.curve import FITTED, Curve, Law, Point, curve
from datamodels.lasso.evaluation.curve_file import read_curve, write_curve
from datamodels.lasso.evaluation.evaluate import as_datamodels, evaluate, protocol, staleness
from datamodels.lasso.evaluation.intervals import Interval
from datamodels.lasso.evaluation.result import Evaluation
from datamodels.lasso.evaluation.scores import LEAST_MASKS, EvaluationRows, Tile

__all__ = [
    "FITTED",
    "LEAST_MASKS",
    "Curve",
    "Evaluation",
    "EvaluationRows",
    "Interval",
    "Law",
    "Point",
    "Tile",
    "as_datamodels",
    "curve",
    "evaluate",
    "evaluate_arrays",
    "protocol",
    "read_curve",
    "staleness",
    "write_curve",
]
