"""The LDS curve: fits to nested subsets of the estimation rows."""

import json
import os
import subprocess

import numpy as np
import pytest

from datamodels.lasso import curve, evaluate, fit
from datamodels.lasso.atomic import temporary_beside
from datamodels.lasso.gram import curve_disk_bytes
from datamodels.train.config import Fit
from datamodels.train.errors import UserError, WorkError
from tests.stores import linear_data, published_store


@pytest.fixture
def store(tmp_path):
    """500 estimation rows and 200 evaluation rows of 10 examples and 6 targets."""
    return published_store(tmp_path, *linear_data(700, 10, 6), eval_models=200, fit=Fit(k=30))


def test_the_curve_rises_and_ends_at_the_whole_fit(store):
    found = curve(store)
    assert found.targets == 6
    assert [point.models for point in found.points] == np.geomspace(500 / 32, 500, 10).round().tolist()
    fit(store)
    assert found.points[-1].lds == pytest.approx(evaluate(store).lds, abs=1e-9)
    assert found.points[0].lds < found.points[-1].lds
    assert curve(store) == found
    assert json.loads(json.dumps(found.to_json()))["points"][-1]["models"] == 500


@pytest.mark.parametrize(("units", "n_train"), [("mask", 10), ("standardised", 10), ("mask", 300), ("mask", 600)])
def test_a_point_of_the_curve_is_a_fit_of_that_many_rows(store, tmp_path, units, n_train):
    options = {"eval_models": 200, "fit": Fit(k=30, weight_units=units)}
    masks, margins = linear_data(700, n_train, 6)
    point = curve(published_store(tmp_path, masks, margins, **options), points=4).points[1]
    kept = np.r_[0 : point.models, 500:700]
    less = published_store(tmp_path / "less", masks[kept], margins[kept], **options)
    fit(less)
    assert point.lds == pytest.approx(evaluate(less).lds, abs=1e-9)
    assert point.mse == pytest.approx(evaluate(less).mse, abs=1e-6)


def test_counts_are_in_files_of_the_size_that_is_told_until_the_curve_ends(store):
    taken = []

    def look(stage, *_):
        if stage == "curve":
            sizes = [path.stat().st_size for path in (store.derived / "datamodels").glob(".curve.*.tmp/*")]
            taken.append(sum(sizes) - 128 * len(sizes))  # without headers

    curve(store, points=3, progress=look)
    assert taken == 3 * [curve_disk_bytes(500, store.n_train)] == 3 * [2 * 4 * 10**2]
    assert not list((store.derived / "datamodels").iterdir())


def test_files_of_a_killed_curve_are_removed_by_the_next(store):
    ended = subprocess.Popen(["true"])
    ended.wait()
    path = str(temporary_beside(store.derived / "datamodels" / "curve"))
    left = store.derived / "datamodels" / os.path.basename(path.replace(f".{os.getpid()}.", f".{ended.pid}."))
    left.mkdir(parents=True)
    curve(store, points=2)
    assert not left.exists()


def test_a_curve_that_fails_leaves_no_files(store):
    def fail(stage, *_):
        if stage == "curve":
            raise MemoryError

    with pytest.raises(WorkError, match="out of memory"):
        curve(store, progress=fail)
    assert not list((store.derived / "datamodels").iterdir())


def test_the_curve_can_be_asked_for_some_targets_and_sizes(store):
    found = curve(store, points=1, targets=np.array([1, 4]))
    assert (found.targets, [point.models for point in found.points]) == (2, [500])
    for targets in ([6], [-1], []):
        with pytest.raises(UserError, match="within 0:6"):
            curve(store, targets=np.array(targets, int))
