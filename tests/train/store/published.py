"""Published files and images made up for tests of what comes after training."""

from pathlib import Path

import numpy as np

from datamodels.train.config import Eval, Fit, Setting
from datamodels.train.data.sources import Dataset, Split
from datamodels.train.store.layout import Layout
from datamodels.train.store.store import PublishedStore
from tests.stores import linear_data


def published(
    root: Path, split: str = "test", rows: int = 300, n_train: int = 24, targets: int = 30, **changes: object
) -> PublishedStore:
    """Files with margins that are sparse linear functions of the masks."""
    masks, margins = linear_data(rows, n_train, n_train if split == "train" else targets)
    return stored(root, masks, {split: margins, "test": margins}, **changes)


def stored(root: Path, masks: np.ndarray, margins: dict[str, np.ndarray], **changes: object) -> PublishedStore:
    """A store of these masks and margins, by split."""
    layout = Layout(root, "made-up", "50")
    layout.data.mkdir(parents=True)
    np.save(layout.array("train_masks"), masks)
    for name, values in margins.items():
        np.save(layout.array(f"{name}_margins"), values)
    setting = Setting(dataset="made-up", **{"eval_models": 40, "fit": Fit(), "eval": Eval(replicates=100), **changes})
    return PublishedStore(layout, setting, False)


def images(n_train: int, n_test: int, side: int = 8, channels: int = 3, classes: int = 3) -> Dataset:
    """Random images, the classes taking turns; their names are hard on HTML."""
    rng = np.random.default_rng(1)

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, side, side, channels), dtype=np.uint8), np.arange(n) % classes)

    names = tuple(f"<class> & {number}" for number in range(classes))
    return Dataset(split(n_train), split(n_test), names, (0.0,) * channels, (1.0,) * channels, "memory")
