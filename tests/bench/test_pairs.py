"""The experiment on near-duplicates: which images count as pairs, and how scores are judged."""

import numpy as np
import pytest

from bench.pairs import Chosen, differences, near_duplicates, similarity, verdict


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def smooth(rng: np.random.Generator, count: int) -> np.ndarray:
    """Images [count, 32, 32, 3] whose neighbouring pixels are alike, as those of photographs."""
    return rng.integers(0, 256, (count, 8, 8, 3), np.uint8).repeat(4, 1).repeat(4, 2)


def test_pairs_are_found_through_shifts_mirrors_and_brightness(rng: np.random.Generator) -> None:
    train, test = smooth(rng, 20), smooth(rng, 15)
    test[3] = np.roll(train[7], (2, -1), (0, 1))
    test[4] = train[11][:, ::-1]
    test[5] = train[2] // 2 + 60
    assert {(i, j) for _, i, j in near_duplicates(train, test)} == {(7, 3), (11, 4), (2, 5)}


def test_no_two_pairs_show_the_same_image(rng: np.random.Generator) -> None:
    train, test = smooth(rng, 6), smooth(rng, 6)
    test[0] = test[1] = train[1] = train[0]
    assert [(i, j) for _, i, j in near_duplicates(train, test) if i < 2] in ([(0, 0)], [(0, 1)], [(1, 0)], [(1, 1)])
    assert len(near_duplicates(train, test)) == 1


def test_similarity_is_a_correlation(rng: np.random.Generator) -> None:
    images = smooth(rng, 5)
    found = similarity(images, images).numpy()
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-5)
    assert (found <= 1 + 1e-5).all()
    assert found[~np.eye(5, dtype=bool)].max() < 0.5


def test_scores_that_know_the_pairs_and_the_wrong_labels_are_told_from_those_that_do_not(
    rng: np.random.Generator,
) -> None:
    chosen = Chosen(train=[*range(40)], test=[*range(30)], similarity=[1.0] * 10, wrong=5)
    noise = rng.normal(size=(40, 30)).astype(np.float32)
    knowing = noise.copy()
    knowing[np.arange(10), np.arange(10)] += 20
    knowing[-5:] -= 3
    assert verdict(knowing, chosen) == "100.0% | 100.0% | 1 | 83.3% | 100.0% | 100.0%"
    shares = verdict(noise, chosen).split(" | ")
    assert float(shares[0].rstrip("%")) <= 30
    assert float(shares[3].rstrip("%")) <= 30


def test_equal_scores_share_a_rank() -> None:
    chosen = Chosen(train=[*range(9)], test=[*range(4)], similarity=[1.0, 1.0], wrong=1)
    assert verdict(np.ones((9, 4), np.float32), chosen).startswith("0.0% | 100.0% | 5 |")


def test_differences_are_those_of_means(rng: np.random.Generator) -> None:
    masks, margins = rng.random((50, 6)) < 0.5, rng.normal(size=(50, 4))
    found = differences(masks, margins.astype(np.float16))
    for i in range(6):
        expected = margins[masks[:, i]].mean(0) - margins[~masks[:, i]].mean(0)
        np.testing.assert_allclose(found[i], expected, atol=2e-3)
