"""The LASSO solver: path with choice of lambda, refit, duality gap."""

from datamodels.lasso.solver.batch import Lot
from datamodels.lasso.solver.solution import Solution
from datamodels.lasso.solver.solve import device_for, device_name, solve, suits_gpu, sums_device

__all__ = ["Lot", "Solution", "device_for", "device_name", "solve", "suits_gpu", "sums_device"]
