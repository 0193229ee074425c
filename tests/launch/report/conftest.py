from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.launch.cli import main
from datamodels.train.config import Eval
from datamodels.train.data.images import Dataset, Split
from datamodels.train.store import PublishedStore
from tests.conftest import DIGITS, TINY
from tests.stores import linear_data, published_store


def published(folder: Path, targets: int = 30, **changes: Any) -> PublishedStore:
    """Files of 300 rows with margins that are sparse linear functions of masks over 24 examples."""
    return stored(folder, *linear_data(300, 24, targets), **changes)


def stored(
    folder: Path, masks: np.ndarray, margins: np.ndarray, eval_models: int = 40, **changes: Any
) -> PublishedStore:
    """Files of these masks and margins, 40 rows for evaluation, with few bootstrap replicates."""
    return published_store(folder, masks, margins, eval_models, eval=Eval(replicates=100), **changes)


def images(n_train: int, n_test: int, side: int = 8, channels: int = 3, classes: int = 3) -> Dataset:
    """Random images, the classes taking turns; their names are hard on HTML."""
    rng = np.random.default_rng(1)

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, side, side, channels), dtype=np.uint8), np.arange(n) % classes)

    names = tuple(f"<class> & `-{number}`" for number in range(classes))
    return Dataset(split(n_train), split(n_test), names, (0.0,) * channels, (1.0,) * channels, "memory")


def command(name: str, folder: Path) -> list[str]:
    """A command on the store of a user's own images that `own_store` made in a folder."""
    places = ["--root", folder / "root", "--data.root", folder / "data"]
    return [*map(str, [name, DIGITS, *TINY, "--dataset=mine", "--data.test=null", *places])]


def page_in(folder: Path) -> Path:
    return folder / "root" / "mine" / "report_test_50pct.html"


@pytest.fixture(scope="session")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of 5 channels (`data`) and what `run` made of them (`root`)."""
    folder = tmp_path_factory.mktemp("own")
    dataset = images(24, 30, channels=5)
    (folder / "data").mkdir()
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        np.save(folder / "data" / f"{name}_images.npy", split.images)
        np.save(folder / "data" / f"{name}_labels.npy", split.labels)
    assert main([*command("run", folder), "--workers=1"]) == 0
    return folder
