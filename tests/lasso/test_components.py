"""Components and comparisons read in bands agree with whole matrices, and with what was planted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import datamodels as dm
from tests.stores import created_store, published_store, seeded_masks


def datamodels(weight: NDArray, name: str = "test_50pct.pt", **arrays: NDArray) -> dm.Datamodels:
    return dm.Datamodels(Path(name), weight.astype(np.float32), np.zeros(weight.shape[1], np.float32), arrays)


def planted(n_train: int = 60, targets: int = 90, noise: float = 0.2, seed: int = 0) -> NDArray:
    """Weights with four directions of falling size and noise; the last target has none."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(n_train, 4)) * [4, 3, 2, 1] @ rng.normal(size=(4, targets))
    weight += noise * rng.normal(size=(n_train, targets))
    weight[:, -1] = 0
    return weight


def centred(weight: NDArray) -> NDArray:
    """[T, N_train]: each target's weights scaled to length 1, then centred."""
    lengths = np.linalg.norm(weight, axis=0)
    scaled = (weight / np.where(lengths > 0, lengths, 1)).T
    return scaled - scaled.mean(axis=0)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (300, 14_500)])  # the last is read in two bands
def test_components_are_those_of_all_weights_at_once(shape: tuple[int, int]) -> None:
    weight = planted(*shape)
    found, expected = datamodels(weight).components(3), centred(weight)
    values, vectors = np.linalg.eigh(expected.T @ expected)
    np.testing.assert_allclose(found.shares, values[::-1][:3] / values.sum(), rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(vectors[:, ::-1][:, :3] * found.examples, axis=0)), 1, atol=1e-5)
    np.testing.assert_allclose(found.targets, expected @ found.examples, atol=1e-5)
    assert (found.examples[np.abs(found.examples).argmax(axis=0), range(3)] > 0).all()
    np.testing.assert_array_equal(datamodels(weight).components(3).examples, found.examples)
    assert "shares of variance" in repr(found)


def test_components_are_of_mask_units_and_leave_out_what_examples_weigh_for_themselves() -> None:
    weight, deviation = planted(50, 50), np.linspace(0.1, 0.5, 50)
    expected = datamodels(weight - np.diag(weight.diagonal())).components(4)
    file = {"standardised": np.array([True]), "mean": np.zeros(50), "deviation": deviation}
    found = datamodels(weight * deviation[:, None], "train_50pct.pt", **file).components(4)
    np.testing.assert_allclose(found.shares, expected.shares, rtol=1e-4)
    np.testing.assert_allclose(found.targets, expected.targets, atol=1e-4)
    assert not np.allclose(datamodels(weight).components(4).targets, expected.targets, atol=1e-2)


def test_only_components_with_variance_are_returned() -> None:
    rank = np.outer(np.arange(1.0, 9), np.sign(np.arange(30) - 9.5))
    assert datamodels(rank).components(5).shares == pytest.approx([1.0])
    for weight in (np.zeros((8, 30)), np.ones((8, 30))):
        found = datamodels(weight).components(5)
        assert (found.examples.shape, found.targets.shape, found.shares.shape) == ((8, 0), (30, 0), (0,))
        assert "none" in repr(found)


def test_components_refuse_what_cannot_be_analysed() -> None:
    with pytest.raises(dm.UserError, match="k is 0, expected at least 1"):
        datamodels(planted()).components(0)
    with pytest.raises(dm.UserError, match=r"test_50pct\.pt holds weights that are not finite"):
        datamodels(np.full((5, 30), np.nan)).components()


def test_a_comparison_finds_what_one_side_alone_uses() -> None:
    weight, other = planted(noise=0.01), planted(noise=0.01)
    other[7, 30:60] += 20 * np.sign(np.arange(30) - 14.5)  # example 7 raises some targets, lowers some
    found = dm.compare(datamodels(weight), datamodels(other), k=2)
    expected = (
        np.sum(weight * other, axis=0)[:-1] / (np.linalg.norm(weight, axis=0) * np.linalg.norm(other, axis=0))[:-1]
    )
    np.testing.assert_allclose(found.similarity[:-1], expected, atol=1e-5)
    assert (found.similarity[-1], found.undefined) == (0, 1)
    assert {*found.least_similar.tolist()} <= {*range(30, 60), 89}
    assert np.abs(found.only_b.examples[:, 0]).argmax() == 7
    assert {*found.to_json()["only_b"][0]["targets"]["positive"]} <= {*range(30, 60)}
    of_a, of_b = found.only_b.shares_of[:, 0]
    assert of_b > 5 * of_a
    for side, each in enumerate((weight, other)):
        along, total = centred(each) @ found.only_b.examples, (centred(each) ** 2).sum()
        np.testing.assert_allclose(found.only_b.shares_of[side], (along**2).sum(axis=0) / total, rtol=1e-4)
    assert "without weights on one side" in repr(found)


def test_proportional_weights_leave_nothing() -> None:
    weight = planted()
    found = dm.compare(datamodels(weight), datamodels(weight * np.linspace(1, 5, 90)))
    np.testing.assert_allclose(found.similarity[:-1], 1, atol=1e-6)
    assert found.only_a.shares.size == found.only_b.shares.size == 0
    assert "nothing" in repr(found)


def named(store: dm.BaseStore) -> None:
    store.layout.names("test").write_text("".join(f"{number} of {store.layout.root.name}\n" for number in range(9)))


@pytest.mark.parametrize(
    ("told", "change"),
    [
        ("N_train is 20 and 21", lambda folder: published_store(folder, np.ones((4, 21)), np.zeros((4, 9)))),
        ("N_test is 9 and 8", lambda folder: published_store(folder, np.ones((4, 20)), np.zeros((4, 8)))),
        ("names of test examples differ", None),
    ],
)
def test_stores_of_other_examples_are_refused_by_name(
    tmp_path: Path, told: str, change: Callable[[Path], dm.BaseStore] | None
) -> None:
    one = published_store(tmp_path / "one", np.ones((4, 20)), np.zeros((4, 9)))
    if change is None:
        other = published_store(tmp_path / "other", np.ones((4, 20)), np.zeros((4, 9)))
        named(one)
        named(other)
    else:
        other = change(tmp_path / "other")
    with pytest.raises(dm.UserError, match=told) as refused:
        dm.compare(one, other)
    assert str(one.layout.data) in str(refused.value)
    assert str(other.layout.data) in str(refused.value)


def test_stores_of_another_data_set_are_refused_by_its_digest(tmp_path: Path) -> None:
    masks, margins = seeded_masks(4, 20), np.zeros((4, 9))
    one, other = (created_store(tmp_path / name, masks, margins) for name in ("one", "other"))
    other.manifest = replace(other.manifest, data_sha256="1" * 64)
    with pytest.raises(dm.UserError, match=r"data_sha256 is 0+ and 1+ in"):
        dm.compare(one, other)
