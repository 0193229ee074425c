"""The two ways to compute the memory-bound parts of a training step."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from datamodels.train.kernels import norm, sgd
from datamodels.train.kernels.augment import Augment


@dataclass(frozen=True)
class Kernels:
    """Functions and a class that both ways have; the trainer is given one of them, and tests give it others."""

    name: str
    """`triton` or `torch`, the values of recipe.kernels."""
    batch_norm_act: Callable[..., Tensor]
    sgd_step: Callable[..., None]
    augment: type[Augment]


TORCH = Kernels("torch", norm.batch_norm_act, sgd.sgd_step, Augment)
"""PyTorch's operations: the only ones on a CPU, and the reference of Triton's kernels."""


def triton_kernels() -> Kernels:
    """Triton's kernels, on a GPU, or on a CPU where TRITON_INTERPRET=1. Raises ImportError where there is no Triton."""
    keep_cache_local()
    from datamodels.train.kernels import augment_triton, norm_launch, sgd_triton

    return Kernels("triton", norm_launch.batch_norm_act, sgd_triton.sgd_step, augment_triton.TritonAugment)


def keep_cache_local() -> None:
    """Have Triton keep what it compiles in the node's own temporary folder, unless the user says where.

    By default it goes to the home directory, which jobs of many nodes share. What lies there is run, so that it has to
    be a folder that nobody else can write to.
    """
    if "TRITON_CACHE_DIR" in os.environ or "TRITON_HOME" in os.environ:
        return
    folder = Path(tempfile.gettempdir()) / f"datamodels-triton-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    os.environ["TRITON_CACHE_DIR"] = str(folder) if own else tempfile.mkdtemp(prefix="datamodels-triton-")
