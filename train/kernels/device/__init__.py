"""Triton code, imported only where Triton is installed and about to be used."""

from datamodels.train.kernels.device.augment import augment
from datamodels.train.kernels.device.step import sgd

__all__ = ["augment", "sgd"]
