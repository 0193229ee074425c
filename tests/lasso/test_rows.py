import numpy as np
import pytest

from datamodels.lasso import FitRows, read_margins, read_masks, rows, target_count
from datamodels.train import Fit, Setting, UserError, WorkError
from tests.stores import created_store, damage, linear_data, published_store, with_fit, write_rows

ROWS, N, TARGETS = 400, 5, 3


@pytest.fixture
def data():
    return linear_data(ROWS, N, TARGETS)


@pytest.fixture
def store(tmp_path, data):
    return created_store(tmp_path, *data)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_margin_that_is_not_finite_is_named(tmp_path, data, value, dtype):
    store = published_store(tmp_path, *data)
    margins = data[1].astype(dtype)
    margins[17, 2] = value
    np.save(store.layout.array("test_margins"), margins)
    store = published_store(tmp_path, data[0], margins)
    with pytest.raises(WorkError, match=r"test_margins_50pct\.npy: row 17 "):
        read_margins(store, "test", np.arange(ROWS), slice(None))
    assert np.isfinite(read_margins(store, "test", np.arange(ROWS), slice(2))).all()


def test_rows_with_wrong_bytes_are_named(store):
    damage(store, "train_masks", [3, 399])
    with pytest.raises(WorkError, match=r"2 rows of train_masks_50pct\.npy .* \(3, 399\): run `datamodels repair`"):
        rows.check_rows(store, ("train_masks",), np.arange(ROWS))
    rows.check_rows(store, ("train_masks",), np.setdiff1d(np.arange(ROWS), [3, 399]))


def test_rows_with_masks_of_another_seed_are_named(tmp_path, data):
    store = created_store(tmp_path, *data, missing=[3, 8])
    write_rows(store, ~data[0], data[1], rows=[3, 8])
    expected = r"2 rows of train_masks_50pct\.npy do not hold the masks of their seed \(3, 8\)"
    with pytest.raises(WorkError, match=expected):
        read_masks(store, np.arange(20))
    np.testing.assert_array_equal(read_masks(store, np.array([2, 4, 7, 9])), data[0][[2, 4, 7, 9]])
    read_margins(store, "test", np.arange(20), slice(None))


def test_missing_rows_are_refused_unless_partial(tmp_path, data):
    store = created_store(tmp_path, *data, missing=[7, 9])
    with pytest.raises(UserError, match=r"2 of 400 rows are missing \(first: 7\)"):
        rows.estimation_rows(store)
    found = rows.estimation_rows(with_fit(store, partial=True))
    np.testing.assert_array_equal(found, np.setdiff1d(np.arange(ROWS), [7, 9]))


def test_few_failed_rows_do_not_stop_a_fit_and_many_do(tmp_path, data):
    store = created_store(tmp_path, *data, fit=Fit(max_failed=0.005), failed=[7, 9])
    assert len(rows.estimation_rows(store)) == ROWS - 2
    with pytest.raises(UserError, match=r"2 of 400 rows failed \(first: 7\).*fit.max_failed"):
        rows.estimation_rows(with_fit(store, max_failed=0.004))


def test_unknown_and_absent_splits_are_refused(tmp_path, data):
    store = published_store(tmp_path, *data)
    with pytest.raises(UserError, match="expected test or train"):
        rows.split_name(store.arrays, "validation")
    with pytest.raises(UserError, match=r"train_margins_50pct\.npy does not exist"):
        target_count(store, "train")


def test_the_last_rows_validate_as_upstream_does():
    found = FitRows.of(Setting(fit=Fit(validation="last")), np.arange(600))
    assert np.flatnonzero(found.validation).tolist() == list(range(540, 600))


def test_blocks_hold_every_row_once(store, monkeypatch):
    monkeypatch.setattr(rows, "_BLOCK_VALUES", 1)
    chosen = FitRows.of(store.setting, np.delete(np.arange(ROWS), [5, 64, 65]))
    found = list(chosen.blocks(store))
    assert max(len(block.rows) for block in found) == 64
    np.testing.assert_array_equal(np.concatenate([block.rows for block in found]), chosen.rows)
    np.testing.assert_array_equal(np.concatenate([block.validation for block in found]), chosen.validation)


def test_without_evaluation_rows_the_advice_is_of_what_can_be_done(tmp_path, data):
    for made, advice in (
        (created_store, "run `datamodels train`, with eval_models above 0"),
        (published_store, "eval_models says"),
    ):
        with pytest.raises(UserError, match=f"none of 0 evaluation rows of .* is completed, expected some: {advice}"):
            rows.evaluation_rows(made(tmp_path / made.__name__, *data))
