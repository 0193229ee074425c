import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels.lasso.gram.sums import Cross, Gram, fastest_route
from tests.stores import linear_data


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 1000))
def test_sums_equal_integer_arithmetic_however_rows_are_divided(rows, n_train, targets, pieces, seed):
    masks, margins = linear_data(rows, n_train, targets, seed)
    gram, cross = Gram(n_train), Cross(n_train, targets)
    for x, y in zip(np.array_split(masks, pieces), np.array_split(margins, pieces), strict=True):
        gram.add(x)
        cross.add(x.astype(np.float64), y)
    x, y = masks.astype(np.int64), margins.astype(np.float64)
    assert gram.rows == rows
    np.testing.assert_array_equal(gram.finish().counts, x.T @ x)
    np.testing.assert_array_equal(cross.cross, y.T @ x)  # float16 sums are exact in float64
    np.testing.assert_array_equal(cross.sums, y.sum(axis=0))
    np.testing.assert_allclose(cross.squares, (y * y).sum(axis=0), rtol=1e-14)


def test_margins_are_not_summed_in_float16():
    cross = Cross(2, 1)
    cross.add(np.ones((5000, 2)), np.full((5000, 1), 60000, np.float16))
    assert cross.sums[0] == 5000 * float(np.float16(60000))


@pytest.mark.parametrize("n_train", [1, 5, 37, 130])
@pytest.mark.parametrize("rows", [1, 63, 64, 700, 9000])
def test_both_routes_count_exactly_and_take_rows_after_finishing(n_train, rows):
    masks = np.random.default_rng(rows).random((rows, n_train)) < 0.4
    expected = masks.astype(np.int64).T @ masks.astype(np.int64)
    for route in ("popcount", "product"):
        gram = Gram(n_train, route)
        for piece in np.array_split(masks, 3):
            gram.add(piece)
            gram.finish()
        np.testing.assert_array_equal(gram.counts, expected)


def test_the_route_follows_the_cpu(monkeypatch):
    assert fastest_route(100) == "product"
    for has, route in ((True, "popcount"), (False, "product")):
        monkeypatch.setattr("datamodels.lasso.gram.popcount.has_vector_popcount", lambda has=has: has)
        assert fastest_route(2000) == route
