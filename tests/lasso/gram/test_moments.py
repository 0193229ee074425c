import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels.lasso import rows as row_choice
from datamodels.lasso.gram.moments import Cross, Gram, quickest_route
from datamodels.lasso.rows import Split
from datamodels.train.errors import UserError, WorkError
from datamodels.train.rng import validation_rows
from tests.lasso.fake_store import FakeStore, linear_data


def gather(store, columns=slice(None), width=None, first=0):
    split = Split.of(store.setting, row_choice.estimation_rows(store))
    grams = Gram(store.n_train), Gram(store.n_train)
    width = store.n_test if width is None else width
    crosses = Cross(store.n_train, width, first), Cross(store.n_train, width, first)
    for block in split.blocks(store):
        masks = row_choice.read_masks(store, block.rows)
        margins = row_choice.read_margins(store, "test", block.rows, columns)
        for gram, cross, group in zip(grams, crosses, (~block.heldout, block.heldout), strict=True):
            gram.add(masks[group])
            cross.add(masks[group].astype(np.float64), margins[group])
    return [gram.finish() for gram in grams], crosses


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32))
def test_sums_equal_integer_arithmetic_on_each_group(tmp_path_factory, rows, n_train, targets, seed):
    masks, margins = linear_data(rows, n_train, targets, seed % 1000)
    store = FakeStore(tmp_path_factory.getbasetemp(), masks, margins, seed=seed)
    held = validation_rows(seed, np.arange(rows), 0.1)
    grams, crosses = gather(store)
    for gram, cross, group in zip(grams, crosses, (~held, held), strict=True):
        x, y = masks[group].astype(np.int64), margins[group].astype(np.float64)
        np.testing.assert_array_equal(gram.counts, x.T @ x)
        np.testing.assert_array_equal(cross.cross, y.T @ x)  # float16 sums are exact in float64
        np.testing.assert_array_equal(cross.sums, y.sum(axis=0))
        np.testing.assert_allclose(cross.squares, (y * y).sum(axis=0), rtol=1e-14)
        assert gram.rows == group.sum()


def test_margins_are_not_summed_in_float16(tmp_path):
    masks = np.ones((5000, 2), bool)
    margins = np.full((5000, 1), 60000.0)
    _, crosses = gather(FakeStore(tmp_path, masks, margins))
    assert sum(cross.sums[0] for cross in crosses) == 5000 * float(np.float16(60000))


def test_a_block_may_be_any_height(tmp_path, monkeypatch):
    masks, margins = linear_data(700, 8, 3)
    whole = gather(FakeStore(tmp_path, masks, margins))[1][0]
    monkeypatch.setattr(row_choice, "_BLOCK_VALUES", 1)
    pieces = gather(FakeStore(tmp_path, masks, margins))[1][0]
    np.testing.assert_array_equal(whole.cross, pieces.cross)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 299), st.integers(1, 300))
def test_sums_of_a_range_of_targets_are_those_of_all_bit_for_bit(tmp_path_factory, first, width):
    masks, margins = linear_data(150, 6, 300)
    margins = margins.astype(np.float64) * 1.7
    store = FakeStore(tmp_path_factory.getbasetemp(), masks, margins)
    stop = min(first + width, 300)
    whole = gather(store)[1][0]
    part = gather(store, slice(first, stop), stop - first, first)[1][0]
    for name in ("cross", "sums", "squares"):
        np.testing.assert_array_equal(getattr(whole, name)[first:stop], getattr(part, name))


@pytest.mark.parametrize("n_train", [1, 5, 37, 130])
@pytest.mark.parametrize("rows", [1, 63, 64, 700, 9000])
def test_both_routes_count_exactly(n_train, rows):
    masks = np.random.default_rng(rows).random((rows, n_train)) < 0.4
    expected = masks.astype(np.int64).T @ masks.astype(np.int64)
    for route in ("popcount", "product"):
        gram = Gram(n_train, route)
        for piece in np.array_split(masks, 3):
            gram.add(piece)
        assert gram.rows == rows
        np.testing.assert_array_equal(gram.finish().counts, expected)


