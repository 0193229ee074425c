"""The examples run as they are, of fewer models; what they predict is far from chance."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest

import datamodels as dm
from tests.conftest import PROJECT, in_process

SMALL = ["--models", "120", "--eval_models", "40", "--eval.replicates", "200"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder but for the examples, which is the current one."""
    shutil.copytree(PROJECT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints that goes well, in this process alone but for the trainer's."""
    done = in_process(capsys, *words, *(["--workers=1"] if words[0] == "train" else []))
    assert done.code == 0, done.err
    return done.out


def scored(capsys: pytest.CaptureFixture[str], name: str, *options: str) -> dict:
    """The figures of `eval` once an example's models are trained and its datamodels are fitted."""
    for command in ("init", "train", "fit"):
        run(capsys, command, f"examples/{name}.yaml", *SMALL)
    return json.loads(run(capsys, "eval", f"examples/{name}.yaml", *SMALL, "--json"))


@pytest.mark.parametrize(("name", "output", "least"), [("table", "loss", 0.15), ("text", "margins", 0.25)])
def test_datamodels_predict_other_models(
    name: str, output: str, least: float, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scored(capsys, name)
    assert found["output"] == output
    assert found["masks"] == 20
    assert least < found["lds_interval"]["low"] < found["lds"] < found["ceiling"]


def test_weights_agree_with_removal(capsys: pytest.CaptureFixture[str]) -> None:
    assert scored(capsys, "digits")["lds"] > 0.6
    removal = runpy.run_path("examples/removal.py")
    removal["write_masks"]("runs/removal.npy", 100, base_runs=20, runs=2)
    small = ["examples/removal.yaml", "--models=20", "--eval_models=200", "--runs_per_mask=2"]
    for command in ("init", "train"):
        run(capsys, command, *small)
    removal["compare"](dm.open("runs/digits"), dm.open("runs/removal"))
    pearson, spearman, low = map(float, re.findall(r"\d\.\d+", capsys.readouterr().out)[:3])
    assert pearson > 0.4
    assert spearman > low > 0.15

    done = in_process(capsys, "eval", *small, "--weights", "runs/digits/digits_sgd/datamodels/test_50pct.pt")
    assert f"LDS          {spearman:.2f}"[:-1] in done.out
    assert "was fitted on" not in done.err  # rows of another setting
