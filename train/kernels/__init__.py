"""The memory-bound parts of a training step: Triton kernels, and plain PyTorch, which they are checked against.

norm.py, sgd.py and augment.py are PyTorch's operations; *_triton.py hold the kernels, and norm_launch.py launches those
of norm. backend.py names the two, self_check.py compares them. pool.py is PyTorch alone. Triton is imported only where
its kernels are asked for.
"""

from datamodels.train.kernels.augment import Augment, as_tensor
from datamodels.train.kernels.backend import TORCH, Kernels, triton_kernels
from datamodels.train.kernels.norm import activated
from datamodels.train.kernels.pool import max_pool2d
from datamodels.train.kernels.self_check import check_kernels

__all__ = ["TORCH", "Augment", "Kernels", "activated", "as_tensor", "check_kernels", "max_pool2d", "triton_kernels"]
