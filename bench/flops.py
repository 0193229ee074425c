"""Floating-point operations that a recipe asks for, counted on its real network by torch's own counter.

A multiplication and an addition are two. Convolutions and products count, as everywhere; batch norm, ReLU, pools, the
loss and the optimiser do not. The gradient with respect to the images is never computed and never counted.
"""

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from datamodels.train.config import Recipe, Setting
from datamodels.train.data.sources import Dataset
from datamodels.train.masks import batch_size, largest_subset
from datamodels.train.trainer.models import build
from datamodels.train.trainer.schedule import most_steps


def per_image(recipe: Recipe, shape: tuple[int, ...], classes: int) -> tuple[float, float]:
    """Of a forward and backward pass, and of a forward pass, for one image [H, W, C] of one row."""
    return _counted(recipe.network, recipe.width, tuple(shape), classes)


@cache
def _counted(network: str, width: int, shape: tuple[int, ...], classes: int) -> tuple[float, float]:
    """Counted on a CPU in float32, where the network is computed by torch's own operators without padded channels; and
    on a group of one, since the counter takes a grouped convolution's backward pass for an ungrouped one.
    """
    model = build(Recipe(network=network, width=width), shape, classes).train()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    batch = 2
    images = torch.zeros(1, batch, *shape)
    with FlopCounterMode(display=False) as both:
        model(images).sum().backward()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(images)
    return both.get_total_flops() / batch, forward.get_total_flops() / batch


def of_row(setting: Setting, dataset: Dataset) -> tuple[float, float]:
    """Of a row's training steps, and of its evaluation: every image in every test-time view. Exact masks."""
    both, forward = per_image(setting.recipe, dataset.train.images.shape[1:], len(dataset.classes))
    shown = (len(dataset.train.labels) + len(dataset.test.labels)) * (1 if setting.tta == "none" else 2)
    return trained_images(setting, dataset) * both, shown * forward


def trained_images(setting: Setting, dataset: Dataset) -> int:
    """Images that a row's steps see, each as often as it is seen."""
    n_train = len(dataset.train.labels)
    return most_steps(setting.recipe, largest_subset(setting, n_train)) * batch_size(setting, n_train)
