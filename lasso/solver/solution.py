"""What the solver finds for T targets."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Solution:
    """Fits of T targets."""

    weight: NDArray[np.float32]
    """[T, N_train], in the units that `fit.weight_units` asks for"""
    bias: NDArray[np.float32]
    """[T]: of mask @ weight + bias, or of ((mask - mean) / deviation) @ weight + bias"""
    lam: NDArray[np.float32]
    """[T]: exactly the lambda of the refit, in units of the margin."""
    chosen: NDArray[np.int32]
    """[T]: index of the chosen lambda on the path; -1 for a target without variance."""
    tried: NDArray[np.int32]
    """[T]: lambdas tried before the path ended."""
    validation_mse: NDArray[np.float64]
    """[T]: mean squared error on the held-out rows at the chosen lambda, before the refit."""
    variance: NDArray[np.float64]
    """[T]: variance of the margins over the rows of the refit."""
    gap: NDArray[np.float64]
    """[T]: relative gap of the float32 weights, recomputed from the counts; at most tol where they allow it."""
    kkt: NDArray[np.float64]
    """[T]: largest violation of the optimality conditions by the float32 weights, over lambda."""
    path_gap: NDArray[np.float64]
    """[T]: largest relative gap along the path."""

    @classmethod
    def empty(cls, targets: int, n_train: int) -> "Solution":
        return cls(
            weight=np.zeros((targets, n_train), np.float32),
            bias=np.zeros(targets, np.float32),
            lam=np.zeros(targets, np.float32),
            chosen=np.full(targets, -1, np.int32),
            tried=np.zeros(targets, np.int32),
            validation_mse=np.zeros(targets),
            variance=np.zeros(targets),
            gap=np.zeros(targets),
            kkt=np.zeros(targets),
            path_gap=np.zeros(targets),
        )
