"""Whole rows of ResNet-9 by the kernels, as a GPU trains them, against PyTorch's own operations."""

import contextlib
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

from tests.test_overlap import gpu as gpu
from train.config import Data, Recipe, Setting
from train.data import Dataset, Split
from train.kernels import augment, norm, sgd
from train.loop import Trainer
from train.writer import RowResult

RECIPE = Recipe(width=4, epochs=2, peak_epoch=1, batch=8, lr=0.02, threads=1, eval_batch=16)


def row(precision: str) -> RowResult:
    rng = np.random.default_rng(0)
    labels = np.arange(16) % 4
    images = (rng.integers(0, 100, (16, 16, 16, 3)) + 40 * labels[:, None, None, None]).astype(np.uint8)
    split = Split(images, labels)
    dataset = Dataset(split, split, tuple("abcd"), (125.0,) * 3, (50.0,) * 3, "here")
    recipe = replace(RECIPE, precision=precision)
    setting = Setting(alpha=0.5, models=2, eval_models=0, recipe=recipe, data=Data())
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    result = Trainer(setting, dataset, device)(0)[0]
    assert isinstance(result, RowResult)
    return result


@pytest.mark.parametrize(("precision", "apart"), [("float32", 0.01), ("bfloat16", 0.1)])
def test_a_row_by_kernels_is_the_row_by_pytorch(precision: str, apart: float, request: pytest.FixtureRequest) -> None:
    if not torch.cuda.is_available():
        request.getfixturevalue("gpu")
    ours = row(precision)
    with contextlib.ExitStack() as without:
        for module in (augment, norm, sgd):
            without.enter_context(mock.patch.object(module, "usable", return_value=False))
        plain = row(precision)
    for name in ("train_margins", "test_logits"):
        difference = ours.arrays[name].astype(np.float64) - plain.arrays[name].astype(np.float64)
        assert np.abs(difference).mean() < apart * np.abs(plain.arrays[name].astype(np.float64)).mean()
