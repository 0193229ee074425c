"""The report of a store of our own, on data of the user's own: what it tells of the training, and when it is stale."""

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from datamodels.launch.cli import main
from datamodels.launch.report import run
from datamodels.launch.report.cost import Work
from datamodels.train.config import Recipe
from tests.conftest import DIGITS, TINY, Outcome, in_process
from tests.train.store.published import images


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


def test_hours_are_those_of_cores_or_gpus_and_a_price_makes_them_money(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "CPU core-hours" in _page(folder)
    assert "Money" not in _page(folder)
    _report(capsys, folder, "--price", 1000)
    assert re.search(r"Money</th><td>[\d.]+, at 1000 for an hour of a CPU core", _page(folder))
    options = [*_command("report", folder), "--price"]
    assert in_process(capsys, *options, -1).error == "error: --price is -1.0, expected a finite number above 0"


def _work(gpu: float, cpu: float, threads: int) -> Work:
    return Work(gpu, cpu, threads, 100, datetime.fromtimestamp(0, UTC), datetime.fromtimestamp(7200, UTC))


def test_what_training_took_is_told_by_what_it_ran_on() -> None:
    on_gpu, on_cpu, on_both = _work(7200, 0, 4), _work(0, 7200, 4), _work(3600, 3600, 1)
    assert on_gpu.headline(3) == ("Training", "2 h 0 min", "of a GPU, 72 s a model; 6.00 in all")
    assert on_cpu.headline(0.5) == ("Training", "2 h 0 min", "of 4 CPU cores, 72 s a model; 4.00 in all")
    assert on_gpu.table(None, 1)[0][1].startswith("2 GPU-hours, 72 s of a GPU a model")
    assert on_cpu.table(None, 1)[0][1].startswith("8 CPU core-hours (2 of workers with 4 cores), 72 s of 4 CPU cores a")
    assert on_both.table(1, 2)[0][1].startswith("1 GPU-hours and 1 CPU core-hours, 72 s of a GPU or a CPU core a model")
    assert on_both.table(1, 2)[1][1].startswith("not known")
    assert on_both.table(1, 2)[2][1].endswith("on 2 machines")


@pytest.mark.parametrize(
    ("network", "told"), [("resnet9", "resnet9 of width 8, "), ("resnet18", "resnet18, "), ("my.py", "my.py, ")]
)
def test_a_width_is_told_of_networks_that_have_one(
    network: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.py").touch()
    assert run._described(Recipe(network=network, width=8)).startswith(told)


def test_run_makes_the_page_anew_only_where_it_would_be_another(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def runs(*options: object) -> bool:
        """Whether a `run` makes the page."""
        before = _page(folder)
        done = in_process(capsys, *_command("run", folder), *options)
        assert done.code == 0, done.err
        told = "nothing to report: the page is up to date" in done.err
        assert told or _page(folder) != before
        return not told

    assert runs(), "it lies in another folder"
    assert not runs()
    assert runs("--eval.level=0.9")
    assert "90% interval" in _page(folder)
    assert not runs("--eval.level=0.9")
    curve = folder / "root" / "mine" / "datamodels" / "test_50pct.curve.json"
    curve.write_text(curve.read_text().replace('"targets": 30', '"targets": 29'))
    assert runs("--eval.level=0.9")
    assert "29 targets a point" in _page(folder)
    images = folder / "data" / "test_images.npy"
    content = images.read_bytes()
    images.write_bytes(b"")
    _report(capsys, folder, "--eval.level=0.9")
    assert "<img" not in _page(folder)
    images.write_bytes(content)
    assert runs("--eval.level=0.9")
    _report(capsys, folder, "--eval.level=0.9", "--price=2")
    assert not runs("--eval.level=0.9"), "a page with money is none the worse"
