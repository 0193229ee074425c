"""A data set for the Hub, as datasets reads it, and weights as safetensors reads them."""

import json

import numpy as np
import pytest
import torch
from datasets import get_dataset_config_names, load_dataset

NAMES = ["rows", "test_weights", "test_targets"]


@pytest.fixture
def fitted(folder) -> dict:
    return torch.load(folder / "runs/digits_50pct/digits/datamodels/test_50pct.pt", weights_only=True)


def test_datasets_reads_the_rows_and_the_datamodels(block, export, stored, fitted, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    names = block("load_dataset")
    assert get_dataset_config_names(names["folder"]) == NAMES
    rows = names["rows"]
    assert rows["row"][:].tolist() == list(range(680))
    for name in ("train_masks", "test_margins", "train_margins", "test_logits"):
        assert np.array_equal(np.stack(rows[name][:]), stored(name))
    assert np.array_equal(names["right"], stored("test_margins")[0] > 0)
    assert np.array_equal(np.stack(names["weight"]), fitted["weight"].numpy())
    targets = load_dataset(names["folder"], "test_targets", split="train").with_format("numpy")
    assert np.array_equal(targets["bias"][:], fitted["bias"].numpy())
    about = json.loads((export("huggingface_50pct") / "export.json").read_text())
    assert (about["completed"], about["license"]) == (680, "cc-by-4.0")


def test_safetensors_reads_the_weights(block, fitted) -> None:
    names = block("safe_open")
    assert np.array_equal(names["of_target"], fitted["weight"][:, 7].numpy())
