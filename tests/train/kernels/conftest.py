"""Tests of Triton's kernels, on a GPU or in Triton's interpreter (TRITON_INTERPRET=1, as test_plain.py starts them)."""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    collect_ignore_glob = ["test_plain.py", "test_compiled.py"]
elif not torch.cuda.is_available():
    collect_ignore_glob = [f"test_{name}.py" for name in ("augment", "norm", "sgd", "rows")]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every run has the same numbers; with `KERNEL_TESTS_SEED=N`, others, to look for cases that none has met."""
    torch.manual_seed(int(os.environ.get("KERNEL_TESTS_SEED", "0")))
