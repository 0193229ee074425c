import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels.lasso.gram.sums import Cross, Gram, fastest_route, gathered
from tests.stores import linear_data


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 1000))
def test_sums_equal_integer_arithmetic_however_rows_are_divided(rows, n_train, targets, pieces, seed):
    masks, margins = linear_data(rows, n_train, targets, seed)
    gram, cross = Gram(n_train), Cross(n_train, targets)
    for x, y in zip(np.array_split(masks, pieces), np.array_split(margins, pieces), strict=True):
        packed = np.packbits(x, axis=1)
        gram.add(packed)
        cross.add(packed, y)
    x, y = masks.astype(np.int64), margins.astype(np.float64)
    assert gram.rows == rows
    np.testing.assert_array_equal(gram.finish().counts, x.T @ x)
    np.testing.assert_array_equal(cross.cross, y.T @ x)  # float16 sums are exact in float64
    np.testing.assert_array_equal(cross.sums, y.sum(axis=0))
    np.testing.assert_allclose(cross.squares, (y * y).sum(axis=0), rtol=1e-14)


ROWS, N, TARGETS = 2100, 4101, 17  # more than are added up at a time, and no multiple of anything


@pytest.mark.parametrize(("dtype", "smallest"), [(np.float16, -24), (np.float32, -20), (np.float64, -20)])
def test_sums_are_those_of_integers_for_margins_of_every_size(dtype, smallest, monkeypatch):
    rng = np.random.default_rng(0)
    masks, exponents = rng.random((ROWS, N)) < 0.5, rng.integers(smallest, 0, (ROWS, TARGETS))
    digits = {np.float16: 11, np.float32: 24, np.float64: 30}[dtype]
    margins = np.ldexp(rng.integers(-(2**digits), 2**digits, (ROWS, TARGETS)), exponents).astype(dtype)
    packed, found = np.packbits(masks, axis=1), []
    for cores in (1, 2):
        monkeypatch.setattr("os.sched_getaffinity", lambda process, cores=cores: set(range(cores)))
        cross = Cross(N, TARGETS)
        cross.add(packed, margins)
        found.append(cross.table)
    np.testing.assert_array_equal(*found)
    integers = np.ldexp(margins, -smallest, dtype=np.float64).astype(np.int64)
    expected = np.ldexp((integers.T @ masks[:, :: N // 50].astype(np.int64)).astype(np.float64), smallest)
    np.testing.assert_allclose(found[0][:, : N : N // 50], expected, rtol=0 if dtype == np.float16 else 1e-15)


def test_pieces_hold_every_row_once_whatever_the_blocks(monkeypatch):
    monkeypatch.setattr("datamodels.lasso.gram.sums._PIECE", 60)
    masks, margins = linear_data(300, 20, 3)
    validation, tables = np.arange(300) % 4 == 0, []
    for size in (7, 100, 300):
        cuts = [slice(at, at + size) for at in range(0, 300, size)]
        blocks = ((validation[cut], np.packbits(masks[cut], axis=1), margins[cut]) for cut in cuts)
        crosses = Cross(20, 3), Cross(20, 3)
        for group, packed, piece in gathered(blocks):
            crosses[group].add(packed, piece)
        tables.append(np.stack([cross.table[:, :-1] for cross in crosses]))
    expected = [margins[group].astype(np.float64).T @ masks[group] for group in (~validation, validation)]
    for table in tables:
        np.testing.assert_array_equal(table[:, :, :-1], expected)
        np.testing.assert_array_equal(table, tables[0])


def test_margins_are_not_summed_in_float16():
    cross = Cross(2, 1)
    cross.add(np.full((5000, 1), 0b11000000, np.uint8), np.full((5000, 1), 60000, np.float16))
    assert cross.sums[0] == 5000 * float(np.float16(60000))


@pytest.mark.parametrize("n_train", [1, 5, 37, 130])
@pytest.mark.parametrize("rows", [1, 63, 64, 700, 9000])
def test_both_routes_count_exactly_and_take_rows_after_finishing(n_train, rows):
    masks = np.random.default_rng(rows).random((rows, n_train)) < 0.4
    expected = masks.astype(np.int64).T @ masks.astype(np.int64)
    for route in ("popcount", "product"):
        gram = Gram(n_train, route)
        for piece in np.array_split(masks, 3):
            gram.add(np.packbits(piece, axis=1))
            gram.finish()
        np.testing.assert_array_equal(gram.counts, expected)


def test_the_route_follows_the_cpu(monkeypatch):
    assert fastest_route(100) == "product"
    for has, route in ((True, "popcount"), (False, "product")):
        monkeypatch.setattr("datamodels.lasso.gram.popcount.has_vector_popcount", lambda has=has: has)
        assert fastest_route(2000) == route
