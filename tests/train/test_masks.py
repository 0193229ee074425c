"""Masks and random numbers, against docs/format.md."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels.train.errors import UserError
from datamodels.train.masks import Era, Masks, mask, mask_index, subset_size
from datamodels.train.rng import Stream, raw, uniform, validation_rows
from tests.conftest import tiny

seeds, rows = st.integers(0, 2**63 - 1), st.integers(0, 2**40 - 1)


def words(seed: int, row: int, stream: int, n: int) -> np.ndarray:
    return np.random.Philox(key=np.array([seed, row], dtype=np.uint64), counter=[0, 0, 0, stream]).random_raw(n)


@given(seeds, rows, st.sampled_from(Stream))
def test_a_stream_is_philox_with_the_purpose_in_the_counter(seed: int, row: int, stream: Stream) -> None:
    assert np.array_equal(raw(seed, row, stream, 9), words(seed, row, stream.value, 9))


def test_streams_have_their_published_numbers() -> None:
    assert [stream.value for stream in Stream] == [0, 1, 2, 3, 4, 5, 6]
    assert (Stream.MASK, Stream.INITIALISATION, Stream.ORDER, Stream.AUGMENTATION, Stream.VALIDATION) == (0, 1, 2, 3, 4)
    assert (Stream.NETWORK, Stream.RESAMPLE) == (5, 6)


@given(seeds, rows, st.integers(1, 40))
def test_uniform_floats_are_below_one_and_follow_from_the_words(seed: int, row: int, n: int) -> None:
    found = uniform(seed, row, Stream.ORDER, n)
    halves = [half for word in words(seed, row, 2, n).tolist() for half in (word % 2**32, word // 2**32)]
    assert found.tolist() == [(half >> 8) / 2**24 for half in halves[:n]]
    assert found.max() < 1


@given(seeds, st.integers(0, 10_000), st.integers(2, 300), st.integers(1, 99))
def test_an_exact_mask_holds_the_smallest_keys(seed: int, row: int, n: int, percent: int) -> None:
    alpha = percent / 100
    keys = words(seed, row, 0, n)
    k = round(alpha * n)
    if not 0 < k < n:
        with pytest.raises(UserError, match="alpha is"):
            subset_size(alpha, n)
        return
    found = mask(keys, alpha, "exact")
    assert found.sum() == k
    assert set(np.flatnonzero(found)) == set(np.argsort(keys, kind="stable")[:k])


def test_ties_go_to_the_lower_index() -> None:
    keys = np.array([7, 5, 7, 5, 7, 7], np.uint64)
    assert mask(keys, 0.5, "exact").tolist() == [True, True, False, True, False, False]


@given(seeds, st.integers(1, 99))
def test_a_bernoulli_mask_holds_the_keys_below_alpha(seed: int, percent: int) -> None:
    alpha = percent / 100
    keys = words(seed, 3, 0, 200)
    assert np.array_equal(mask(keys, alpha, "bernoulli"), [key < math.floor(alpha * 2**64) for key in keys.tolist()])


def test_a_row_of_a_setting_has_the_mask_of_its_index() -> None:
    setting = tiny(seed=5, models=24, eval_models=8, runs_per_mask=2)
    masks = Masks(setting, 100)
    for row, index in {0: 0, 23: 23, 24: 24, 25: 24, 26: 25, 31: 27}.items():
        assert np.array_equal(masks[row], mask(words(5, index, 0, 100), 0.5, "exact"))


@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 4), st.integers(0, 50))
def test_mask_indices_follow_the_rule_and_outlive_growth(models: int, evals: int, runs: int, more: int) -> None:
    before, after = Era(models, evals), Era(models + more * runs, evals)
    for row in range(before.rows):
        expected = row if row < models else models + (row - models) // runs
        assert mask_index(row, [before], runs) == mask_index(row, [before, after], runs) == expected
    for row in range(before.rows, after.rows):
        expected = row if row < after.models else after.models + (row - after.models) // runs
        assert mask_index(row, [before, after], runs) == expected


def test_validation_rows_are_those_with_a_small_key() -> None:
    numbers = np.arange(2000)
    expected = [int(words(9, row, 4, 1)[0]) < math.floor(0.1 * 2**64) for row in range(2000)]
    assert validation_rows(9, numbers, 0.1).tolist() == expected
    assert 0.07 < np.mean(expected) < 0.13
