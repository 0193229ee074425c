import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from datamodels.lasso.evaluation.correlation import spearman
from datamodels.lasso.evaluation.intervals import Bootstrap, Interval, _draw


def sample(masks, targets, seed=0, levels=None, noise=1.0):
    """Predictions and margins [masks, targets], noisy copies of each other, rounded to `levels` steps a unit."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(masks, targets))
    b = a + noise * (rng.normal(size=(masks, 1)) + rng.normal(size=(masks, targets))) / np.sqrt(2)
    return (a, b) if levels is None else (np.round(a * levels) / levels, np.round(b * levels) / levels)


@pytest.mark.parametrize("levels", [None, 1, 8])
def test_resampled_correlations_are_scipys_of_the_drawn_masks(levels):
    a, b = sample(30, 3, levels=levels)
    found = Bootstrap(30, 100, 0.95, seed=7)._correlations(a, b)
    assert found.shape == (3, 130)
    drawn = [np.repeat(np.arange(30), _draw(30, 7, number)) for number in range(100)]
    left_out = [np.delete(np.arange(30), number) for number in range(30)]
    for rows, column in zip([*drawn, *left_out], found.T, strict=True):
        expected = [stats.spearmanr(a[rows, target], b[rows, target]).statistic for target in range(3)]
        np.testing.assert_allclose(column, expected, atol=1e-6)


def test_bounds_are_scipys_bca_of_replicates_around_the_estimate():
    a, b = sample(40, 1, noise=0.5)
    bootstrap = Bootstrap(40, 500, 0.9, seed=1)
    estimate = spearman(a, b)
    low, high, _ = bootstrap.targets(estimate, a, b)
    replicates = bootstrap._correlations(a, b)[0, :500]
    replicates += estimate[0] - replicates.mean()
    expected = stats.bootstrap(
        (a[:, 0], b[:, 0]),
        lambda x, y: stats.spearmanr(x, y).statistic,
        paired=True,
        vectorized=False,
        n_resamples=0,
        confidence_level=0.9,
        method="BCa",
        bootstrap_result=SimpleNamespace(bootstrap_distribution=replicates),
    ).confidence_interval
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-5)


def test_every_mask_is_drawn_equally_often():
    counts = sum(_draw(50, 3, number) for number in range(2000))
    assert counts.sum() == 100_000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_equal_seeds_give_equal_intervals_however_many_targets_are_asked_for_together():
    a, b = sample(60, 150)
    estimate = spearman(a, b)
    low, high, total = Bootstrap(60, 200, 0.95, seed=5).targets(estimate, a, b)
    again = Bootstrap(60, 200, 0.95, seed=5)
    parts = [again.targets(estimate[part], a[:, part], b[:, part]) for part in (slice(0, 70), slice(70, 150))]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), low)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), high)
    np.testing.assert_allclose(parts[0][2] + parts[1][2], total, rtol=1e-12)
    other, _, _ = Bootstrap(60, 200, 0.95, seed=6).targets(estimate, a, b)
    assert (other != low).all()


def test_a_correlation_that_is_undefined_has_the_interval_0_to_0():
    a, b = sample(20, 2)
    a[:, 1] = 0.1
    low, high, total = Bootstrap(20, 100, 0.95, seed=0).targets(np.array([0.5, 0.0]), a, b)
    alone = Bootstrap(20, 100, 0.95, seed=0).targets(np.array([0.5]), a[:, :1], b[:, :1])
    assert (low[1], high[1]) == (0, 0)
    np.testing.assert_array_equal(total, alone[2])


@pytest.mark.parametrize("masks", [3, 4, 5])
def test_a_handful_of_masks_and_perfect_predictions_give_numbers(masks):
    a, _ = sample(masks, 70)
    for b in (a, -a, np.roll(a, 1, axis=0)):
        estimate = spearman(a, b)
        low, high, _ = Bootstrap(masks, 100, 0.95, seed=0).targets(estimate, a, b)
        assert ((low >= -1.000001) & (low <= high) & (high <= 1.000001)).all()


def test_groups_left_out_together_give_the_bounds_of_masks_left_out_alone(monkeypatch):
    a, b = sample(400, 20, noise=0.5)
    estimate = spearman(a, b)
    low, high, _ = Bootstrap(400, 1000, 0.95, seed=0).targets(estimate, a, b)
    monkeypatch.setattr("datamodels.lasso.evaluation.intervals._LEFT_OUT", 400)
    alone = Bootstrap(400, 1000, 0.95, seed=0).targets(estimate, a, b)
    width = (high - low).mean()
    np.testing.assert_allclose(low, alone[0], atol=0.1 * width)
    np.testing.assert_allclose(high, alone[1], atol=0.1 * width)


def test_memory_does_not_grow_with_targets_times_resamples():
    a, b = sample(10, 20_000)
    bootstrap, estimate = Bootstrap(10, 1000, 0.95, seed=0), spearman(a, b)
    tracemalloc.start()
    bootstrap.targets(estimate, a, b)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000 * 1010 * 8 / 3


def test_the_mean_over_many_targets_lies_in_its_interval_although_all_replicates_are_below_it():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(60, 3000))
    b = a + 0.5 * rng.normal(size=a.shape)
    bootstrap, estimate = Bootstrap(60, 400, 0.95, seed=0), spearman(a, b)
    _, _, total = bootstrap.targets(estimate, a, b)
    assert (total[:400] / 3000 < estimate.mean()).all()
    interval = Interval.of(float(estimate.mean()), total / 3000, 0.95, 400)
    assert interval.low < estimate.mean() < interval.high
    assert interval.high - interval.low < 0.02


@pytest.mark.parametrize(("masks", "noise"), [(50, 3.0), (200, 0.5)])
def test_intervals_hold_what_other_samples_give_as_often_as_they_say(masks, noise):
    truth = np.mean([spearman(*sample(masks, 20, seed, noise=noise)) for seed in range(1000, 1400)])
    held, each = 0, 0.0
    for seed in range(200):
        a, b = sample(masks, 20, seed, noise=noise)
        bootstrap, estimate = Bootstrap(masks, 400, 0.9, seed), spearman(a, b)
        low, high, total = bootstrap.targets(estimate, a, b)
        interval = Interval.of(float(estimate.mean()), total / 20, 0.9, 400)
        held += interval.low <= truth <= interval.high
        each += ((low <= truth) & (truth <= high)).mean()
    assert 0.83 <= held / 200 <= 0.97  # 3 standard errors of 200 trials at 0.9
    assert 0.87 <= each / 200 <= 0.94
