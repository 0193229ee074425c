"""One pass over the weights finds what looking at all of them at once finds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from launch.report import weights
from launch.report.weights import Fitted, survey
from tests.fake_store import FakeStore
from train.errors import UserError


def _store(folder: Path, n_train: int, targets: int, split: str) -> FakeStore:
    masks = np.zeros((4, n_train), bool)
    margins = np.zeros((4, targets), np.float16)
    return FakeStore(folder, masks, margins, train_margins=margins if split == "train" else None)


def _fitted(folder: Path, weight: np.ndarray, split: str = "test") -> Fitted:
    (folder / "datamodels").mkdir()
    tensors = {"weight": torch.from_numpy(weight), "bias": torch.zeros(weight.shape[1])}
    torch.save(tensors, folder / "datamodels" / f"{split}_50pct.pt")
    return Fitted(_store(folder, *weight.shape, split), split)  # type: ignore[arg-type]


def _silent(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(params=[1, 40, 10**6])
def band(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_BAND_VALUES", request.param)


@pytest.mark.usefixtures("band")
@pytest.mark.parametrize("own", [False, True])
def test_the_pass_in_bands_finds_what_dense_arrays_hold(tmp_path: Path, own: bool) -> None:
    rng = np.random.default_rng(0)
    n_train, targets = (15, 15) if own else (15, 11)
    weight = (rng.normal(size=(n_train, targets)) * (rng.random((n_train, targets)) < 0.6)).astype(np.float32)
    positions = np.array([0, 3, 3, 10])
    found = survey(_fitted(tmp_path, weight, "train" if own else "test"), positions, own, _silent)

    kept = np.where(np.eye(n_train, targets, dtype=bool) & own, 0, weight)
    ordered = np.sort(kept, axis=0)
    np.testing.assert_array_equal(found.first, ordered[-1])
    np.testing.assert_array_equal(found.second, ordered[-2])
    np.testing.assert_array_equal(found.strongest, kept.argmax(axis=0))
    np.testing.assert_array_equal(found.columns, kept[:, positions])
    np.testing.assert_array_equal(found.nonzero, (kept != 0).sum(axis=0))
    np.testing.assert_allclose(found.squares, (kept.astype(np.float64) ** 2).sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.influence, np.abs(kept).sum(axis=1) / (targets - own), rtol=1e-5)
    np.testing.assert_allclose(found.effect, kept.sum(axis=1) / (targets - own), rtol=1e-4, atol=1e-6)
    if own:
        np.testing.assert_array_equal(found.own, np.diag(weight))


def test_the_lead_is_measured_against_a_targets_other_weights(tmp_path: Path) -> None:
    weight = np.array([[8, 0.5], [2, 1], [2, 1], [2, 0], [0, 0]], np.float32)
    found = survey(_fitted(tmp_path, weight), np.empty(0, np.int64), False, _silent)
    others = np.sqrt([12 / 4, 1.25 / 4])
    np.testing.assert_allclose(found.standout, [6 / others[0], 0], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    weight = np.ones((3, 2), np.float32)
    weight[2, 1] = value
    with pytest.raises(UserError, match="not finite"):
        survey(_fitted(tmp_path, weight), np.empty(0, np.int64), False, _silent)


def test_datamodels_of_another_shape_are_refused(tmp_path: Path) -> None:
    _fitted(tmp_path, np.ones((3, 2), np.float32))
    with pytest.raises(UserError, match="3 training examples and 2 targets, expected 4 and 2"):
        Fitted(_store(tmp_path, 4, 2, "test"), "test")  # type: ignore[arg-type]
