"""The LASSO of every target: choose lambda on held-out rows, refit on all rows, certify.

Objective of target j (contract section 4):

    P(w) = 1/(2n) ||y_j - b_j - Z w_j||^2 + lam_j ||w_j||_1

with Z the masks standardised by mean and standard deviation (ddof 0) of the n rows being fitted, and b_j the mean.
The path has k geometric lambdas from lambda_max = max|Z'(y - mean)|/n of the training rows down to eps times it; it
ends once `min_lambdas` were tried and the last `patience` of them brought no smaller held-out error. A tie goes to the
larger lambda. The relative gap is the duality gap over P(0) = var(y)/2.
"""

import logging
from typing import TYPE_CHECKING

from datamodels.lasso.gram import Cross, Matrices
from datamodels.lasso.rows import Progress, silent
from datamodels.lasso.solver.batch import Lot
from datamodels.lasso.solver.solution import Solution
from datamodels.train import Fit, UserError

if TYPE_CHECKING:
    import torch

_LARGE, _MANY = 4096, 128
"""Examples, and targets, from which a GPU is worth its while."""


def suits_gpu(fit: Fit, n_train: int, targets: int) -> bool:
    """Whether a fit of so many targets takes a GPU where there is one."""
    return fit.solver == "fista" or (fit.solver == "auto" and n_train >= _LARGE and targets >= _MANY)


def solve(
    matrices: Matrices,
    training: Cross,
    heldout: Cross,
    fit: Fit,
    first: int = 0,
    progress: Progress = silent,
    threads: int | None = None,
    device: "torch.device | None" = None,
) -> Solution:
    """Fit every target of the sums.

    first: absolute index of the first target, for messages; device: as `device_for` gives it. Each target is computed
    by itself, so that a result does not depend on which others are solved with it. Raises WorkError where a target
    misses its gap: `fit.tol` at the refit, 100 times that along the path.
    """
    lot = Lot(matrices, training, heldout, fit, first, threads, device=device)
    targets = len(training.sums)
    lot.follow_paths(lambda done: progress("path", done, targets))
    lot.refit(lambda done: progress("refit", done, targets))
    lot.check()
    return lot.solution


def device_for(fit: Fit, n_train: int, targets: int) -> "torch.device | None":
    """Where FISTA runs: on a GPU, or wherever torch can if that is asked for; None for descent.

    targets: of the whole fit, so that all its pieces go the same way. Where a GPU has too little free memory, `auto`
    falls back to descent and says so; raises UserError where FISTA is asked for.
    """
    if not suits_gpu(fit, n_train, targets):
        return None
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu") if fit.solver == "fista" else None
    from datamodels.lasso.solver.fista import bytes_needed

    torch.cuda.empty_cache()  # what torch keeps for itself counts as used
    device = torch.device("cuda", torch.cuda.current_device())
    needed, free = bytes_needed(n_train, fit.k), torch.cuda.mem_get_info(device)[0]
    if needed <= free:
        return device
    short = f"{device} has {free} bytes free, expected {needed} for {n_train} examples"
    if fit.solver == "fista":
        raise UserError(f"{short}: free its memory, or set fit.solver to descent")
    logging.getLogger(__name__).warning("%s: the fit takes the CPU, which may take days", short)
    return None


def sums_device(device: "torch.device | None") -> "torch.device | None":
    """Where sums are made: population count is the quicker way for a CPU, whatever the solver."""
    return device if device is not None and device.type == "cuda" else None


def device_name(device: "torch.device | None") -> str:
    """What the fit ran on, for the report."""
    import torch

    return torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else "cpu"
