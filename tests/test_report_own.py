"""The report of a store of our own, on data of the user's own: what it tells of the training, and when it is stale."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from launch.cli import main
from tests.conftest import DIGITS, TINY, Outcome, in_process
from tests.published import images


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of 5 channels (`data`) and what `run` made of them (`root`)."""
    folder = tmp_path_factory.mktemp("own")
    dataset = images(24, 30, channels=5)
    (folder / "data").mkdir()
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        np.save(folder / "data" / f"{name}_images.npy", split.images)
        np.save(folder / "data" / f"{name}_labels.npy", split.labels)
    assert main([*map(str, _command("run", folder)), "--workers=1"]) == 0
    return folder


def _command(name: str, folder: Path) -> list[object]:
    places = ["--root", folder / "root", "--data.root", folder / "data"]
    return [name, DIGITS, *TINY, "--dataset=mine", "--data.test=null", *places]


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def _page(folder: Path) -> str:
    return (folder / "root" / "mine" / "report_test_50pct.html").read_text()


def _report(capsys: pytest.CaptureFixture[str], folder: Path, *options: object) -> Outcome:
    done = in_process(capsys, *_command("report", folder), *options)
    assert done.code == 0, done.err
    return done


def test_images_that_are_not_those_trained_on_are_not_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "<img" in _page(folder)
    path = folder / "data" / "test_images.npy"
    changed = np.load(path)
    changed[3, 2, 2, 0] ^= 1
    np.save(path, changed)
    told = _report(capsys, folder).err
    assert "no images in the report: the data set in" in told
    assert "was created with" in told
    assert "<img" not in _page(folder)
    assert "images are not at hand" in _page(folder)
