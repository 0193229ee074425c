from pathlib import Path

import numpy as np
import pytest

from datamodels.launch.cli import main
from tests.conftest import DIGITS, TINY
from tests.train.store.published import images


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
