"""Triton kernels for what moves memory in a training step, each beside the plain PyTorch that it must equal."""

from datamodels.train.kernels.augment import FusedAugment
from datamodels.train.kernels.form import RELU, Form, finish
from datamodels.train.kernels.norm import batch_norm_act
from datamodels.train.kernels.runtime import usable
from datamodels.train.kernels.sgd import sgd_step

__all__ = ["RELU", "Form", "FusedAugment", "batch_norm_act", "finish", "sgd_step", "usable"]
