"""Outputs other than margins: kept, fitted, evaluated, reported on and exported under their name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import datamodels as dm
from datamodels.launch.cli import main
from datamodels.train import UserError
from tests.conftest import DIGITS, TINY, Outcome, in_process

KEPT = ["--outputs.loss=true", "--outputs.correct=true", "--outputs.test_logits=true", "--outputs.train_logits=true"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a small digits setting that keeps every output, its rows trained."""
    root = tmp_path_factory.mktemp("outputs")
    assert main(["init", str(DIGITS), "--root", str(root), *TINY, *KEPT]) == 0
    assert main(["train", str(DIGITS), "--root", str(root), *TINY, *KEPT, "--workers=1"]) == 0
    return root


def call(capsys: pytest.CaptureFixture[str], root: Path, command: str, *options: object) -> Outcome:
    return in_process(capsys, command, DIGITS, "--root", root, *TINY, *KEPT, *options)


def test_loss_and_correct_are_those_of_the_logits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = dm.open(root)
    dataset = store.dataset()
    for split, labels in (("test", dataset.test.labels), ("train", dataset.train.labels)):
        logits = torch.from_numpy(np.array(store.logits(split), np.float32))
        expected = [
            torch.nn.functional.cross_entropy(row, torch.from_numpy(labels), reduction="none") for row in logits
        ]
        assert store.arrays[f"{split}_loss"].dtype == np.float32
        np.testing.assert_allclose(store.output("loss", split), np.stack(expected), atol=0.02)
        np.testing.assert_array_equal(store.output("correct", split), store.margins(split) > 0)
    assert json.loads(call(capsys, root, "verify", "--retrain=2", "--json").out)["bad"] == []
    with pytest.raises(UserError, match=r"test_entropy_50pct\.npy does not exist"):
        store.output("entropy")


def test_every_command_takes_an_output(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root, tmp_path / "root")
    root = tmp_path / "root"
    folder = root / "digits"
    assert call(capsys, root, "fit", "--output=loss").out == f"{folder}/datamodels/test_loss_50pct.pt\n"
    assert "run `datamodels fit`" in call(capsys, root, "eval").error, "margins stay the default"
    found = json.loads(call(capsys, root, "eval", "--output=loss", "--json").out)
    assert (found["split"], found["output"], found["margin"]) == ("test", "loss", None)
    assert "squared loss" in call(capsys, root, "eval", "--output=loss").out
    assert call(capsys, root, "report", "--output=loss").out == f"{folder}/report_test_loss_50pct.html\n"
    page = (folder / "report_test_loss_50pct.html").read_text()
    assert "test targets, loss" in page
    assert "Harmful" not in page, "a larger loss is not better"
    told = json.loads((folder / "datamodels" / "test_loss_50pct.json").read_text())
    assert (told["split"], told["output"], told["tag"]) == ("test", "loss", "50pct")

    store = dm.open(root)
    fitted = dm.load(store, output="loss")
    masks, loss = np.array(store.masks), np.array(store.output("loss"))
    np.testing.assert_allclose(fitted.predict(masks[:24]).mean(axis=0), loss[:24].mean(axis=0), atol=1e-3)
    assert dm.evaluate(store, fitted, output="loss").lds == found["lds"]
    path = dm.fit(store, split="train", output="correct")
    assert path.name == "train_correct_50pct.pt"
    assert call(capsys, root, "export", "--output=loss", "--to=trak").code == 0
    exported = np.load(folder / "export" / "trak_test_loss_50pct" / "val_margins.npy")
    np.testing.assert_allclose(exported, loss[24:].reshape(4, 2, -1).mean(axis=1), rtol=1e-6)

    assert "output is 'entropy', expected one of margins, " in call(capsys, root, "fit", "--output=entropy").error
    assert (
        "expected no other output such as test_loss"
        in call(capsys, root, "export", "--output=loss", "--to=trak", "--margin=trak").error
    )
    script = call(capsys, root, "submit", "--output=loss", "--dry-run").out
    assert ' fit "$plan"/setting.yaml' in script
    assert "--split test --output loss --targets" in script


def test_a_store_without_margins_is_fitted_to_its_first_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.py").write_text("""
import numpy as np

n_train, outputs = 40, {"train_loss": (40,), "test_loss": ((6,), "float32"), "test_shape": (6, 2)}

def train(mask, seed, device):
    loss = mask.reshape(4, 10).sum(axis=1) @ np.arange(24.0).reshape(4, 6) / 9 + np.random.normal(size=6)
    return {"train_loss": np.zeros(40), "test_loss": loss, "test_shape": np.zeros((6, 2))}

def names():
    return {"train": [f"a long text & its end, number {i}" for i in range(40)], "test": list("uvwxyz")}
""")
    Path("c.yaml").write_text("trainer: t.py\nmodels: 60\neval_models: 8\nrecipe: {device: cpu, threads: 1}\n")
    done = in_process(capsys, "run", "c.yaml", "--dataset=mine", "--root=root", "--workers=1")
    assert done.code == 0, done.err
    assert done.out.endswith("root/mine/report_test_loss_50pct.html\n")
    page = Path("root/mine/report_test_loss_50pct.html").read_text()
    assert "Test accuracy" not in page
    assert "<span>a long text &amp; its end, number 3" in page
    assert "training examples that raise the loss most" in " ".join(page.split())
    store = dm.open("root")
    assert dm.load(store).weight.shape == (40, 6)
    assert np.isnan(store.records().accuracy).all()
    assert dm.evaluate(store).protocol["output"] == "loss"
    told = in_process(capsys, "fit", "c.yaml", "--dataset=mine", "--root=root", "--output=shape").error
    assert "test_shape_50pct.npy has shape [68, 6, 2], expected [rows, targets]" in told
    told = in_process(capsys, "eval", "c.yaml", "--dataset=mine", "--root=root", "--output=margins").error
    assert told == "error: output is 'margins', expected one of loss, shape (test split)"
    plan = json.loads(in_process(capsys, "plan", "c.yaml", "--dataset=mine", "--root=root", "--json").out)
    assert plan["bytes"]["test_loss"] == 4096 + 4 * 68 * 6


def test_published_files_may_hold_any_output(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "digits" / "data"
    data.mkdir(parents=True)
    for name in ("train_masks", "test_loss"):
        shutil.copy(root / "digits" / "data" / f"{name}_50pct.npy", data)
    np.save(data / "test_labels_50pct.npy", np.zeros(60, int))
    options = [DIGITS, "--root", tmp_path, "--models=24", "--eval_models=8"]
    assert in_process(capsys, "fit", *options).out.endswith("test_loss_50pct.pt\n")
    assert json.loads(in_process(capsys, "eval", *options, "--json").out)["output"] == "loss"
    assert in_process(capsys, "report", *options).code == 0
