"""The memory-bound parts of a training step: Triton kernels, and the same in plain PyTorch to compare them with.

norm.py, sgd.py and augment.py choose between the two and hold the PyTorch version; *_triton.py hold the kernels, and
norm_launch.py launches those of norm. pool.py is PyTorch alone. Triton is imported only if it is installed and about to
be used.
"""

from datamodels.train.kernels.augment import Augment, as_tensor
from datamodels.train.kernels.norm import activated, batch_norm_act
from datamodels.train.kernels.pool import max_pool2d
from datamodels.train.kernels.sgd import sgd_step
from datamodels.train.kernels.tiling import usable

__all__ = ["Augment", "activated", "as_tensor", "batch_norm_act", "max_pool2d", "sgd_step", "usable"]
