"""What the solver finds for T targets."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Solution:
    """Fits of T targets."""

    weight: NDArray[np.float32]
    """[T, N_train], in the units of `fit.weight_units`; between path and refit, standardised by the training rows"""
    bias: NDArray[np.float32]
    """[T]: of mask @ weight + bias, or of ((mask - mean) / deviation) @ weight + bias"""
    lam: NDArray[np.float32]
    """[T]: lambda of the refit, in units of the margin; 0 for a target without variance"""
    chosen: NDArray[np.int32]
    """[T]: index of the chosen lambda on the path; -1 for a target without variance"""
    tried: NDArray[np.int32]
    """[T]: lambdas tried before the path ended"""
    validation_mse: NDArray[np.float64]
    """[T]: mean squared error on the validation rows at the chosen lambda, before the refit"""
    variance: NDArray[np.float64]
    """[T]: variance of the margins over the rows of the refit"""
    gap: NDArray[np.float64]
    """[T]: relative duality gap of the float32 weights, from the counts in float64"""
    kkt: NDArray[np.float64]
    """[T]: largest violation of the optimality conditions by the float32 weights, over lambda"""
    path_gap: NDArray[np.float64]
    """[T]: largest relative duality gap along the path"""

    @classmethod
    def empty(cls, targets: int, n_train: int) -> "Solution":
        """A solution of zeros, in which no lambda is chosen yet."""
        bias, lam = np.zeros((2, targets), np.float32)
        chosen, tried = np.full(targets, -1, np.int32), np.zeros(targets, np.int32)
        return cls(np.zeros((targets, n_train), np.float32), bias, lam, chosen, tried, *np.zeros((5, targets)))
