import json
import re
from argparse import Namespace

import numpy as np
import pytest
import torch

from bench import lasso_agree, lasso_gpu
from bench.results import Results
from datamodels.lasso.solver import fista
from datamodels.launch.plan.benchmarks import read_tables
from datamodels.train.config import Fit
from tests.lasso.fake_store import linear_data


def test_the_gpu_case_runs_on_a_cpu_and_extrapolates_every_stage(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(fista, "TILE", 8)
    options = Namespace(
        device="cpu", examples=40, models=600, targets=12, alpha=[0.5], small=[0.05], eps=0.1, patience=5, out=tmp_path
    )
    lasso_gpu.run(options)
    out = capsys.readouterr().out
    assert "600 models, 40 examples, 12 targets" in out
    (path,) = tmp_path.glob("*.json")
    assert out.splitlines()[-1] == str(path)
    found = json.loads(path.read_text())["lasso"]
    assert found["largest_gap"]["paths"] <= 1e-4
    assert max(found["largest_gap"][name] for name in ("refits", "stored", "checked")) <= 1e-6
    assert 0 < found["products_a_lambda_of_paths"] < 30
    assert found["seconds"].keys() == found["extrapolated_seconds"].keys() == lasso_gpu._GROWS.keys()
    for stage in (*lasso_gpu._GROWS, "all"):
        assert re.search(rf"^{stage} +[\d.]+ +[\d.]+", out, re.MULTILINE)
    assert not read_tables(tmp_path), "no setting's seconds are in it"


def test_the_check_from_rows_sees_weights_that_are_off(monkeypatch, tmp_path):
    monkeypatch.setattr(fista, "TILE", 8)
    masks, margins = linear_data(600, 40, 3)
    packed, size = np.packbits(masks, axis=1), {"models": 600, "examples": 40, "targets": 3}
    device = torch.device("cpu")
    results = Results(device, [], tmp_path)
    results.content["lasso"] = {"seconds": {}}
    lot = lasso_gpu.add_all_up(packed, margins, size, Fit(eps=0.1), results, device)
    lot.follow_paths(lambda done: None)
    lot.refit(lambda done: None)
    right = lasso_gpu.gaps_from_rows(packed, margins, lot, device)
    np.testing.assert_allclose(right, lot.solution.gap, atol=1e-9)
    lot.solution.weight[1] *= 1.01
    assert lasso_gpu.gaps_from_rows(packed, margins, lot, device)[1] > 1e-5


@pytest.mark.parametrize("rows", [60, 600])
def test_scikit_learn_agrees_on_lambda_and_weights(capsys, rows):
    masks, margins = linear_data(rows, 40, 3)
    lasso_agree.run(masks, margins)
    out = capsys.readouterr().out
    assert out.startswith("lambda the same in 3 of 3 targets")
    assert float(re.search(r"weights apart by at most (\S+),", out)[1]) < 1e-6


def test_extrapolation_is_by_what_a_stage_is_proportional_to(capsys):
    half = {"models": 150_000, "examples": 25_000, "targets": 30_000}
    seconds = dict.fromkeys(lasso_gpu._GROWS, 1.0)
    lasso_gpu.table(seconds, lasso_gpu.extrapolated(seconds, half))
    out = capsys.readouterr().out
    found = dict(re.findall(r"^(\w.*?) +1\.00 +([\d.]+) ", out, re.MULTILINE))
    cubic = ("counts", "sums with margins", "paths", "refits and certificates")
    assert {stage: float(value) for stage, value in found.items()} == {**dict.fromkeys(cubic, 8), "correlations": 4}
    assert float(out.split()[-1]) == 36


@pytest.mark.parametrize(("free", "examples"), [(24 * 10**9, 45_000), (80 * 10**9, 50_000)])
def test_sizes_follow_the_memory(monkeypatch, free, examples):
    monkeypatch.setattr(lasso_gpu, "_host_memory", lambda: 128 * 2**30)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, free))
    found = lasso_gpu.sizes(Namespace(examples=None, models=None, targets=None), torch.device("cuda"))
    assert found["models"] == 300_000
    assert found["targets"] == 512
    assert abs(found["examples"] - examples) <= 5_000
