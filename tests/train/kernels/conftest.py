"""Tests of kernels, on a GPU or in Triton's interpreter (TRITON_INTERPRET=1, as tests/train/kernels/test_norm_plain.py starts them)."""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every run has the same numbers; with `KERNEL_TESTS_SEED=N`, others, to look for cases that none has met."""
    torch.manual_seed(int(os.environ.get("KERNEL_TESTS_SEED", "0")))