@pytest.mark.parametrize("route", ["popcount", "product"])
def test_more_rows_can_be_added_after_finishing(route):
    masks, _ = linear_data(60, 7, 1)
    gram = Gram(7, route)
    gram.add(masks[:20])
    gram.finish().add(masks[20:])
    np.testing.assert_array_equal(gram.finish().counts, masks.astype(int).T @ masks.astype(int))


def test_the_route_follows_the_cpu(monkeypatch):
    assert quickest_route(100) == "product"
    monkeypatch.setattr("datamodels.lasso.gram.popcount.has_vector_popcount", lambda: True)
    assert quickest_route(2000) == "popcount"
    monkeypatch.setattr("datamodels.lasso.gram.popcount.has_vector_popcount", lambda: False)
    assert quickest_route(2000) == "product"


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_margin_that_is_not_finite_is_named(tmp_path, value):
    masks, margins = linear_data(50, 4, 3)
    margins[17, 2] = value
    with pytest.raises(WorkError, match=r"test_margins_50pct\.npy: row 17 "):
        gather(FakeStore(tmp_path, masks, margins))


def test_rows_with_wrong_bytes_are_named(tmp_path):
    masks, margins = linear_data(400, 5, 2)
    store = FakeStore(tmp_path, masks, margins)
    store.bad[[3, 399]] = True
    with pytest.raises(WorkError, match=r"2 rows of train_masks_50pct\.npy .* \(3, 399\): run `datamodels repair`"):
        row_choice.check_rows(store, ("train_masks",), np.arange(400))
    row_choice.check_rows(store, ("train_masks",), np.setdiff1d(np.arange(400), [3, 399]))


def test_rows_with_masks_of_another_seed_are_named(tmp_path):
    masks, margins = linear_data(400, 5, 2)
    store = FakeStore(tmp_path, masks, margins)
    store.strange[[3, 8]] = True
    with pytest.raises(
        WorkError, match=r"2 rows of train_masks_50pct\.npy do not hold the masks of their seed \(3, 8\)"
    ):
        row_choice.read_masks(store, np.arange(20))
    row_choice.read_masks(store, np.array([2, 4, 7, 9]))
    row_choice.read_margins(store, "test", np.arange(20), slice(None))


def test_missing_rows_are_refused_unless_partial(tmp_path):
    masks, margins = linear_data(400, 5, 2)
    store = FakeStore(tmp_path, masks, margins)
    store.done[[7, 9]] = False
    with pytest.raises(UserError, match=r"2 of 400 rows are missing \(first: 7\)"):
        row_choice.estimation_rows(store)
    rows = row_choice.estimation_rows(store.with_fit(partial=True))
    np.testing.assert_array_equal(rows, np.setdiff1d(np.arange(400), [7, 9]))


def test_few_failed_rows_do_not_stop_a_fit_and_many_do(tmp_path):
    masks, margins = linear_data(2000, 5, 2)
    store = FakeStore(tmp_path, masks, margins)
    store.done[[7, 9]], store.lost[[7, 9]] = False, True
    assert len(row_choice.estimation_rows(store)) == 1998
    store.done[11], store.lost[11] = False, True
    with pytest.raises(UserError, match=r"3 of 2000 rows failed \(first: 7\).*fit.max_failed"):
        row_choice.estimation_rows(store)


def test_unknown_and_absent_splits_are_refused(tmp_path):
    store = FakeStore(tmp_path, *linear_data(20, 5, 2))
    with pytest.raises(UserError, match="expected test or train"):
        row_choice.target_count(store, "validation")
    with pytest.raises(UserError, match=r"train_margins_50pct\.npy does not exist"):
        row_choice.target_count(store, "train")
