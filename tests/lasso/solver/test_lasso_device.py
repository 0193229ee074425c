"""The LASSO's parts on a device: the same on a GPU, where there is one, as on the CPU."""

import numpy as np
import pytest
import torch

from datamodels.lasso.gram.device_sums import DeviceCross
from datamodels.lasso.gram.moments import Cross, Gram
from datamodels.lasso.solver.correlations import Correlations, HeldoutMasks
from datamodels.lasso.solver.solve import solve
from datamodels.train.config import Fit
from tests.lasso.fake_store import linear_data
from tests.lasso.solver.test_solver import dense_data, make, sums_of

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=needs_gpu)]


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    return torch.device(request.param)


def test_sums_are_exact(device):
    masks, margins = linear_data(700, 50, 9)
    gram, ours, other = Gram(50, device=device), Cross(50, 9), DeviceCross(50, 9, 0, device)
    gram.add(masks)
    np.testing.assert_array_equal(gram.finish().counts, masks.astype(int).T @ masks.astype(int))
    for cross in (ours, other):
        cross.add_packed(np.packbits(masks, axis=1), margins.astype(np.float64))
        cross.finish()
    np.testing.assert_array_equal(other.cross, ours.cross)
    np.testing.assert_array_equal(other.sums, ours.sums)


@pytest.mark.parametrize("base", [8, 2048])
def test_products_with_correlations_and_heldout_masks(monkeypatch, device, base):
    monkeypatch.setattr("datamodels.lasso.solver.correlations._BASE", base)
    matrices = sums_of(*make(rows=500, n_train=50, targets=1, alpha=0.3))[0]
    corr = Correlations(matrices.scale, matrices.counts, (0,), device)
    assert (corr._high is not None) == (base == 8)
    w = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 3))).to(device)
    expected = torch.from_numpy(matrices.corr.astype(np.float64)).to(device) @ w
    torch.testing.assert_close(corr.exactly(w), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(corr(w), corr.exactly(w), atol=1e-5, rtol=0)
    held = HeldoutMasks(matrices.bits, matrices.held_rows, matrices.scale.mean, corr)
    torch.testing.assert_close(held.squares(w), held.squares(w, exactly=True), rtol=1e-5, atol=0)


def test_descent_and_the_device_agree(monkeypatch, device):
    monkeypatch.setattr("datamodels.lasso.solver.fista.TILE", 8)
    sums = sums_of(*dense_data(900, 60, 8, 0.5, 0.05, True))
    ours, other = solve(*sums, Fit()), solve(*sums, Fit(), device=device)
    np.testing.assert_array_equal(ours.chosen, other.chosen)
    np.testing.assert_array_equal(ours.tried, other.tried)
    np.testing.assert_allclose(ours.weight, other.weight, atol=1e-6)


@needs_gpu
def test_a_product_of_more_elements_than_an_int_counts():
    n_train = 46_600
    corr = Correlations.__new__(Correlations)
    corr.device, corr.rows, corr.n_train = torch.device("cuda"), 1.0, n_train
    corr._low = torch.randint(-1000, 1000, (n_train, n_train), device="cuda", dtype=torch.int16).half()
    corr._high, corr._level_rest, corr.products = None, 0.0, 0
    corr.inv = torch.ones((n_train, 1), dtype=torch.float64, device="cuda")
    corr._off = corr._rest = torch.zeros_like(corr.inv)
    w = torch.randn((n_train, 16), dtype=torch.float64, device="cuda")
    exact = corr.exactly(w)
    assert float((corr(w) - exact).abs().max()) <= 1e-4 * float(exact.abs().max())
