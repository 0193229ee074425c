"""What a CPU computes, and Triton's kernels in its interpreter, in a process of their own."""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from datamodels.train.kernels import TORCH, max_pool2d
from datamodels.train.kernels.pool import MaxPool2d
from tests.conftest import PROJECT


@pytest.mark.skipif(
    find_spec("triton") is None or version("triton").startswith(("3.5", "3.6")),
    reason="Triton's interpreter works with NumPy 2.4 from 3.7 on",
)
def test_the_kernels_are_right_in_the_interpreter() -> None:
    """The other tests of this folder; on a machine with a GPU the same tests run on it too, in the suite itself."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/train/kernels"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize("place", [None, "before", "after"])
@pytest.mark.parametrize("training", [True, False])
def test_the_reference_is_pytorchs_operations(place: str | None, training: bool) -> None:
    x, residual = torch.randn(2, 4, 3, 6, 6)
    ours, theirs = nn.BatchNorm2d(3).train(training), nn.BatchNorm2d(3).train(training)
    y = TORCH.batch_norm_act(x, ours, **({place: residual} if place else {}))
    expected = theirs(x)
    expected = F.relu(expected + residual) if place == "before" else F.relu(expected)
    assert torch.equal(y, expected + residual if place == "after" else expected)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("values", ["distinct", "tied"])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0), (3, 3, 1)], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (7, 6), (5, 9), (3, 3)], ids=str)
def test_a_pools_gradient_is_pytorchs_bit_for_bit(
    size: tuple[int, int], window: tuple[int, int, int], values: str
) -> None:
    """In the order of a CPU's sums; on a GPU, PyTorch adds in any order."""
    x = torch.randn(3, 5, *size) if values == "distinct" else torch.randint(0, 3, (3, 5, *size)).float()
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y, expected = MaxPool2d.apply(x, *window), F.max_pool2d(x, *window)
    dy = torch.randn_like(y)
    assert torch.equal(y, expected)
    (dx,), (expected_dx,) = (torch.autograd.grad(each, x, dy) for each in (y, expected))
    assert torch.equal(dx, expected_dx)
    assert dx.is_contiguous(memory_format=torch.channels_last)


def test_a_pool_on_another_device_than_a_cpu_takes_the_fixed_order() -> None:
    x = torch.empty(2, 3, 6, 6, device="meta", requires_grad=True)
    assert "MaxPool2dBackward" in type(max_pool2d(x, 3, 2, 1).grad_fn).__name__
    assert "Indices" in type(max_pool2d(torch.zeros(2, 3, 6, 6, requires_grad=True), 3, 2, 1).grad_fn).__name__
