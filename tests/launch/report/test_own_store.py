"""The report of a store of our own, on a user's own images: what it says of the training, and when it is stale."""

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from datamodels.launch.report.cost import Work
from datamodels.launch.report.page import environment
from datamodels.train.config import Recipe
from tests.conftest import Outcome, in_process
from tests.launch.report.conftest import command, page_in


@pytest.fixture
def folder(own_store: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(own_store, tmp_path, dirs_exist_ok=True)
    return tmp_path


def report(capsys: pytest.CaptureFixture[str], folder: Path, *options: object) -> Outcome:
    done = in_process(capsys, *command("report", folder), *options)
    assert done.code == 0, done.err
    assert done.out == f"{page_in(folder)}\n"
    return done


def test_images_that_are_not_those_trained_on_are_not_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "<img" in page_in(folder).read_text()
    path = folder / "data" / "test_images.npy"
    changed = np.load(path)
    changed[3, 2, 2, 0] ^= 1
    np.save(path, changed)
    told = report(capsys, folder).err
    assert "no images in the report: the data set in" in told
    assert "was created with" in told
    page = page_in(folder).read_text()
    assert "<img" not in page
    assert "images are not available" in page


def test_a_price_makes_hours_money(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_in(folder).read_text()
    assert "CPU core-hours" in page
    assert "Money" not in page
    report(capsys, folder, "--price", 1000)
    assert re.search(r"Money</th><td>[\d.]+, at 1000 for an hour of a CPU core", page_in(folder).read_text())
    refused = in_process(capsys, *command("report", folder), "--price", -1)
    assert refused.error == "error: --price is -1.0, expected a finite number above 0"


def test_a_report_goes_to_out_where_the_root_is_only_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = page_in(folder).read_bytes()
    done = in_process(capsys, *command("report", folder), "--out", folder / "out")
    written = Path(done.out.strip())
    assert written.is_relative_to(folder / "out")
    assert written.name == page_in(folder).name
    assert "LDS against number of models" in written.read_text()
    assert page_in(folder).read_bytes() == before


def work(gpu: float, cpu: float, threads: int) -> Work:
    return Work(gpu, cpu, threads, 100, datetime.fromtimestamp(0, UTC), datetime.fromtimestamp(7200, UTC))


@pytest.mark.parametrize(
    ("found", "unit", "hours", "price", "cost"),
    [
        (work(7200, 0, 4), "a GPU", "2 GPU-hours", 3, "6.00"),
        (work(0, 7200, 4), "4 CPU cores", "8 CPU core-hours (2 of workers with 4 cores)", 0.05, "0.4"),
        (work(3600, 3600, 1), "a GPU or a CPU core", "1 GPU-hours and 1 CPU core-hours", 1, None),
    ],
)
def test_cost_by_what_trained(found: Work, unit: str, hours: str, price: float, cost: str | None) -> None:
    assert (found.unit, found.hours, found.seconds_per_row) == (unit, hours, "72 s")
    assert found.cost(price) == cost
    assert found.cost(None) is None


@pytest.mark.parametrize(
    ("network", "told"), [("resnet9", "resnet9 of width 8,"), ("resnet18", "resnet18,"), ("my.py", "my.py,")]
)
def test_a_width_is_told_of_networks_that_have_one(
    network: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.py").touch()
    recipe = Recipe(network=network, width=8)
    assert environment.get_template("recipe.html").render(recipe=recipe).startswith(told)


def test_run_makes_the_page_again_only_if_it_would_be_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def runs(*options: object) -> bool:
        """Whether a `run` makes the page."""
        before = page_in(folder).read_text()
        done = in_process(capsys, *command("run", folder), *options)
        assert done.code == 0, done.err
        assert done.out.splitlines()[-1] == str(page_in(folder))
        told = "nothing to report: the page is up to date" in done.err
        assert told or page_in(folder).read_text() != before
        return not told

    assert runs(), "it is in another folder"
    assert not runs()
    assert runs("--eval.level=0.9")
    assert "90% interval" in page_in(folder).read_text()
    assert not runs("--eval.level=0.9")
    curve = folder / "root" / "mine" / "datamodels" / "test_50pct.curve.json"
    curve.write_text(curve.read_text().replace('"targets": 30', '"targets": 29'))
    assert runs("--eval.level=0.9")
    assert "29 targets a point" in page_in(folder).read_text()
    path = folder / "data" / "test_images.npy"
    content = path.read_bytes()
    path.write_bytes(b"")
    report(capsys, folder, "--eval.level=0.9")
    assert "<img" not in page_in(folder).read_text()
    path.write_bytes(content)
    assert runs("--eval.level=0.9")
    report(capsys, folder, "--eval.level=0.9", "--price=2")
    assert not runs("--eval.level=0.9"), "a page with money is as good"
