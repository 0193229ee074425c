"""The LASSO solver: path with choice of lambda, refit, duality gap."""

from datamodels.lasso.solver.solution import Solution
from datamodels.lasso.solver.solve import TargetBatch, solve

__all__ = ["Solution", "TargetBatch", "solve"]
