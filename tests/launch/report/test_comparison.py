"""`datamodels compare`: what it prints, the page it writes, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import datamodels as dm
from datamodels.train.store import Layout
from tests.conftest import in_process
from tests.stores import DATASET, TAG, created_store, linear_data


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two stores with equal masks and margins that differ, with datamodels."""
    folder = tmp_path_factory.mktemp("compared")
    masks, margins = linear_data(200, 24, 30)
    changed = margins + 3 * masks[:, :1] * (np.arange(30) < 15)  # example 0 raises half of the targets
    for name, values in (("one", margins), ("other", changed)):
        dm.fit(created_store(folder / name, masks, values, eval_models=20))
    (folder / "one" / DATASET / "data" / "test_names.txt").write_text("<b> & c\n" * 30)
    return folder / "one", folder / "other"


def test_two_roots_are_compared(roots: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    done = in_process(capsys, "compare", *roots, "--json", "--per_target", "--k", 2)
    assert done.code == 0, done.err
    assert "no images in the report: " in done.err
    told = json.loads(done.out)
    assert (told["a"], told["b"]) == tuple(str(Layout(root, DATASET, TAG).data) for root in roots)
    assert (told["split"], told["output"], told["targets"], told["undefined"]) == ("test", "margins", 30, 0)
    found = dm.compare(*map(dm.open, roots), k=2)
    assert told["per_target"]["similarity"] == found.similarity.tolist()
    assert told["similarity"]["mean"] == pytest.approx(found.similarity.mean())
    assert max(told["least_similar"]) < 15
    assert told["only_b"][0]["share_of_b"] > told["only_b"][0]["share_of_a"]
    assert 0 in (told["only_b"][0]["examples"][end][0] for end in ("positive", "negative"))

    page = Path(told["page"])
    assert page == roots[0] / DATASET / "compare_test_50pct_other_50pct.html"
    text = page.read_text()
    assert "Only in A" in text
    assert "&lt;b&gt; &amp; c" in text
    assert all(str(root) in text for root in roots)


def test_a_page_goes_to_out_and_figures_are_for_people(
    roots: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = in_process(capsys, "compare", *roots, "--out", tmp_path)
    assert "similarity: mean 0." in done.out
    page = Path(done.out.splitlines()[-1])
    assert page.is_relative_to(tmp_path)
    assert page.exists()


def test_what_cannot_be_compared_is_told_in_a_line(
    roots: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = roots
    copy = shutil.copytree(other, tmp_path / "copy")
    shutil.rmtree(copy / DATASET / "datamodels")
    for arguments, expected in (
        ((one,), "error: the following arguments are required: B"),
        ((one, tmp_path / "none"), f"error: {tmp_path / 'none'} holds no setting"),
        ((one, copy), f"error: {copy / DATASET / 'datamodels' / 'test_50pct.pt'} does not exist: run"),
        ((one, other, "--output", "loss"), "error: output is 'loss', expected one of margins"),
        ((one, other, "--k", 0), "error: k is 0, expected at least 1"),
        ((one, other, "--root_b", tmp_path), f"error: {other} is not a config file"),
    ):
        error = in_process(capsys, "compare", *arguments).err.splitlines()
        assert error[-1].startswith(expected), error
        assert sum(line.startswith("error:") for line in error) == 1
