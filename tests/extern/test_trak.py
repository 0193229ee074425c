"""TRAK: its way of evaluating scores on our masks and margins, and its own scores from our networks."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_command
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from trak import TRAKer
from trak.projectors import BasicProjector, ProjectionType

EXAMPLES, TARGETS = 100, 200


def test_the_score_in_traks_way_is_that_of_eval(block, evaluated: dict) -> None:
    assert block("spearmanr")["lds"].mean() == pytest.approx(evaluated["lds"], abs=1e-4)


def trak_scores(exported: Path, folder: Path) -> np.ndarray:
    """TRAK's scores [N, T], averaged over the networks of an export."""
    spec = importlib.util.spec_from_file_location("exported_network", exported / "network.py")
    network = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(network)
    model = network.load(exported)
    size = sum(values.numel() for values in model.parameters())
    projector = BasicProjector(size, 256, seed=0, proj_type=ProjectionType.rademacher, device="cpu")
    traker = TRAKer(
        model, "image_classification", EXAMPLES, str(folder), device="cpu", projector=projector, proj_dim=256,
        use_half_precision=False,
    )  # fmt: skip
    digits = load_digits()
    images = torch.tensor(digits.images / 16).float()[:, None]
    train, test = ([part[a:b] for part in (images, torch.tensor(digits.target))] for a, b in ((0, 100), (100, 300)))
    names = json.loads((exported / "export.json").read_text())["checkpoints"]
    checkpoints = [torch.load(exported / name, weights_only=True) for name in names]
    for number, checkpoint in enumerate(checkpoints):
        traker.load_checkpoint(checkpoint, number)
        traker.featurize(train, num_samples=EXAMPLES)
    traker.finalize_features()
    for number, checkpoint in enumerate(checkpoints):
        traker.start_scoring_checkpoint("digits", checkpoint, number, TARGETS)
        traker.score(test, num_samples=TARGETS)
    return np.asarray(traker.finalize_scores("digits"), dtype=np.float32)


def test_trak_attributes_our_networks_and_is_judged_on_our_rows(folder: Path, export, tmp_path: Path) -> None:
    printed = run_command(
        folder, "export", "configs/digits_50pct.yaml", "--to=quanda", "--checkpoints=0:20", f"--out={tmp_path}"
    )
    scores = trak_scores(Path(printed.strip()), tmp_path / "trak")
    made = export("trak_test_50pct")
    predicted = np.load(made / "mask.npy").astype(np.float32) @ scores
    margins = np.load(made / "val_margins.npy")
    correlations = [spearmanr(predicted[:, j], margins[:, j]).statistic for j in range(TARGETS)]
    assert scores.shape == (EXAMPLES, TARGETS)
    assert np.isfinite(scores).all()
    assert np.isfinite(correlations).all()  # how good TRAK is on 20 networks of 50 digits is not ours to promise
