"""Augmentation by whatever runs here: PyTorch on a CPU, Triton in its interpreter or on a GPU."""

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodels.train.config import Recipe
from datamodels.train.data.sources import Dataset, Split
from datamodels.train.kernels import Augment, Kernels
from datamodels.train.trainer.engine import views
from datamodels.train.trainer.executor import Executor
from datamodels.train.trainer.loader import Loader

MEAN, STD = (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)
RECIPES = [
    (Recipe(flip=True, translate=2, cutout=4), (6, 32, 32, 3), 8),
    (Recipe(flip=True, translate=2, cutout=4), (6, 32, 32, 3), 3),
    (Recipe(flip=False, translate=1, cutout=0), (4, 9, 12, 1), 1),
    (Recipe(flip=True, translate=0, cutout=3), (4, 10, 7, 3), 4),
    (Recipe(flip=False, translate=0, cutout=0), (4, 8, 8, 1), 1),
]
"""With the images' shape and the channels of the result."""


def dataset(shape: tuple[int, ...], dtype: str = "uint8") -> Dataset:
    scale = {"uint8": 1, "uint16": 257, "float32": 1 / 255}[dtype]
    images = (scale * torch.randint(256, shape).numpy()).astype(dtype)
    split = Split(images, np.arange(len(images)))
    mean, std = (tuple(scale * value for value in values[: shape[3]]) for values in (MEAN, STD))
    return Dataset(split, split, tuple(map(str, range(len(images)))), mean, std, "here")


def batch(data: Dataset, augment: Augment, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Images with their border, and for 2 rows of 20 images which to take and what was drawn."""
    bordered = Loader(data.train.images, Executor(device), True, augment.recipe.translate, augment.fill).resident
    assert bordered is not None
    draws = torch.empty((2, 20), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    return bordered, torch.randint(len(data.train.images), (2, 20), device=device), draws.to(device)


def expected(image: np.ndarray, draw: int, recipe: Recipe, data: Dataset) -> np.ndarray:
    """The recipe's augmentation of one image, step by step."""
    height, width, channels = image.shape
    fill = np.array(data.mean).astype(image.dtype)
    t, side = recipe.translate, recipe.cutout
    fields = [(draw >> shift) & 0xFFFF for shift in (0, 16, 32, 48)]
    if recipe.flip and fields[0] & 1:
        image = image[:, ::-1]
    padded = np.full((height + 2 * t, width + 2 * t, channels), fill)
    padded[t : t + height, t : t + width] = image
    y, x = divmod(fields[1] * (2 * t + 1) ** 2 >> 16, 2 * t + 1)
    image = padded[y : y + height, x : x + width].copy()
    if side:
        y, x = fields[2] * (height - side + 1) >> 16, fields[3] * (width - side + 1) >> 16
        image[y : y + side, x : x + side] = fill
    return (image.astype(np.float64) - data.mean) / data.std


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("recipe", "shape", "channels"), RECIPES)
def test_batches_equal_a_plain_statement_of_the_recipe(
    recipe: Recipe, shape: tuple[int, ...], channels: int, kind: str, device: torch.device, kernels: Kernels
) -> None:
    data = dataset(shape, kind)
    augment = kernels.augment(data, recipe, device, torch.float32, channels)
    bordered, index, draws = batch(data, augment, device)
    found = augment(bordered, index, draws).cpu().numpy()
    for g, b in np.ndindex(*index.shape):
        image = expected(data.train.images[index[g, b]], int(draws[g, b]) % 2**64, recipe, data)
        np.testing.assert_allclose(found[g, b, ..., : shape[3]], image, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("recipe", "shape", "channels"), RECIPES)
def test_every_bit_is_that_of_pytorchs_operations(
    recipe: Recipe, shape: tuple[int, ...], channels: int, dtype: torch.dtype, device: torch.device, kernels: Kernels
) -> None:
    data = dataset(shape)
    augment = kernels.augment(data, recipe, device, dtype, channels)
    given = batch(data, augment, device)
    found, plain = augment(*given), augment.normalise(augment.augmented(*given)).to(dtype)
    assert found.shape == (*plain.shape[:-1], channels)
    assert torch.equal(found[..., : shape[3]], plain)
    assert (found[..., shape[3] :] == 0).all()


def test_draws_choose_every_flip_translation_and_place_equally_often() -> None:
    augment = Augment(dataset((6, 32, 32, 3)), Recipe(), torch.device("cpu"))
    draws = np.random.Philox(key=np.array([0, 0], np.uint64)).random_raw(40_000).view(np.int64)
    rows, columns = augment.window(torch.from_numpy(draws)[None])
    shift = rows[0, :, 0] * 10 + torch.minimum(columns[0, :, 0], columns[0, :, -1])
    _, counts = torch.unique(shift, return_counts=True)
    assert len(counts) == 25
    assert counts.min() > 1400
    assert (columns[0, :, 0] > columns[0, :, -1]).float().mean().item() == pytest.approx(0.5, abs=0.02)
    hole = augment.hole(torch.from_numpy(draws[:2000])[None])
    assert (hole.sum((2, 3)) == 16).all()


def test_views_are_mirror_or_channel_reversal() -> None:
    image = torch.arange(12.0).reshape(1, 2, 2, 3)
    assert torch.equal(views(image, "mirror")[1], image[:, :, [1, 0]])
    assert torch.equal(views(image, "legacy_fliplr")[1], image[..., [2, 1, 0]])
    nchw = image.permute(0, 3, 1, 2)
    assert torch.equal(views(image, "legacy_fliplr")[1].permute(0, 3, 1, 2), torch.fliplr(nchw))
    assert len(views(image, "none")) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_takes_new_draws(device: torch.device, kernels: Kernels) -> None:
    data = dataset((20, 32, 32, 3))
    augment = kernels.augment(data, Recipe(), device, torch.float16, 8)
    bordered, index, draws = batch(data, augment, device)
    augment(bordered, index, draws)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = augment(bordered, index, draws)
    draws.random_()
    graph.replay()
    assert torch.equal(captured, augment(bordered, index, draws))
