import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from datamodels.lasso.evaluation.correlation import pearson, ranks, spearman


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.integers(-3, 3)))
def test_ranks_are_scipys_with_ties(values):
    np.testing.assert_array_equal(ranks(values), stats.rankdata(values, axis=0))


@pytest.mark.parametrize(("ours", "scipys"), [(spearman, stats.spearmanr), (pearson, stats.pearsonr)])
@settings(max_examples=100, deadline=None)
@given(st.integers(3, 40), st.integers(0, 10**6), st.sampled_from([2, 5, 10**6]))
def test_correlations_are_scipys_with_ties(ours, scipys, n, seed, levels):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, levels, (2, n, 3)).astype(np.float64)
    for column, found in enumerate(ours(a, b)):
        if np.ptp(a[:, column]) == 0 or np.ptp(b[:, column]) == 0:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(scipys(a[:, column], b[:, column]).statistic, abs=1e-12)


def test_a_constant_whose_mean_is_rounded_has_no_correlation():
    constant, other = np.full((12, 1), 0.1), np.random.default_rng(0).normal(size=(12, 1))
    assert constant.mean(axis=0) != 0.1
    assert np.isnan(pearson(constant, other)).all()
    assert np.isnan(spearman(other, constant)).all()
