"""Masks from a file, and masks of groups: drawn, checked, fitted and evaluated as those that follow alpha."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import datamodels as dm
from datamodels.launch.slurm.script import portable
from datamodels.train.config import Setting, from_dict
from datamodels.train.errors import UserError
from datamodels.train.masks import Masks, mask, mask_index
from datamodels.train.rng import Stream, raw
from tests.conftest import DIGITS, TINY, Outcome, in_process, tiny

TRAINER = """
import numpy as np

n_train, outputs = 60, {"test_margins": (5,)}

def train(mask, seed, device):
    groups = np.array([mask[group::6].any() for group in range(6)])
    return {"test_margins": groups @ np.arange(30.0).reshape(6, 5) / 30 + 0.01 * np.random.normal(size=5)}

def names():
    return {"train": [f"name {number}" for number in range(60)]}
"""
CONFIG = "dataset: mine\ntrainer: t.py\nmodels: 40\neval_models: 12\nrecipe: {device: cpu, threads: 1}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a config, its trainer, a file of masks and a file of groups."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "t.py").write_text(TRAINER)
    np.save("masks.npy", ~np.eye(52, 60, dtype=bool))
    np.save("groups.npy", np.arange(60) % 6)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], command: str, *options: object) -> Outcome:
    return in_process(capsys, command, "c.yaml", "--root", "root", *options)


def test_a_rules_masks_from_a_file_and_groups_of_one_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    masks = Masks(tiny(), 100)
    np.save("masks.npy", np.stack([masks[row] for row in range(32)]))
    np.save("groups.npy", np.arange(100))
    (tmp_path / "c.yaml").write_text(DIGITS.read_text().replace("alpha: 0.5", ""))
    ways = {"exact": [], "own": ["--mask=masks.npy", "--tag=own"], "groups": ["--mask=groups", "--groups=groups.npy"]}
    found = {}
    for name, options in ways.items():
        options = ["c.yaml", "--root", name, *TINY, *options]
        assert in_process(capsys, "init", *options).code == 0
        assert in_process(capsys, "train", *options, "--workers=1").code == 0
        data = Path(name) / "digits" / "data"
        tag = "own" if name == "own" else "50pct"
        found[name] = [(data / f"{array}_{tag}.npy").read_bytes() for array in ("train_masks", "test_margins")]
        if name != "own":
            assert in_process(capsys, "fit", *options).code == 0
    assert found["exact"] == found["own"] == found["groups"]
    exact, groups = (dm.load(dm.open(name)).weight for name in ("exact", "groups"))
    np.testing.assert_array_equal(exact, groups)


def test_masks_of_a_file_are_those_of_the_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--mask=masks.npy", "--tag=loo"]
    assert call(capsys, "run", *options).code == 0
    store = dm.open("root", tag="loo")
    assert (store.masks == ~np.eye(52, 60, dtype=bool)).all()
    assert store.setting.alpha is None
    assert {path.name for path in Path("root/mine/datamodels").glob("*.pt")} == {"test_loo.pt"}
    assert "the subsets in masks.npy of 60 training examples" in " ".join(
        Path("root/mine/report_test_loo.html").read_text().split()
    )
    assert json.loads(call(capsys, "verify", *options, "--retrain=1", "--json").out)["bad"] == []
    assert json.loads(call(capsys, "eval", *options, "--json").out)["alpha"] is None
    told = call(capsys, "grow", *options, "--models=50").error
    assert told == "error: models is 50, but masks.npy has no masks for more rows than 52"

    np.save("masks.npy", np.eye(52, 60, dtype=bool))
    assert call(capsys, "train", *options).error.startswith(
        "error: masks.npy is not the mask that root/mine/data/store_loo"
    )
    assert call(capsys, "status", *options, f"--mask_sha256={store.setting.mask_sha256}").code == 0
    assert dm.open("root").layout.tag == "loo"
    with pytest.raises(UserError, match="root holds no setting 50pct"):
        dm.open("root", alpha=0.5)


def test_groups_are_in_or_out_together_and_have_one_weight(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--mask=groups", "--groups=groups.npy", "--runs_per_mask=2"]
    assert call(capsys, "run", *options).code == 0
    (folder / "groups.npy").rename("moved.npy")  # the store has its own copy
    store = dm.open("root")
    masks = store.masks.reshape(52, 10, 6)
    assert (masks == masks[:, :1]).all()
    for row in range(52):
        index = mask_index(row, list(store.eras), 2)
        assert (masks[row, 0] == mask(raw(0, index, Stream.MASK, 6), 0.5, "exact")).all()
    path = Path("root/mine/datamodels/test_50pct.pt")
    found = torch.load(path, weights_only=True)
    assert found["weight"].shape == (6, 5)
    weight = found["weight"].numpy() * 30  # up to a shift of all: three groups are always in
    np.testing.assert_allclose(weight - weight[2], np.arange(30).reshape(6, 5) - np.arange(10, 15), atol=1.5)
    fitted = dm.load(store)
    np.testing.assert_array_equal(fitted.predict(store.masks[:3]), fitted.predict(masks[:3, 0]))
    assert dm.evaluate(store).lds > 0.9
    np.testing.assert_array_equal(store.groups, np.arange(60) % 6)
    page = Path("root/mine/report_test_50pct.html").read_text()
    assert "a group is shown by its number, its size and some of its examples" in page
    assert "<span>name 5, name 11, name 17, ... (10 examples)</span>" in page
    assert "The groups above the gap" in " ".join(page.split())
    given = [*options, "--groups=moved.npy"]
    assert call(capsys, "fit", *given).code == 0
    assert call(capsys, "export", *given, "--to=trak").code == 0
    assert np.load("root/mine/export/trak_test_50pct/mask.npy").shape == (6, 6)
    assert json.loads(call(capsys, "verify", *given, "--retrain=1", "--json").out)["bad"] == []

    np.save("root/mine/data/groups_50pct.npy", np.arange(60) % 5)
    done = call(capsys, "fit", *given)
    assert done.code == 1
    assert "groups_50pct.npy is damaged" in done.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask": "own"}, "mask is 'own', expected exact, bernoulli, groups, or a NumPy file (.npy)"),
        ({"mask": "x.npy", "tag": "a"}, "mask is 'x.npy': cannot read it: No such file or directory"),
        ({"mask": "masks.npy"}, "tag is null, expected a name of a-z, 0-9, _ and -"),
        ({"mask": "masks.npy", "tag": "50pct"}, "tag is '50pct', expected a name of"),
        ({"mask": "masks.npy", "tag": "a", "alpha": 0.5}, "alpha is 0.5, expected no alpha: the masks are those of"),
        ({"tag": "a"}, "tag is 'a', expected null: the names of the files carry the alpha"),
        ({"mask": "groups"}, "groups is null, expected a NumPy file (.npy)"),
        ({"groups": "groups.npy"}, "groups is 'groups.npy', expected null for mask: exact"),
        ({"mask_sha256": "0"}, "mask_sha256 is '0', expected null: no file is named"),
    ],
)
def test_keys_of_masks_that_do_not_fit_together_are_refused(
    folder: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError) as told:
        Setting(**changes)
    assert str(told.value).startswith(said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": 41}, "masks.npy holds bool [52, 60], expected bool [53, 60]: a mask for each of models"),
        ({"runs_per_mask": 2}, "masks.npy: rows 40 and 41 differ, expected one mask (runs_per_mask is 2)"),
        ({"mask_sha256": "f" * 64}, "masks.npy has changed: it has sha256 "),
        ({"groups": np.zeros(59, int)}, "groups.npy holds int64 [59], expected integers [60]: groups"),
        ({"groups": np.zeros(60)}, "groups.npy holds float64 [60], expected integers [60]: groups"),
        ({"groups": np.arange(60) % 6 + 1}, "groups.npy holds groups from 1 to 6, expected all of 0 to 5"),
        ({"groups": np.zeros(60, int)}, "alpha is 0.5: 0 of 1 groups, expected at least 1 and not all"),
    ],
)
def test_files_that_do_not_fit_the_rows_are_refused(folder: Path, changes: dict[str, object], said: str) -> None:
    keys = {"models": 40, "eval_models": 12, "mask": "masks.npy", "tag": "a", **changes}
    if "groups" in changes:
        np.save("groups.npy", changes["groups"])
        keys = {"mask": "groups", "groups": "groups.npy"}
    with pytest.raises(UserError) as told:
        Masks(Setting(**keys), 60)
    assert str(told.value).startswith(said)


def test_jobs_find_the_files_from_any_folder(folder: Path) -> None:
    own = portable(Setting(mask="masks.npy", tag="a"))
    grouped = portable(Setting(mask="groups", groups="groups.npy"))
    assert (own["mask"], grouped["groups"]) == (str(folder / "masks.npy"), str(folder / "groups.npy"))
    assert from_dict(own).file_tag == "a"
