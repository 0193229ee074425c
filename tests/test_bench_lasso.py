import re
from argparse import Namespace

import pytest

from bench import lasso_agree, lasso_gpu
from lasso import fista
from tests.fake_store import linear_data


def test_the_gpu_case_runs_on_a_cpu_and_extrapolates_every_stage(monkeypatch, capsys):
    monkeypatch.setattr(fista, "TILE", 8)
    options = Namespace(
        device="cpu", examples=40, models=600, targets=12, alpha=[0.5], small=[0.05], eps=0.1, patience=5
    )
    lasso_gpu.run(options)
    out = capsys.readouterr().out
    assert "cpu: 40 examples, 600 models, 12 targets" in out
    gaps = [float(gap) for gap in re.findall(r"(?:paths|refits|stored) (\S+?e-\d+)", out)]
    assert gaps[0] <= 1e-4
    assert max(gaps[1:]) <= 1e-6
    assert "\npaths: " in out
    assert 0 < float(re.search(r"for each lambda: ([\d.]+)", out)[1]) < 30
    for stage in ("counts", "sums with margins", "correlations", "paths", "refits and certificates", "all"):
        assert re.search(rf"^{stage} +[\d.]+ +[\d.]+", out, re.MULTILINE)


@pytest.mark.parametrize("rows", [60, 600])
def test_scikit_learn_agrees_on_lambda_and_weights(capsys, rows):
    masks, margins = linear_data(rows, 40, 3)
    lasso_agree.run(masks, margins)
    out = capsys.readouterr().out
    assert out.startswith("lambda the same in 3 of 3 targets")
    assert float(re.search(r"weights apart by at most (\S+),", out)[1]) < 1e-6


def test_extrapolation_is_by_what_a_stage_is_proportional_to(capsys):
    half = {"models": 150_000, "examples": 25_000, "targets": 30_000}
    lasso_gpu.tell(dict.fromkeys(lasso_gpu._GROWS, 1.0), half)
    out = capsys.readouterr().out
    found = dict(re.findall(r"^(\w.*?) +1\.00 +([\d.]+) ", out, re.MULTILINE))
    cubic = ("counts", "sums with margins", "paths", "refits and certificates")
    assert {stage: float(value) for stage, value in found.items()} == {**dict.fromkeys(cubic, 8), "correlations": 4}
    assert float(out.split()[-1]) == 36


@pytest.mark.parametrize(("free", "examples"), [(24 * 10**9, 45_000), (80 * 10**9, 50_000)])
def test_sizes_follow_the_memory(monkeypatch, free, examples):
    monkeypatch.setattr(lasso_gpu, "_host_memory", lambda: 128 * 2**30)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, free))
    import torch

    found = lasso_gpu.sizes(Namespace(examples=None, models=None, targets=None), torch.device("cuda"))
    assert found["models"] == 300_000
    assert found["targets"] == 512
    assert abs(found["examples"] - examples) <= 5_000
