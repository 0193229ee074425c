"""What is measured: the published settings on random images of their shapes, and miniatures of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from datamodels.train.config import Setting, from_dict
from datamodels.train.data.images import Split
from datamodels.train.data.sources import SOURCES, Dataset

CONFIGS = Path(__file__).parent.parent / "configs"
ROWS = 4096
"""Rows a bench's store has room for."""

SHAPES = {"cifar": (50_000, 10_000, 32, 3, 10), "fmow": (21_404, 3_138, 224, 3, 62), "digits": (100, 1_697, 8, 1, 10)}
"""Training and test images, side, channels, classes. FMoW's: images of 2012, as in the published data."""

TINY_SHAPES = {"cifar": (96, 32, 32, 3, 10), "fmow": (16, 8, 32, 3, 62), "digits": (100, 40, 8, 1, 10)}


def setting(name: str, alpha: float, tiny: bool = False, **recipe: object) -> Setting:
    """The published setting of a data set at any alpha, with the logits that it keeps; changes are to its recipe."""
    published = from_dict(yaml.safe_load((CONFIGS / f"{name}_50pct.yaml").read_text("utf-8")))
    small: dict[str, object] = (
        {"epochs": 2, "peak_epoch": 1, "batch": 8, "eval_batch": 16, "threads": 1} if tiny else {}
    )
    if tiny and name == "cifar":
        small["width"] = 4
    changed = replace(published.recipe, **{**small, **recipe})  # type: ignore[arg-type]
    outputs = replace(published.outputs, preallocate=False)
    return replace(published, alpha=alpha, models=ROWS, eval_models=0, runs_per_mask=1, recipe=changed, outputs=outputs)


def timed(name: str, alpha: float, tiny: bool = False, **recipe: object) -> Setting:
    """A setting to train on random images: with a learning rate at which that stays finite."""
    return setting(name, alpha, tiny, **{"lr": 1e-3, **recipe})


def random_images(name: str, tiny: bool = False, share: float = 1.0) -> Dataset:
    """Uniform bytes in the shape of a data set: what is timed here does not depend on what images show.

    share: part of the images that there are.
    """
    n_train, n_test, side, channels, classes = (TINY_SHAPES if tiny else SHAPES)[name]
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        count = max(1, round(share * count))
        images = np.frombuffer(bytearray(rng.bytes(count * side * side * channels)), np.uint8)
        return Split(images.reshape(count, side, side, channels), rng.integers(0, classes, count))

    source = SOURCES[name]
    names = tuple(str(number) for number in range(classes))
    return Dataset(split(n_train), split(n_test), names, source.MEAN, source.STD, "random numbers")
