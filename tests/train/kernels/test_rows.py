"""Whole rows of ResNet-9 and a step of ResNet-18 by Triton's kernels, against PyTorch's own operations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from datamodels.train.config import Data, Recipe, Setting
from datamodels.train.data.sources import Dataset, Split
from datamodels.train.kernels import TORCH, Kernels
from datamodels.train.store.writer import RowResult
from datamodels.train.trainer.models import build
from datamodels.train.trainer.optimizer import FlatParameters
from datamodels.train.trainer.trainer import Trainer
from tests.train.kernels.conftest import INTERPRETED
from tests.train.trainer.fake_gpu import FakeGpu

RECIPE = Recipe(width=4, epochs=2, peak_epoch=1, batch=8, lr=0.02, threads=1, eval_batch=16)


def row(precision: str, device: torch.device, kernels: Kernels) -> RowResult:
    rng = np.random.default_rng(0)
    labels = np.arange(16) % 4
    images = (rng.integers(0, 100, (16, 16, 16, 3)) + 40 * labels[:, None, None, None]).astype(np.uint8)
    split = Split(images, labels)
    dataset = Dataset(split, split, tuple("abcd"), (125.0,) * 3, (50.0,) * 3, "here")
    setting = Setting(alpha=0.5, models=2, eval_models=0, recipe=replace(RECIPE, precision=precision), data=Data())
    executor = FakeGpu(device) if INTERPRETED else device
    result = Trainer(setting, dataset, executor, kernels=kernels)(0)[0]
    assert isinstance(result, RowResult)
    return result


@pytest.mark.parametrize(("precision", "apart"), [("float32", 0.01), ("bfloat16", 0.1)])
def test_a_row_by_kernels_is_the_row_by_pytorch(
    precision: str, apart: float, device: torch.device, kernels: Kernels
) -> None:
    ours, plain = row(precision, device, kernels), row(precision, device, TORCH)
    for name in ("train_margins", "test_logits"):
        difference = ours.arrays[name].astype(np.float64) - plain.arrays[name].astype(np.float64)
        assert np.abs(difference).mean() < apart * np.abs(plain.arrays[name].astype(np.float64)).mean()


def test_gradients_of_resnet18_by_kernels_are_those_by_pytorch(device: torch.device, kernels: Kernels) -> None:
    """Of its stem and first three blocks, which have every kind of unit.

    Rounding (5e-6) decides at times whether a pixel near a ReLU's corner counts, and with it 1 % of the gradient. One
    batch in seven has such a pixel; with another summation order PyTorch differs from itself as much.
    """

    def gradient(used: Kernels, row: int) -> torch.Tensor:
        network = build(Recipe(network="resnet18"), (36, 36, 3), 10, used)
        network.blocks, network.head = network.blocks[:3], torch.nn.Linear(128, 10)
        parameters = FlatParameters(network.to(device), 1, device)
        parameters.reset(0, range(row, row + 1))
        parameters.backward(F.cross_entropy(network(images)[0], labels))
        return parameters.grad

    labels, found = torch.arange(4, device=device), []
    for row in range(2):
        images = torch.randn(1, 4, 36, 36, 3, device=device)
        ours, plain = (gradient(used, row) for used in (kernels, TORCH))
        found.append(float((ours - plain).norm() / plain.norm()))
    assert 0 < min(found) < 1e-3
    assert max(found) < 0.1
