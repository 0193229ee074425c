import numpy as np
import pytest
import torch

from datamodels.train.config import Recipe
from datamodels.train.data.sources import Dataset, Split
from datamodels.train.kernels import Augment
from datamodels.train.trainer.engine import views
from datamodels.train.trainer.executor import Executor
from datamodels.train.trainer.loader import Loader

MEAN, STD = (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)
FILL = (125, 122, 113)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    split = Split(images, np.arange(6))
    return Dataset(split, split, tuple("abcdef"), MEAN, STD, "here")


def expected(image: np.ndarray, draw: int, flip: bool, t: int, side: int) -> np.ndarray:
    """The recipe's augmentation of one image, step by step."""
    fields = [(draw >> shift) & 0xFFFF for shift in (0, 16, 32, 48)]
    if flip and fields[0] & 1:
        image = image[:, ::-1]
    padded = np.full((32 + 2 * t, 32 + 2 * t, 3), FILL, np.uint8)
    padded[t : t + 32, t : t + 32] = image
    place = fields[1] * (2 * t + 1) ** 2 >> 16
    y, x = divmod(place, 2 * t + 1)
    image = padded[y : y + 32, x : x + 32].copy()
    if side:
        y, x = (field * (32 - side + 1) >> 16 for field in fields[2:])
        image[y : y + side, x : x + side] = FILL
    return (image.astype(np.float64) - MEAN) / STD


@pytest.mark.parametrize(
    ("flip", "t", "side"), [(True, 2, 4), (False, 2, 0), (True, 0, 0), (False, 0, 8), (False, 0, 0)]
)
def test_batches_equal_a_plain_statement_of_the_recipe(dataset: Dataset, flip: bool, t: int, side: int) -> None:
    recipe = Recipe(flip=flip, translate=t, cutout=side)
    draws = np.random.default_rng(1).integers(0, 2**64, (2, 40), dtype=np.uint64)
    index = np.random.default_rng(2).integers(0, 6, (2, 40))
    augment = Augment(dataset, recipe, torch.device("cpu"))
    bordered = Loader(dataset.train.images, Executor(torch.device("cpu")), True, t, augment.fill).resident
    found = augment(bordered, torch.from_numpy(index), torch.from_numpy(draws.view(np.int64)))
    for g in range(2):
        for b in range(40):
            image = expected(dataset.train.images[index[g, b]], int(draws[g, b]), flip, t, side)
            np.testing.assert_allclose(found[g, b].numpy(), image, atol=2e-6)


def test_draws_choose_every_flip_translation_and_place_equally_often(dataset: Dataset) -> None:
    augment = Augment(dataset, Recipe(), torch.device("cpu"))
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
