"""Held-out quality of datamodels and other scores: LDS, intervals, curve."""

from datamodels.lasso.evaluation.curve import FITTED, Curve, Law, Point, curve
from datamodels.lasso.evaluation.evaluate import Evaluation, evaluate, summarise
from datamodels.lasso.evaluation.intervals import Bootstrap, Interval
from datamodels.lasso.evaluation.protocol import protocol
from datamodels.lasso.evaluation.scores import LEAST_MASKS, Holdout, Scores

__all__ = [
    "FITTED",
    "LEAST_MASKS",
    "Bootstrap",
    "Curve",
    "Evaluation",
    "Holdout",
    "Interval",
    "Law",
    "Point",
    "Scores",
    "curve",
    "evaluate",
    "protocol",
    "summarise",
]
