import numpy as np
import pytest

import datamodels as dm
from datamodels.lasso import evaluate, fit, load
from tests.stores import linear_data, published_store, with_fit


@pytest.mark.parametrize("rows", [60, 300])
@pytest.mark.parametrize("units", ["mask", "standardised"])
def test_arrays_give_what_files_of_the_same_rows_give(tmp_path, rows, units):
    masks, outcomes = linear_data(rows, 100, 9)
    outcomes = outcomes.astype(np.float16)
    store = with_fit(published_store(tmp_path, masks, outcomes), k=30, weight_units=units)
    kept = load(fit(store))
    fitted = dm.fit_arrays(masks.astype(bool), outcomes, k=30, weight_units=units)
    for name in ("weight", "bias", "lam", "gap"):
        np.testing.assert_array_equal(getattr(fitted, name), getattr(kept, name))
    assert fitted.gap.max() <= 1e-6
    assert fitted.arrays.keys() == kept.arrays.keys() - {"stamp"}
    np.testing.assert_allclose(fitted.predict(masks.astype(bool)), kept.predict(masks.astype(bool)), rtol=1e-6)


def test_outcomes_of_any_precision_and_order_are_fitted():
    masks, outcomes = linear_data(200, 40, 5)
    masks, expected = masks.astype(bool), dm.fit_arrays(masks.astype(bool), outcomes, k=20).weight
    for given in (
        outcomes.astype(">f8"),
        np.asfortranarray(outcomes),
        outcomes.astype(np.longdouble),
        outcomes.tolist(),
    ):
        np.testing.assert_array_equal(dm.fit_arrays(masks, given, k=20).weight, expected)


GOOD = np.array([[True, False], [False, True], [True, True]] * 10), np.arange(30.0).reshape(30, 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"masks": GOOD[0].astype(int)}, "masks has type int64, expected bool"),
        ({"masks": GOOD[0][:7]}, r"masks has shape \(7, 2\) and outcomes \(30, 1\), expected \[M, N\] and \[M, T\]"),
        ({"outcomes": GOOD[1][:, 0]}, r"outcomes \(30,\), expected"),
        ({"outcomes": np.where(GOOD[1] == 4, np.nan, GOOD[1])}, "row 4 of outcomes holds a value that is not finite"),
        ({"outcomes": np.array([["a"]] * 30)}, "outcomes has type <U1, expected real numbers"),
        ({"masks": GOOD[0] & (np.arange(30) != 5)[:, None]}, "row 5 of masks is empty"),
        ({"masks": GOOD[0][:1], "outcomes": GOOD[1][:1]}, "1 rows of masks give"),
        ({"shares": 0.5}, "'shares' is not an option, expected one of share, k"),
        ({"share": 2.0}, "fit.share is 2.0, expected between 0 and 1"),
        ({"k": "many"}, "cannot be used"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(change, told):
    with pytest.raises(dm.UserError, match=told) as refused:
        dm.fit_arrays(**{"masks": GOOD[0], "outcomes": GOOD[1], **change})
    assert "\n" not in str(refused.value)


def test_arrays_are_evaluated_as_a_store_with_the_same_rows_is(tmp_path):
    masks, outcomes = linear_data(300, 40, 6)
    masks[201::2], outcomes[201::2] = masks[200::2], outcomes[200::2]
    outcomes = (outcomes + np.random.default_rng(1).normal(scale=0.3, size=outcomes.shape)).astype(np.float16)
    store = published_store(tmp_path, masks, outcomes, eval_models=100, runs_per_mask=2)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 6))
    expected = evaluate(store, scores)
    found = dm.evaluate_arrays(scores, masks[200:].astype(bool), outcomes[200:])
    for name in ("lds", "undefined", "pearson", "mse", "r2", "ceiling", "models", "masks"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
    assert found.lds_interval.replicates == expected.lds_interval.replicates
    assert dm.evaluate_arrays(scores, masks[200:].astype(bool), outcomes[200:], replicates=0).lds_interval is None

    fitted = dm.fit_arrays(masks[:200].astype(bool), outcomes[:200], k=30)
    better = dm.evaluate_arrays(fitted, masks[200:].astype(bool), outcomes[200:])
    assert better.lds > 0.8 > found.lds
    assert better.lds_difference(found).low > 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"scores": np.zeros((1, 2))},
            r"scores has shape \(1, 2\), expected \(2, 1\): .* of which it is the transpose",
        ),
        ({"masks": np.ones((30, 2), bool)}, "the evaluation rows have 1 masks, expected at least 3"),
        ({"replicates": 5}, "eval.replicates is 5, expected 0, or at least 100"),
        ({"weight_units": "meters"}, "weight_units is 'meters'"),
        ({"scores": np.full((2, 1), np.nan)}, "scores holds weights that are not finite"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(change, told):
    with pytest.raises(dm.UserError, match=told) as refused:
        dm.evaluate_arrays(**{"scores": np.ones((2, 1)), "masks": GOOD[0], "outcomes": GOOD[1], **change})
    assert "\n" not in str(refused.value)
