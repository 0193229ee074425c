"""What moves memory in a training step: Triton kernels, each beside the plain PyTorch that it must equal.

Triton is imported only where it is installed and about to be used.
"""

from datamodels.train.kernels.augment import Augment
from datamodels.train.kernels.norm import activated, batch_norm_act
from datamodels.train.kernels.pool import max_pool2d
from datamodels.train.kernels.sgd import sgd_step
from datamodels.train.kernels.tiling import usable

__all__ = ["Augment", "activated", "batch_norm_act", "max_pool2d", "sgd_step", "usable"]
