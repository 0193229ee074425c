import numpy as np
import pytest
import torch

from datamodels.train.config import Recipe
from datamodels.train.data.sources import Dataset, Split
from datamodels.train.kernels import Augment
from datamodels.train.trainer.executor import Executor
from datamodels.train.trainer.loader import Loader
from tests.train.kernels.conftest import INTERPRETED


def dataset(*shape: int) -> Dataset:
    images = torch.randint(256, shape, dtype=torch.uint8).numpy()
    split = Split(images, np.arange(len(images)))
    mean, std = (125.307, 122.961, 113.8575)[: shape[-1]], (51.5865, 50.847, 51.255)[: shape[-1]]
    return Dataset(split, split, tuple(map(str, range(len(images)))), mean, std, "here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("flip", "t", "side", "shape", "channels"),
    [
        (True, 2, 4, (6, 32, 32, 3), 8),
        (True, 2, 4, (6, 32, 32, 3), 3),
        (False, 1, 0, (4, 9, 12, 1), 1),
        (True, 0, 3, (4, 10, 7, 3), 4),
        (False, 0, 0, (4, 8, 8, 1), 1),
    ],
)
def test_every_bit_is_that_of_the_plain_augmentation(
    flip: bool, t: int, side: int, shape: tuple[int, ...], channels: int, dtype: torch.dtype, device: torch.device
) -> None:
    data = dataset(*shape)
    augment = Augment(data, Recipe(flip=flip, translate=t, cutout=side), device, dtype, channels)
    bordered = Loader(data.train.images, Executor(device), True, t, augment.fill).resident
    assert bordered is not None
    index = torch.randint(len(data.train.images), (2, 7), device=device)
    draws = torch.empty((2, 7), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None).to(device)
    found = augment(bordered, index, draws)
    expected = augment.normalise(augment.augmented(bordered, index, draws)).to(dtype)
    assert found.shape == (*expected.shape[:-1], channels)
    assert torch.equal(found[..., : shape[-1]], expected)
    assert (found[..., shape[-1] :] == 0).all()


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_a_cuda_graph_takes_new_draws(device: torch.device) -> None:
    data = dataset(20, 32, 32, 3)
    augment = Augment(data, Recipe(), device, torch.float16, 8)
    bordered = Loader(data.train.images, Executor(device), True, 2, augment.fill).resident
    assert bordered is not None
    index, draws = torch.randint(20, (1, 64), device=device), torch.zeros((1, 64), dtype=torch.int64, device=device)
    augment(bordered, index, draws)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = augment(bordered, index, draws)
    draws.random_()
    graph.replay()
    assert torch.equal(captured, augment(bordered, index, draws))
