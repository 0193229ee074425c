import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels.train.config import Recipe
from datamodels.train.trainer.schedule import draw_schedule, triangle


def plan(k: int, batch: int, epochs: int = 3, rows: range = range(5, 6)):
    recipe = Recipe(epochs=epochs, peak_epoch=1, batch=batch)
    subset = np.arange(100, 100 + 2 * k, 2)
    return draw_schedule(recipe, 11, rows, [subset] * len(rows), min(batch, k)), subset


@given(st.integers(1, 60), st.integers(1, 40))
def test_an_epoch_visits_each_example_at_most_once_and_drops_the_last_partial_batch(k: int, batch: int) -> None:
    found, subset = plan(k, batch)
    size = min(k, batch)
    per_epoch = k // size
    assert found.order_GSB.shape == (1, 3 * per_epoch, size)
    for epoch in range(3):
        visited = found.order_GSB[0, epoch * per_epoch : (epoch + 1) * per_epoch].ravel()
        assert len(set(visited.tolist())) == len(visited) == per_epoch * size
        assert set(visited.tolist()) <= set(subset.tolist())


def test_epochs_rows_and_seeds_have_orders_of_their_own() -> None:
    found, _ = plan(40, 20, rows=range(5, 7))
    assert not np.array_equal(found.order_GSB[0, :2], found.order_GSB[0, 2:4])
    assert not np.array_equal(found.order_GSB[0], found.order_GSB[1])


def test_a_row_has_the_same_schedule_alone_and_in_a_group() -> None:
    together, _ = plan(40, 20, rows=range(4, 8))
    alone, _ = plan(40, 20, rows=range(6, 7))
    for name in ("order_GSB", "draws_GSB", "lr_GS", "weight_GB"):
        np.testing.assert_array_equal(getattr(together, name)[2], getattr(alone, name)[0])


def test_the_order_is_the_sort_of_the_rows_own_philox_stream() -> None:
    found, subset = plan(40, 20, rows=range(9, 10))
    keys = np.random.Philox(key=np.array([11, 9], np.uint64), counter=[0, 0, 0, 2]).random_raw(120).reshape(3, 40)
    expected = subset[np.argsort(keys, axis=1, kind="stable")].reshape(6, 20)
    np.testing.assert_array_equal(found.order_GSB[0], expected)


def test_ragged_rows_are_padded_with_weight_and_learning_rate_zero() -> None:
    recipe = Recipe(epochs=2, peak_epoch=1, batch=10)
    subsets = [np.arange(35), np.arange(7)]
    found = draw_schedule(recipe, 0, range(2), subsets, 10)
    assert found.order_GSB.shape == (2, 6, 10)
    np.testing.assert_array_equal((found.weight_GB > 0).sum(1), [10, 7])
    np.testing.assert_allclose(found.weight_GB.sum(1), 1, rtol=1e-6)
    assert (found.lr_GS[1, 2:] == 0).all()
    assert found.order_GSB[1].max() < 7


def test_steps_of_an_epoch_that_are_given_hold_for_every_subset() -> None:
    """Which they take up evenly, permutation after permutation; a subset that fills them has its usual order."""
    recipe = Recipe(epochs=3, peak_epoch=1, batch=10, steps_per_epoch=4)
    usual, subset = plan(40, 10)
    found = draw_schedule(recipe, 11, range(5, 8), [subset, np.arange(39), np.arange(7)], 10)
    assert found.order_GSB.shape == (3, 12, 10)
    assert (found.lr_GS == found.lr_GS[0]).all()
    np.testing.assert_array_equal(found.order_GSB[0], usual.order_GSB[0])
    for row, k in ((1, 39), (2, 7)):
        visits = np.bincount(found.order_GSB[row, :, : min(k, 10)].ravel())
        assert len(visits) == k
        assert visits.max() - visits.min() <= 1


@pytest.mark.parametrize("per_epoch", [1, 9, 48, 73])
def test_the_learning_rate_rises_and_falls_in_one_triangle(per_epoch: int) -> None:
    lr = triangle(Recipe(), per_epoch)
    assert len(lr) == 24 * per_epoch
    assert lr[0] == 0
    assert lr[5 * per_epoch] == pytest.approx(0.5)
    assert (np.diff(lr[: 5 * per_epoch + 1]) > 0).all()
    assert (np.diff(lr[5 * per_epoch :]) < 0).all()
    assert lr[-1] == pytest.approx(0.5 / (19 * per_epoch))
