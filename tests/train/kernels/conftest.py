"""Tests of what moves memory: Triton's kernels on a GPU or in Triton's interpreter, PyTorch's operations elsewhere.

test_plain.py starts them in the interpreter (TRITON_INTERPRET=1).
"""

import os

import pytest
import torch

from datamodels.train.kernels import TORCH, Kernels, triton_kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    collect_ignore_glob = ["test_plain.py", "test_compiled.py"]
elif not torch.cuda.is_available():
    collect_ignore_glob = ["test_norm.py", "test_rows.py"]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")


@pytest.fixture
def kernels(device: torch.device) -> Kernels:
    return triton_kernels() if INTERPRETED or device.type == "cuda" else TORCH


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every run has the same numbers; with `KERNEL_TESTS_SEED=N`, others, to look for cases that none has met."""
    torch.manual_seed(int(os.environ.get("KERNEL_TESTS_SEED", "0")))
