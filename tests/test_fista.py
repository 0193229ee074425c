import numpy as np
import pytest
import torch

from lasso import fista
from lasso.solver import solve, uses_fista
from tests.test_solver import dense_data, make, sums_of
from train.config import Fit


@pytest.fixture(autouse=True)
def narrow_tiles(monkeypatch):
    monkeypatch.setattr(fista, "TILE", 8)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_fista_and_descent_agree(alpha):
    masks, margins, held = make(rows=400, n_train=30, targets=7, alpha=alpha)
    sums = sums_of(masks, margins, held)
    ours, other = solve(*sums, Fit(solver="descent", k=20, eps=1e-2)), solve(*sums, Fit(solver="fista", k=20, eps=1e-2))
    np.testing.assert_array_equal(ours.chosen, other.chosen)
    np.testing.assert_array_equal(ours.tried, other.tried)
    np.testing.assert_allclose(ours.weight, other.weight, atol=1e-6)
    np.testing.assert_allclose(ours.lam, other.lam, rtol=1e-6)
    assert other.gap.max() <= 1e-6
    assert other.path_gap.max() <= 1e-4


@pytest.mark.parametrize(("rows", "alpha", "small", "exact"), [(400, 0.5, 1.0, True), (900, 0.1, 0.05, False)])
def test_lambdas_that_come_close_are_told_apart(rows, alpha, small, exact):
    sums = sums_of(*dense_data(rows, 60, 8, alpha, small, exact))
    ours, other = solve(*sums, Fit(solver="descent")), solve(*sums, Fit(solver="fista"))
    np.testing.assert_array_equal(ours.chosen, other.chosen)
    np.testing.assert_array_equal(ours.tried, other.tried)


@pytest.mark.parametrize("available", [10**9, 10**12])
def test_a_gpu_without_the_memory_is_left_alone(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (available, 10**12))
    assert uses_fista(Fit(), 20_000, 1_000) == (available > 10**10)
    assert not uses_fista(Fit(), 2_000, 1_000)
    assert not uses_fista(Fit(solver="descent"), 20_000, 1_000)


def test_fista_does_not_depend_on_how_targets_are_divided():
    masks, margins, held = make(rows=300, n_train=25, targets=6)
    whole = solve(*sums_of(masks, margins, held), Fit(solver="fista", k=12), first=5)
    part = solve(*sums_of(masks, margins[:, 2:5], held), Fit(solver="fista", k=12), first=7)
    np.testing.assert_array_equal(whole.weight[2:5], part.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gap_is_met_at_every_lambda(dtype):
    masks, margins, held = make(rows=300, n_train=60, targets=3, sparse=60)
    matrices, training, _ = sums_of(masks, margins, held)
    targets = [matrices.scale.target(training.cross[t], training.sums[t], training.squares[t]) for t in range(3)]
    cov, var = np.stack([target[2] for target in targets], axis=1), np.array([target[1] for target in targets])
    tile = fista.Tile(fista.Correlations(matrices.corr, "cpu", dtype), cov, var)
    for ratio in np.geomspace(1, 1e-2, 20):
        assert tile.minimise(np.abs(cov).max(axis=0) * ratio, 1e-5, 1e-5).max() <= 1e-5


def test_halves_lose_nothing_and_their_product_is_close_to_float64():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.normal(size=(200, 200)).astype(np.float32)) for _ in range(2))
    high, low = fista.halves(a)
    assert torch.equal(high + low, a)
    assert not (high.view(torch.int32) & 8191).any()
    exact = a.double() @ b.double()
    assert (fista.split_product((high, low), b) - exact).abs().max() < 1e-4
