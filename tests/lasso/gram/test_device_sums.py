import sys

import numpy as np
import pytest
import torch

from datamodels.lasso import fit
from datamodels.lasso.gram.device_sums import Counter, DeviceCross, _integers
from datamodels.lasso.gram.moments import Cross, Gram
from datamodels.train.config import Fit
from datamodels.train.errors import WorkError
from tests.lasso.fake_store import FakeStore, linear_data

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("datamodels.lasso.gram.device_sums._ROWS", 64)
    monkeypatch.setattr("datamodels.lasso.gram.device_sums._STRIP", 16)


def test_counts_are_those_of_the_other_routes():
    masks, _ = linear_data(500, 50, 1)
    found = Gram(50, device=CPU)
    for piece in np.array_split(masks, 3):
        found.add(piece)
        found.flush()
    np.testing.assert_array_equal(found.finish().counts, masks.astype(int).T @ masks.astype(int))
    assert found.rows == 500
    assert not found.clear().finish().counts.any()


@pytest.mark.parametrize("scale", [1, 1e-4, 3000])
def test_sums_with_margins_are_those_of_the_cpu_bit_for_bit(scale):
    rng = np.random.default_rng(0)
    masks = rng.random((300, 21)) < 0.4
    margins = (scale * rng.normal(size=(300, 150)) * 10 ** rng.uniform(-3, 0, size=(300, 150))).astype(np.float16)
    sums = Cross(21, 150, 40), DeviceCross(21, 150, 40, CPU)
    for cross in sums:
        for rows in (slice(0, 100), slice(100, 300)):
            cross.add_packed(np.packbits(masks[rows], axis=1), margins[rows].astype(np.float64))
        cross.finish()
    ours, other = sums
    np.testing.assert_array_equal(other.cross, ours.cross)
    np.testing.assert_array_equal(other.sums, ours.sums)
    np.testing.assert_allclose(other.squares, ours.squares, rtol=1e-14)


def test_rows_are_gathered_before_they_are_added(monkeypatch):
    made = []
    plain = DeviceCross._add
    monkeypatch.setattr(DeviceCross, "_add", lambda cross, *given: (made.append(len(given[0])), plain(cross, *given)))
    masks, margins = linear_data(100, 20, 3)
    cross, packed = DeviceCross(20, 3, 0, CPU), np.packbits(masks, axis=1)
    for row in range(100):
        cross.add_packed(packed[row : row + 1], margins[row : row + 1].astype(np.float64))
    cross.finish()
    assert made == [64, 36]
    np.testing.assert_array_equal(cross.cross, margins.T.astype(np.float64) @ masks)


def test_every_float16_is_a_sum_of_integers_of_11_bits():
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    for numbers in (bits[bits.isfinite()].double(), torch.tensor([0.75, -3.0], dtype=torch.float64)):
        parts = list(_integers(numbers))
        assert len(parts) <= 4
        assert all(integers.abs().max() <= 2048 and (integers == integers.round()).all() for _, integers in parts)
        assert torch.equal(sum(quantum * integers.double() for quantum, integers in parts), numbers)


def test_sums_that_do_not_add_up_are_refused():
    counter, cross = Counter(20, CPU), DeviceCross(20, 3, 0, CPU)
    masks, margins = linear_data(100, 20, 3)
    counter.add(masks)
    counter.counts[3, 5] += 1
    with pytest.raises(WorkError, match=r"do not add up: set fit\.solver to descent"):
        counter.move_into(np.zeros((20, 20), np.int32))
    cross.add_packed(np.packbits(masks, axis=1), margins.astype(np.float64))
    cross._made[1, 2] += 1e-3
    with pytest.raises(WorkError, match=r"do not add up: set fit\.solver to descent"):
        cross.finish()


def test_a_whole_fit_on_a_device_is_that_of_the_cpu(tmp_path, monkeypatch):
    stores = []
    for name in ("cpu", "device"):
        (tmp_path / name).mkdir()
        stores.append(FakeStore(tmp_path / name, *linear_data(500, 30, 10), fit=Fit(k=30)))
    ours = torch.load(fit(stores[0]), weights_only=True)
    made = []
    plain = Counter.move_into
    monkeypatch.setattr(Counter, "move_into", lambda counter, counts: (made.append(1), plain(counter, counts)))
    monkeypatch.setattr(sys.modules["datamodels.lasso.fit"], "device_for", lambda *_: CPU)
    monkeypatch.setattr(sys.modules["datamodels.lasso.fit"], "sums_device", lambda device: device)
    other = torch.load(fit(stores[1]), weights_only=True)
    assert made
    for key in ("chosen", "tried"):
        assert torch.equal(ours[key], other[key])
    for key in ("weight", "bias", "lam", "validation_mse", "variance"):
        torch.testing.assert_close(ours[key], other[key], atol=2e-6, rtol=1e-6)
    assert other["gap"].max() <= 1e-6
