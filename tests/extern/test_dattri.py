"""dattri.metric.lds on our score and ground truth."""

import pytest
import torch


def test_dattris_lds_is_that_of_eval(block, evaluated: dict) -> None:
    correlation = block("dattri.metric")["correlation"]
    assert correlation.shape == (200,)
    assert torch.nan_to_num(correlation).mean().item() == pytest.approx(evaluated["lds"], abs=1e-4)
    assert evaluated["lds"] > 0.2  # so that a sign or an order that is wrong would show
