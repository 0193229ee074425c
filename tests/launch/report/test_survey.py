"""One pass over the weights finds what looking at all of them at once finds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodels.lasso import path_of, silent
from datamodels.launch.report.fitted import Fitted
from datamodels.launch.report.outliers import DEPTH, count_above_noise
from datamodels.launch.report.survey import Survey, survey
from datamodels.train.errors import UserError
from datamodels.train.store import PublishedStore
from tests.stores import published_store

NONE = np.empty(0, np.int64)


def store_of(folder: Path, n_train: int, targets: int) -> PublishedStore:
    margins = np.zeros((4, targets))
    return published_store(
        folder, np.ones((4, n_train)), margins, train_margins=margins if targets == n_train else None
    )


def fitted(store: PublishedStore, weight: np.ndarray, split: str = "test") -> Fitted:
    path = path_of(store, split)
    path.parent.mkdir()
    torch.save({"weight": torch.from_numpy(weight), "bias": torch.zeros(weight.shape[1])}, path)
    return Fitted(store, split)


def surveyed(folder: Path, weight: np.ndarray) -> Survey:
    return survey(fitted(store_of(folder, *weight.shape), weight), NONE, False, silent)


@pytest.mark.parametrize("band_values", [1, 40, 10**6])
@pytest.mark.parametrize("own", [False, True])
def test_the_pass_in_bands_finds_what_dense_arrays_hold(tmp_path: Path, own: bool, band_values: int) -> None:
    rng = np.random.default_rng(0)
    n_train, targets = (15, 15) if own else (15, 11)
    weight = (rng.normal(size=(n_train, targets)) * (rng.random((n_train, targets)) < 0.6)).astype(np.float32)
    positions = np.array([0, 3, 3, 10])
    datamodels = fitted(store_of(tmp_path, *weight.shape), weight, "train" if own else "test")
    found = survey(datamodels, positions, own, silent, band_values)

    kept = np.where(np.eye(n_train, targets, dtype=bool) & own, 0, weight)
    for largest, signed in ((found.largest, kept), (found.smallest, -kept)):
        order = np.argsort(-signed, axis=0, kind="stable")[: DEPTH + 1]
        values = np.take_along_axis(signed, order, axis=0)
        np.testing.assert_array_equal(largest.values, values)
        np.testing.assert_array_equal(largest.examples[values > 0], order[values > 0])
    np.testing.assert_array_equal(found.columns, kept[:, positions])
    np.testing.assert_array_equal(found.nonzero, (kept != 0).sum(axis=0))
    np.testing.assert_allclose(found.squares, (kept.astype(np.float64) ** 2).sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.influence, np.abs(kept).sum(axis=1) / (targets - own), rtol=1e-5)
    np.testing.assert_allclose(found.effect, kept.sum(axis=1) / (targets - own), rtol=1e-4, atol=1e-6)
    if own:
        np.testing.assert_array_equal(found.own, np.diag(weight))


def test_an_outlier_score_is_the_largest_gap_against_the_weights_below_it(tmp_path: Path) -> None:
    """One duplicate; two weak ones; two above a larger gap together; no positive weight."""
    columns = [[8, 2, 2, 2, 0, 0], [0.5, 1, 1, 0, 0, -2], [9, 8.5, 1, -1, 1, 0], [-3, -1, -1, -1, -1, -1]]
    weight = np.array(columns, np.float32).T
    outliers = surveyed(tmp_path, weight).outliers
    usual = np.median(np.sqrt([12 / 5, 5.25 / 5, 75.25 / 5, 13 / 5]))  # above those below each gap
    np.testing.assert_allclose(outliers.score, [6 / usual, 0.5 / usual, 7.5 / usual, 0], rtol=1e-6)
    np.testing.assert_array_equal(outliers.count[:3], [1, 2, 2])


def test_scores_count_while_a_tenth_as_many_come_of_negative_weights() -> None:
    scores = np.concatenate([np.arange(20, 40), [5, 4, 3, 0]]).astype(float)
    assert count_above_noise(scores, np.zeros(24)) == 23
    assert count_above_noise(scores, np.full(24, 3.0)) == 21, "those above 1.5 times 3"
    assert count_above_noise(scores, np.array([22, 22])) == 23, "two of twenty may be chance"
    assert count_above_noise(scores, np.array([22, 22, 22])) == 6, "three may not"
    assert count_above_noise(scores, np.full(24, 50.0)) == 0
    assert count_above_noise(np.zeros(5), np.zeros(5)) == 0


@pytest.mark.parametrize("share", [1, 0.1], ids=["dense", "sparse"])
def test_nothing_stands_out_of_noise_and_copies_do(tmp_path: Path, share: float) -> None:
    rng = np.random.default_rng(0)
    noise = (rng.normal(size=(200, 500)) * (rng.random((200, 500)) < share)).astype(np.float32)
    copies = noise.copy()
    copies[7, 30] = 20
    copies[[3, 150], 40] = 15, 14
    for folder, weight, expected in (("noise", noise, []), ("copies", copies, [30, 40])):
        (tmp_path / folder).mkdir()
        found = surveyed(tmp_path / folder, weight)
        count = count_above_noise(found.outliers.score, found.negative_outliers.score)
        assert sorted(np.argsort(-found.outliers.score)[:count]) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    weight = np.ones((3, 2), np.float32)
    weight[2, 1] = value
    with pytest.raises(UserError, match="not finite"):
        surveyed(tmp_path, weight)


def test_datamodels_of_another_shape_are_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path, 4, 2)
    with pytest.raises(UserError, match="3 training examples and 2 targets, expected 4 and 2"):
        fitted(store, np.ones((3, 2), np.float32))
